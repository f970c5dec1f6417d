"""The learning rate of each step, and when training has reached its plateau.

With patience, the rate stays at its peak until the probe of forgetting has
fallen and no longer falls. It then decays to 0 over `cooldown` steps, after
which training ends. So an easy forget set takes few steps and a hard one many.
Without, it decays from the warm-up to the last step. Either way a run ends with
small steps, in which the retain terms repair what large ones broke.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
  """A warmed-up rate that decays as half a cosine.

  Attributes:
    peak: the largest rate.
    warmup: steps with a rising rate.
    steps: most steps.
    patience: steps without progress after which the rate decays; 0: it decays
      right after the warm-up.
    cooldown: steps of the decay.
    least: smallest fall of the probe that counts as progress.

  Example:
    >>> rates = Rates(peak=1.0, warmup=2, steps=10, patience=2, cooldown=4)
    >>> [round(rates(step, None), 2) for step in (0, 1, 2, 5, 6, 8, 9)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.15]
    >>> rates.decays_from([(0, 0.9), (3, 0.3), (5, 0.3)])
    5
  """

  peak: float
  warmup: int
  steps: int
  patience: int
  cooldown: int
  least: float = 0.02

  def decays_from(self, probes: Sequence[tuple[int, float]]) -> int | None:
    """The number of steps done when the decay begins; None: not yet.

    A probe that has not begun to fall is no plateau.

    Args:
      probes: `(steps done, value)` of each look so far, the first of them
        before the first step.
    """
    if not self.patience or not probes:
      return None
    (_, best), since = probes[0], None
    for done, value in probes[1:]:
      if done >= self._latest:
        break
      if value < best - self.least:
        best, since = value, done
      elif since is not None and done - since >= self.patience:
        return done
    return None

  @property
  def _latest(self) -> int:
    """The number of steps done when the decay begins at the latest."""
    last = self.steps - self.cooldown if self.patience else 0
    return max(self.warmup, last)

  def end(self, begin: int | None) -> int:
    """The number of steps of the run, if the decay begins at `begin`."""
    if begin is None:
      return self.steps
    return min(self.steps, begin + self.cooldown)

  def __call__(self, step: int, begin: int | None) -> float:
    """The rate of a step, counted from 0.

    Args:
      step: steps done before it.
      begin: from `decays_from`.
    """
    if step < self.warmup:
      return self.peak * step / self.warmup
    end = self.end(begin)
    if begin is None:
      begin = self._latest
    if step < begin:
      return self.peak
    share = (step - begin) / max(end - begin, 1)
    return self.peak * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
