"""Plans of attacks: what an attack trains, how fast, and when it is measured.

| kind | trains | on |
|---|---|---|
| `relearn` | all weights | some of the forgotten facts |
| `lora` | low-rank adapters | the same |
| `benign` | all weights | unrelated text or questions |
| `few_shot` | nothing: solved questions stand before each prompt | the same |
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

KINDS = ('relearn', 'lora', 'benign', 'few_shot')
HALF = 0.5  # Share of the facts that may be taught; the other half is asked.
LORA_FACTOR = 10  # Learning rate of LoRA over that of all weights.
_MEASURED = (0, 10, 20, 50, 100)
_EXAMPLES = (0, 1, 5)  # Before each prompt.
_SHARE = '_share_'  # In a name.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """One attack.

  Attributes:
    kind: One of `KINDS`.
    learning_rate: Constant learning rate of Adam.
    steps: Steps at which the model is measured; the first is 0 and the last
      is the length of the attack. Of `few_shot`, numbers of solved questions.
    share: Share of all facts that is taught.
  """

  kind: str
  learning_rate: float
  steps: tuple[int, ...]
  share: float = HALF

  @property
  def name(self) -> str:
    """Kind, rate and a share below half, such as `lora_3e-4_share_0.05`."""
    if not self.trains:
      return self.kind
    digits, exponent = f'{self.learning_rate:.3e}'.split('e')
    share = '' if self.share == HALF else f'{_SHARE}{self.share:g}'
    return f'{self.kind}_{float(digits):g}e{int(exponent)}{share}'

  @property
  def trains(self) -> bool:
    """Whether the attack changes the model."""
    return self.kind != 'few_shot'

  @property
  def adapters(self) -> bool:
    """Whether adapters are trained, not all weights."""
    return self.kind == 'lora'


def kind_of(name: str) -> str:
  """The kind of the attack with a name."""
  return next(kind for kind in KINDS if name.startswith(kind))


def teaches_half(name: str) -> bool:
  """Whether the attack with a name trains on half of the facts."""
  return kind_of(name) in ('relearn', 'lora') and _SHARE not in name


def unit(name: str) -> str:
  """What the steps of the attack with a name are: `step` or `example`."""
  return 'example' if kind_of(name) == 'few_shot' else 'step'


def measured_steps(most: int) -> tuple[int, ...]:
  """Steps at which an attack of `most` steps is measured.

  Example:
    >>> measured_steps(10), measured_steps(12)
    ((0, 10), (0, 10, 12))
  """
  return (*(step for step in _MEASURED if step < most), most)


def make(
    kinds: Sequence[str], rates: Sequence[str], steps: int,
    shares: Sequence[str] = (str(HALF),)) -> list[Plan]:
  """Plans every kind of attack at every learning rate, on every share.

  Args:
    kinds: `--eval_attacks`.
    rates: `--eval_attack_rates`, learning rates as text. LoRA trains at
      `LORA_FACTOR` times each.
    steps: `--eval_attack_steps`.
    shares: `--eval_attack_shares`, shares as text, of `relearn` and `lora`.

  Raises:
    ValueError: A kind is unknown, a rate or share is out of its range, or one
      of them is repeated.

  Example:
    >>> [plan.name for plan in make(['relearn', 'lora'], ['3e-5'], 10)]
    ['relearn_3e-5', 'lora_3e-4']
  """
  for kind in kinds:
    if kind not in KINDS:
      raise ValueError(
          f'--eval_attacks={",".join(kinds)} has {kind!r}; wanted some of'
          f' {", ".join(KINDS)}. Correct the name.')
  numbers = _parse('rates', rates, 1, 'learning rates', '3e-5')
  taught = _parse('shares', shares, HALF, 'shares of the facts', '0.05')
  plans = []
  for kind in kinds:
    if kind == 'few_shot':
      plans.append(Plan(kind=kind, steps=_EXAMPLES, learning_rate=0.0))
      continue
    factor = LORA_FACTOR if kind == 'lora' else 1
    plans += [Plan(kind=kind, steps=measured_steps(steps), share=share,
                   learning_rate=rate * factor)
              for rate in numbers
              for share in (taught if kind != 'benign' else [HALF])]
  names = [plan.name for plan in plans]
  if len(set(names)) < len(names):
    raise ValueError(
        f'--eval_attacks={",".join(kinds)} with'
        f' --eval_attack_rates={",".join(rates)} and'
        f' --eval_attack_shares={",".join(shares)} repeats an attack; wanted'
        ' each kind, rate and share once. Drop the repetition.')
  return plans


def of_options(options: Any) -> list[Plan]:
  """The plans of `config.run.EvalConfig`."""
  return make(options.attacks, options.attack_rates, options.attack_steps,
              options.attack_shares)


def _parse(
    flag: str, given: Sequence[str], most: float, what: str, example: str
) -> list[float]:
  """The numbers of --eval_attack_FLAG."""
  out = []
  for text in given:
    try:
      number = float(text)
    except ValueError:
      number = math.nan
    if not 0 < number <= most:
      raise ValueError(
          f'--eval_attack_{flag}={",".join(given)} has {text!r}; wanted {what}'
          f' above 0 and at most {most}, such as {example}. Correct it.')
    out.append(number)
  return out
