"""The stored records' conclusions follow from their stored answers."""

import collections
import dataclasses
import json

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from experiments.tables import rejudge
from experiments.tables import stored
from mansu_jax.config import flags as flags_lib
from mansu_jax.statistics import gaps
from tests import families

_RUNS = sorted(path.parent for path in stored.RESULTS.rglob('record.json')
               if 'forgetting' in stored.Run(path.parent).record)
_NAMES = [run.relative_to(stored.RESULTS).as_posix() for run in _RUNS]
_USUAL = ('quickstart/s0', 'attacks/s0')  # With all that is measured.
_SEEDS = {  # Setting -> number of seeds.
    'quickstart': 3, 'former': 1, 'retain_only': 1, 'attacks': 1, **{
        f'controls/{name}': 1 for name in (
            'never_taught', 'last_layers', 'attention', 'mlps')}, **{
        f'test/{name}': 3 for name in (
            'author', 'currency', 'element', 'language', 'landmark_europe',
            'washington')}, **{
        f'test/{name}': 1 for name in (
            'state_capital', 'us_city', 'city', 'homeland', 'opposite',
            'region', 'emblem')}, **{
        f'lab/{name}': 1 for name in (
            'mansu', 'mansu_no_floor', 'graddiff', 'npo', 'simnpo', 'rmu',
            'gold')}, **{
        f'premise/{name}': 1 for name in (
            'mansu_four', 'circuit', 'lora', 'graddiff_1e-6', 'graddiff_1e-5',
            'graddiff_1e-4', 'graddiff_bfloat16_1e-5', 'graddiff_bfloat16_1e-4',
            'npo_1e-6', 'npo_1e-5', 'npo_1e-4', 'npo_bfloat16_1e-4')}}


class ResultsTest(parameterized.TestCase):

  def test_all_runs_are_stored(self):
    found = {}
    for run in _RUNS:
      name = run.parent.relative_to(stored.RESULTS).as_posix()
      found[name] = found.get(name, 0) + 1
    self.assertEqual(found, _SEEDS)

  @parameterized.parameters(
      'former', 'quickstart', *(
          name for name in _SEEDS if name.startswith(('premise/', 'controls/'))
          and not name.endswith('never_taught')))
  def test_flagfiles_repeat_the_runs(self, name):
    made = stored.Run(stored.RESULTS / name / 's0').record['config']
    config = flags_lib.from_flagfile(
        str(stored.RESULTS.parent / f'{name}.flags'))
    unread = () if config.unlearn.loss == 'prior' else (
        'guess_margin', 'quantized_guess_margin')
    for part in ('circuit', 'edit', 'fisher', 'unlearn'):
      for key, value in dataclasses.asdict(getattr(config, part)).items():
        if key in made[part] and key not in unread:
          self.assertEqual(
              list(value) if isinstance(value, tuple) else value,
              made[part][key], f'{part}_{key}')

  def test_every_form_of_a_family_was_measured(self):
    path = stored.RESULTS / 'family_parity.json'
    found = json.loads(path.read_text())['families']
    self.assertEqual(
        {name: entry['cases'] for name, entry in found.items()},
        collections.Counter(
            families.family_of(changes) for _, changes in families.CASES))

  def _assert_same(self, got, want, where):
    """Equal but for the rounding of floats."""
    if isinstance(want, dict):
      self.assertEqual(got.keys(), want.keys(), where)
      for key in want:
        self._assert_same(got[key], want[key], f'{where}/{key}')
    elif isinstance(want, list):
      self.assertLen(got, len(want), where)
      for i, (a, b) in enumerate(zip(got, want)):
        self._assert_same(a, b, f'{where}/{i}')
    elif isinstance(want, float):
      self.assertAlmostEqual(got, want, places=9, msg=where)
    else:
      self.assertEqual(got, want, where)

  @parameterized.named_parameters(
      (name.replace('/', '_'), name) for name in _USUAL)
  def test_figures_follow_from_the_answers(self, name):
    self._assert_figures_follow(stored.RESULTS / name)

  @parameterized.named_parameters(
      (name.replace('/', '_'), name) for name in _NAMES if name not in _USUAL)
  @pytest.mark.slow
  def test_figures_of_all_runs_follow_from_the_answers(self, name):
    self._assert_figures_follow(stored.RESULTS / name)

  def _assert_figures_follow(self, folder):
    run = stored.Run(folder)
    record, config = run.record, run.record['config']
    got = rejudge.conclusions(run)
    got.pop('not_finite', None)
    self._assert_same(got, {k: record[k] for k in got}, 'record')
    lines = run.split('retain_heldout')
    for precision, want in record['properties']['R']['by_precision'].items():
      drop = gaps.paired_drop(
          *(stored.right(lines, m, precision) for m in stored.MODELS),
          stored.facts(lines), resamples=config['eval']['bootstrap'],
          seed=config['seed']).record()
      self._assert_same(
          drop, {k: want[k] for k in drop}, f'R/{precision}')


if __name__ == '__main__':
  absltest.main()
