"""Configuration of a search for settings."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=('tune',))
_MAX_TRIALS = 1000
# Of what a method is; the others say what it is asked, and where.
_STAGES = ('attribution_', 'circuit_', 'fisher_', 'edit_', 'unlearn_')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig:
  """What is tried, how often, and what a setting may cost."""

  grid: tuple[str, ...] = _field(
      (), 'Flags of the method and the values to try, separated by commas, such'
      ' as unlearn_learning_rate=1e-5|1e-4,unlearn_forget_weight=1|5. Required'
      ' for --mode=tune.')
  trials: int = _field(
      6, 'Settings to try. Of a larger grid so many are drawn with --seed.',
      maximum=_MAX_TRIALS)
  rungs: tuple[str, ...] = _field(
      ('40', '0'), 'Steps of each trial, round by round in ascending order,'
      ' separated by commas; the better half of a round goes on to the next. 0:'
      ' as many as --unlearn_steps.')
  drop: float = _field(
      0.02, 'Most that a setting may lose of the accuracy on held-out facts, at'
      ' every precision. Of the settings within it, the one that forgets most'
      ' is chosen.')

  def __post_init__(self):
    fields.check_fields(self, 'tune')
    fields.check_minimum(self, 'tune', 1, 'trials')
    fields.check_minimum(self, 'tune', 0, 'drop')
    given = ','.join(self.rungs)
    fields.check(
        bool(self.rungs) and all(rung.isdecimal() for rung in self.rungs),
        f'--tune_rungs={given} has something else than numbers of steps; wanted'
        ' some, such as 40,0.')
    rising = [steps or fields.MAX_INTEGER for steps in self.steps]
    fields.check(
        rising == sorted(set(rising)), f'--tune_rungs={given} does not ascend;'
        ' wanted more steps in each round, and 0 only in the last.')
    for entry in self.grid:
      name, _, values = entry.partition('=')
      each = values.split('|')
      fields.check(
          name.startswith(_STAGES) and name != 'unlearn_steps' and all(each)
          and len(set(each)) == len(each) and 1 == sum(
              other.partition('=')[0] == name for other in self.grid),
          f'--tune_grid={entry} is no flag with values to try; wanted each flag'
          ' once, of one of the stages'
          f' {", ".join(stage[:-1] for stage in _STAGES)}, with different'
          ' values, such as unlearn_learning_rate=1e-5|1e-4. --tune_rungs sets'
          ' --unlearn_steps.')

  @property
  def values(self) -> dict[str, list[str]]:
    """The values to try of each flag."""
    return {name: values.split('|') for name, _, values in (
        entry.partition('=') for entry in self.grid)}

  @property
  def steps(self) -> tuple[int, ...]:
    """Steps of each round."""
    return tuple(map(int, self.rungs))
