"""The stored records' figures follow from their stored answers."""

import collections
import gzip
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.report import write
from mansu_jax.stages.judge import answers as answers_lib
from mansu_jax.stages.judge import attack_verdict
from mansu_jax.stages.judge import hidden_share
from mansu_jax.stages.judge import verdict
from mansu_jax.statistics import gaps

_RESULTS = pathlib.Path(__file__).parents[1] / 'experiments' / 'results'
_OF_READING = {
    'choice': ('forget_paraphrase', 'forget_far'),
    'choice_unseen': ('forget_unseen',), 'reverse': ('forget_reverse',),
    'choice_same_subject': ('forget_same_subject',)}


def _record(folder):
  return json.loads((folder / 'record.json').read_text(encoding='utf-8'))


_RUNS = sorted(
    path.parent for path in _RESULTS.rglob('record.json')
    if 'forgetting' in _record(path.parent))


def _lines(path):
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def _reading(lines, options):
  """A reading from lines of answers or of generated answers."""
  found = {'correct': collections.defaultdict(list),
           'ignorance': collections.defaultdict(list)}
  for line in lines:
    for model, precisions in line['models'].items():
      for precision, got in precisions.items():
        for name, values in found.items():
          values[model, precision].append(got[name])
  return answers_lib.Reading(
      # Generated answers are to the questions of the first reading.
      questions=[questions_lib.of_line(
          line if 'choices' in line else line | {'reading': 'choice'})
                 for line in lines],
      options=options, **{
          name: {k: np.array(v) for k, v in values.items()}
          for name, values in found.items()})


class ResultsTest(parameterized.TestCase):

  def test_there_are_stored_runs(self):
    self.assertNotEmpty(_RUNS)

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
      ('_'.join(run.relative_to(_RESULTS).parts), run) for run in _RUNS)
  def test_figures_follow_from_the_answers(self, run):
    record = _record(run)
    config = record['config']
    options = dict(resamples=config['eval']['bootstrap'], seed=config['seed'])
    schemes = config['quant_schemes']
    lines = _lines(run / 'answers.jsonl.gz')
    readings = {}
    for name, splits in _OF_READING.items():
      chosen = [line for split in splits for line in lines
                if line['split'] == split]
      if chosen:
        readings[name] = _reading(chosen, options)
    generated = run / 'generations.jsonl.gz'
    for line in _lines(generated) if generated.is_file() else ():
      readings.setdefault(line['reading'], []).append(line)
    readings = {k: v if isinstance(v, answers_lib.Reading)
                else _reading(v, options) for k, v in readings.items()}
    readings = {k: readings[k] for k in answers_lib.READINGS if k in readings}
    precisions = ('fp', *schemes)
    got = write.as_json({
        'forgetting': verdict.readings_entry(readings, precisions),
        'F': verdict.property_f(readings, precisions),
        'Q': verdict.property_q(readings, schemes)})
    self._assert_same(got['forgetting'], record['forgetting'], 'forgetting')
    for letter in 'FQ':
      self._assert_same(got[letter], record['properties'][letter], letter)
    structure = record.get('structure', {})
    if 'readings' in structure:
      self._assert_same(
          write.as_json(hidden_share.of_lines(
              _lines(run / 'hidden_share.jsonl.gz'), **options)),
          structure['hidden_share'], 'hidden share')
    attacked = run / 'attacks.jsonl.gz'
    if attacked.is_file():
      sides = collections.defaultdict(list)
      for line in _lines(attacked):
        sides[line['side']].append(line)
      got = write.as_json(attack_verdict.entries({
          side: attack_verdict.Asked.of_lines(
              found, record['attack_setup'][side]['losses'])
          for side, found in sides.items()}, **options))
      self._assert_same(got, {k: record[k] for k in got}, 'attacks')
    heldout = [line for line in lines if line['split'] == 'retain_heldout']
    for precision, want in record['properties']['R']['by_precision'].items():
      pair = [[line['models'][m][precision]['correct'] for line in heldout]
              for m in ('base', 'unlearned')]
      drop = gaps.paired_drop(
          *pair, [line['fact'] for line in heldout], **options).record()
      self._assert_same(
          drop, {k: want[k] for k in drop}, f'R/{precision}')


if __name__ == '__main__':
  absltest.main()
