"""Plans of attacks: what an attack trains, how fast, and when it is measured.

| kind | trains | on |
|---|---|---|
| `relearn` | all weights | some of the forgotten facts |
| `lora` | low-rank adapters | the same |
| `benign` | all weights | unrelated text or questions |
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

KINDS = ('relearn', 'lora', 'benign')
LORA_FACTOR = 10  # Learning rate of LoRA over that of all weights.
_MEASURED = (0, 10, 20, 50, 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """One attack.

  Attributes:
    kind: One of `KINDS`.
    learning_rate: Constant learning rate of Adam.
    steps: Steps at which the model is measured; the first is 0 and the last
      is the length of the attack.
  """

  kind: str
  learning_rate: float
  steps: tuple[int, ...]

  @property
  def name(self) -> str:
    """Kind and learning rate, such as `lora_3e-4`."""
    digits, exponent = f'{self.learning_rate:.3e}'.split('e')
    return f'{self.kind}_{float(digits):g}e{int(exponent)}'

  @property
  def adapters(self) -> bool:
    """Whether adapters are trained, not all weights."""
    return self.kind == 'lora'


def measured_steps(most: int) -> tuple[int, ...]:
  """Steps at which an attack of `most` steps is measured.

  Example:
    >>> measured_steps(10), measured_steps(12)
    ((0, 10), (0, 10, 12))
  """
  return (*(step for step in _MEASURED if step < most), most)


def make(
    kinds: Sequence[str], rates: Sequence[str], steps: int) -> list[Plan]:
  """Plans every kind of attack at every learning rate.

  Args:
    kinds: `--eval_attacks`.
    rates: `--eval_attack_rates`, learning rates as text. LoRA trains at
      `LORA_FACTOR` times each.
    steps: `--eval_attack_steps`.

  Raises:
    ValueError: A kind is unknown, a rate is not a positive number, or one of
      them is repeated.

  Example:
    >>> [plan.name for plan in make(['relearn', 'lora'], ['3e-5'], 10)]
    ['relearn_3e-5', 'lora_3e-4']
  """
  for kind in kinds:
    if kind not in KINDS:
      raise ValueError(
          f'--eval_attacks={",".join(kinds)} has {kind!r}; wanted some of'
          f' {", ".join(KINDS)}. Correct the name.')
  numbers = [_parse_rate(rate, rates) for rate in rates]
  plans = [
      Plan(kind=kind, steps=measured_steps(steps),
           learning_rate=rate * (LORA_FACTOR if kind == 'lora' else 1))
      for kind in kinds for rate in numbers]
  names = [plan.name for plan in plans]
  if len(set(names)) < len(names):
    raise ValueError(
        f'--eval_attacks={",".join(kinds)} with'
        f' --eval_attack_rates={",".join(rates)} repeats an attack; wanted each'
        ' kind and each rate once. Drop the repetition.')
  return plans


def _parse_rate(rate: str, rates: Sequence[str]) -> float:
  try:
    number = float(rate)
  except ValueError:
    number = math.nan
  if not 0 < number <= 1:
    raise ValueError(
        f'--eval_attack_rates={",".join(rates)} has {rate!r}; wanted learning'
        ' rates above 0 and at most 1, such as 3e-5. Correct it.')
  return number
