"""Fact ids of questions."""


def repeat(facts: int, each: int) -> list[str]:
  """Ids of `facts` facts with `each` questions each."""
  return [f'fact{i}' for i in range(facts) for _ in range(each)]
