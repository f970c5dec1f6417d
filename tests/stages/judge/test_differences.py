"""Paired differences of two methods: pairing by seed, p-values, refusals."""

import json
import pathlib
import tempfile

from absl.testing import absltest

from mansu_jax.stages.judge import differences


class DifferencesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _run(self, name, seed, right, scheme='nf4'):
    """A run whose answers are right[split][fact] = (fp, quantized)."""
    folder = self.root / name
    folder.mkdir()
    (folder / 'record.json').write_text(json.dumps(
        {'config': {'seed': seed, 'quant_schemes': [scheme]}}))
    lines = [json.dumps({
        'split': split, 'id': f'{fact}/{split}', 'fact': fact,
        'models': {'unlearned': {
            p: {'correct': bool(v)} for p, v in zip(('fp', scheme), pair)}}})
             for split, facts in right.items() for fact, pair in facts.items()]
    (folder / 'answers.jsonl').write_text('\n'.join(lines))
    return differences.read(folder)

  def test_questions_are_paired_by_seed(self):
    facts = [f'fact/{i}' for i in range(40)]
    answers = lambda fp, quantized: {
        split: {f: (fp(i), quantized(i)) for i, f in enumerate(facts)}
        for split in ('forget_far', 'retain_heldout')}
    ours = [self._run(f'a{seed}', seed, answers(
        lambda i, seed=seed: i % 2 == seed, lambda i: False))
            for seed in (0, 1)]
    theirs = [self._run(f'b{seed}', seed, answers(
        lambda i, seed=seed: i % 2 == seed, lambda i: i < 10))
              for seed in (1, 0)]
    got = differences.between(ours, theirs)
    self.assertEqual(list(got), [
        'forgotten, fp', 'forgotten, nf4', 'held out, fp', 'held out, nf4',
        'gap, nf4'])
    for name, value in {
        'forgotten, fp': 0, 'forgotten, nf4': -0.25, 'held out, fp': 0,
        'held out, nf4': -0.25, 'gap, nf4': -0.25}.items():
      found = got[name].estimate
      self.assertAlmostEqual(found.value, value)
      self.assertEqual((found.n, found.facts), (80, 40))
      low, high = found.interval
      self.assertBetween(value, low, high)
      self.assertEqual(high < 0, value < 0)  # 10 of 40 facts.
      # 2 of the 2^10 signs of these are as large.
      self.assertAlmostEqual(
          got[name].p_value, 2 / 2**10 if value else 1, delta=2e-3)
    both = differences.adjusted({'a': got, 'b': got})
    self.assertAlmostEqual(both['a']['gap, nf4'], 2 * got['gap, nf4'].p_value)

  def test_other_seeds_or_quantizers_are_refused(self):
    answers = {split: {'f': (1, 1)} for split in ('forget_far', 'retain')}
    one = self._run('one', 0, answers)
    for other in (self._run('two', 1, answers),
                  self._run('three', 0, answers, scheme='fp4')):
      with self.assertRaisesRegex(ValueError, 'one run for each of the same'):
        differences.between([one], [other])
    with self.assertRaisesRegex(ValueError, 'one run for each of the same'):
      differences.between([one, one], [one, one])

  def test_other_questions_are_refused(self):
    answers = {split: {'f': (1, 1)} for split in ('forget_far', 'retain')}
    other = self._run('other', 0, answers | {'retain': {'g': (1, 1)}})
    with self.assertRaisesRegex(
        ValueError, 'Seed 0 has 2 questions in one method only'):
      differences.between([self._run('one', 0, answers)], [other])


if __name__ == '__main__':
  absltest.main()
