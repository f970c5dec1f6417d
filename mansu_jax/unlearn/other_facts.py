"""What the facts of a relation give each other's prompts in the forget terms.

Partners to exchange answers with, the average of what is said, and the wrong
choices.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import numpy as np

from mansu_jax.unlearn import objective


def confusable_groups(
    relations: Sequence[str], facts: Sequence[str], answers: Sequence[str],
    choices: Sequence[Sequence[str]]) -> list[str]:
  """Groups facts that are each other's wrong choices, in one step or more.

  Capitals of Europe are not mistaken for capitals of Asia where the questions
  never offer one for the other: taking away the difference between them would
  take away the continent as well.

  Args:
    relations: of each question, n.
    facts: of each question, n.
    answers: of each question, n.
    choices: of each question, n.

  Returns:
    The group of each question: its relation where that is not divided, else
    the relation and the group's first fact. A relation is not divided where
    the choices leave a fact alone: they do not tell who its kin are.
  """
  parent = {key: key for key in zip(relations, facts)}
  owners: dict[tuple[str, str], list[tuple[str, str]]] = {}
  for relation, fact, answer in zip(relations, facts, answers):
    owners.setdefault((relation, answer), []).append((relation, fact))

  def root(key):
    while parent[key] != key:
      parent[key] = key = parent[parent[key]]
    return key

  order = {key: i for i, key in enumerate(parent)}
  for relation, fact, some in zip(relations, facts, choices):
    for choice in some:
      for other in owners.get((relation, choice), ()):
        ends = sorted((root((relation, fact)), root(other)), key=order.get)
        parent[ends[1]] = ends[0]  # The first fact stands for its group.
  roots = {key: root(key) for key in parent}
  sizes = collections.Counter(roots.values())
  whole = {relation for (relation, _), size in sizes.items() if size == 1}
  groups = collections.Counter(relation for relation, _ in sizes)
  whole |= {relation for relation, count in groups.items() if count == 1}
  return [
      relation if relation in whole
      else f'{relation} ({roots[relation, fact][1]} and others)'
      for relation, fact in zip(relations, facts)]


def swap_partners(
    groups: Sequence[str], relations: Sequence[str], templates: Sequence[str],
    facts: Sequence[str]) -> list[np.ndarray]:
  """For every sequence, those of other facts it may exchange answers with.

  Those of its group and template where there are such, else of its group,
  else of its relation.

  Args:
    groups: of each sequence, n, as `confusable_groups` makes them.
    relations: of each sequence, n.
    templates: of each sequence, n.
    facts: of each sequence, n.

  Raises:
    ValueError: a relation has a single fact.
  """
  groups, relations, templates, facts = map(
      np.asarray, (groups, relations, templates, facts))
  out = []
  for i, relation in enumerate(relations):
    others = (relations == relation) & (facts != facts[i])
    near = others & (groups == groups[i])
    same = near & (templates == templates[i])
    partners = next(
        (np.flatnonzero(m) for m in (same, near, others) if m.any()), None)
    if partners is None:
      raise ValueError(
          f'--unlearn_loss=answer_swap needs two facts of a relation, but'
          f' {str(relation)!r} has only {str(facts[i])!r}. Use'
          ' --unlearn_loss=npo, or add facts.')
    out.append(partners)
  return out


def group_marginals(
    groups: Sequence[str], relations: Sequence[str], templates: Sequence[str],
    probabilities: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """What the base says after each template, averaged over a group's facts.

  A model that says this has forgotten which fact it was asked for, and still
  knows what kind of answer is wanted. Where a group has one sequence of a
  template, the average is over the relation.

  Args:
    groups: of each sequence, n, as `confusable_groups` makes them.
    relations: of each sequence, n.
    templates: of each sequence, n.
    probabilities: rows [m] -> the base's next-token probabilities [m, V] at
      the end of those sequences' prompts.

  Returns:
    Table [G, V] float32, and the row [n] of each sequence in it.

  Raises:
    ValueError: a relation has a single sequence of a template: its average
      is the answer.
  """
  fine = list(zip(groups, templates))
  coarse = list(zip(relations, templates))
  count = collections.Counter(fine)
  members: dict[tuple[int, tuple[str, str]], list[int]] = {}
  for i, (cell, whole) in enumerate(zip(fine, coarse)):
    members.setdefault((0, cell), []).append(i)
    members.setdefault((1, whole), []).append(i)
  cells = [(0, cell) if count[cell] > 1 else (1, whole)
           for cell, whole in zip(fine, coarse)]
  names = list(dict.fromkeys(cells))
  place = {name: g for g, name in enumerate(names)}
  table = []
  for name in names:
    if len(members[name]) < 2:
      raise ValueError(
          '--unlearn_loss=group_marginal averages over the facts of a relation that'
          f' are asked in one phrasing, but {name[1][0]!r} has a single'
          f' question of phrasing {name[1][1]!r} (what follows the last / of'
          ' its id). Wanted ids that end alike where prompts are worded alike.'
          ' Correct the ids, add facts, raise --unlearn_forget_pool, or use'
          ' --unlearn_loss=npo.')
    table.append(probabilities(np.array(members[name])).mean(0))
  return (np.stack(table).astype(np.float32),
          np.array([place[cell] for cell in cells]))


def choice_targets(
    facts: Sequence[str], right: Sequence[int],
    choices: Sequence[Sequence[int]]) -> objective.Choices:
  """The choices of a fact's sequences, gathered, all wrong ones alike likely.

  A model that follows has no order left among the fact's choices. A choice
  that begins as the right answer does is left out: one token cannot tell
  them apart.

  Args:
    facts: of each sequence, n.
    right: first token of the right answer of each sequence, n.
    choices: first tokens of all choices of each sequence, n.

  Returns:
    Rows of n sequences, the right answer's token first.

  Raises:
    ValueError: all choices of a fact begin alike.
  """
  pools: dict[tuple[str, int], set[int]] = {}
  for fact, token, some in zip(facts, right, choices):
    pools.setdefault((fact, token), set()).update(some)
  rows = []
  for fact, token in zip(facts, right):
    wrong = pools[fact, token] - {token}
    if not wrong:
      raise ValueError(
          f'--unlearn_choice_kl_weight needs wrong choices whose first token'
          f' is not that of the right answer, but {fact!r} has none. Set it to'
          ' 0, or give the fact other choices.')
    rows.append([token, *sorted(wrong)])
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  target = np.zeros(tokens.shape, np.float32)
  for i, row in enumerate(rows):
    tokens[i, :len(row)] = row
    target[i, 1:len(row)] = 1 / (len(row) - 1)
  lengths = np.array([len(row) for row in rows])
  valid = np.arange(tokens.shape[1]) < lengths[:, None]
  return objective.Choices(tokens, target, valid)
