"""README.md's example runs, and its prose has the figures of the stored run."""

import json
import pathlib
import re

from absl.testing import absltest
import numpy as np

from experiments.tables import cells
from experiments.tables import pooled
from experiments.tables import premise
from experiments.tables import quickstart
from experiments.tables import stored
from mansu_jax import quant

_ROOT = pathlib.Path(__file__).parents[1]
_README = _ROOT / 'README.md'
_RESULTS = _ROOT / 'experiments/results'
_RUN = _RESULTS / 'quickstart/s0/record.json'


class ReadmeTest(absltest.TestCase):

  def test_the_transforms_on_another_model(self):
    (code,) = re.findall(
        r'```python\n(.*?)```', _README.read_text(encoding='utf-8'), re.DOTALL)
    names = {}
    exec(code, names)  # pylint: disable=exec-used
    start, end = names['theta_0'], names['params']
    check = quant.check_edit(start, end, 'nf4', names['layout'])
    self.assertTrue(check.survives, check)
    moved = np.asarray(end['w'] != start['w'])
    self.assertGreater(moved.sum(), 0)
    self.assertFalse(moved[:, 16:].any())

  def test_the_text_is_of_the_stored_run(self):
    record = json.loads(_RUN.read_text(encoding='utf-8'))
    text = ' '.join(_README.read_text(encoding='utf-8').split())
    hidden = record['structure']['hidden_share']
    low, high = hidden['fp']['interval']
    taught, unknown = (
        {p: [f'{found[i]["value"]:.2f}' for i in (0, -1)]
         for p, found in record[key]['lora_3e-4'].items()}
        for key in ('attacks', 'attacks_unknown'))
    attacked = json.loads(
        (_RESULTS / 'attacks/s0/record.json').read_text(encoding='utf-8'))
    best = attacked['attack_verdict']
    trained = record['accuracy']['forget']['unlearned']['fp']['value']
    graddiff, in_bfloat16, mansu = (
        self._premise(name) for name in (
            'graddiff_1e-5', 'graddiff_bfloat16_1e-4', 'mansu_four'))
    back = lambda scheme: ' to '.join(
        f'{r["properties"]["Q"]["by_scheme"][scheme]["value"]:.2f}'
        for r in sorted((graddiff, in_bfloat16), key=lambda r: r[
            'properties']['Q']['by_scheme'][scheme]['value']))
    carried = lambda r, scheme: f'{r["survival"][scheme]["carried"]:.2f}'
    arms = premise.forgotten(premise.find(_RESULTS))
    correlation = lambda name: premise.correlation(arms, name)
    lost = {p: found['value'] for p, found in record['properties']['R'][
        'by_precision'].items()}
    back_of_nf4 = record['properties']['Q']['by_scheme']['nf4']['value']
    seeds = pooled.Runs({'capitals': stored.find(_RESULTS, 'quickstart')})
    over_seeds = pooled.brought_back(seeds.asked(*stored.CHOICES), 'nf4')
    lost_over_seeds = [pooled.dropped(seeds.split('retain_heldout'), p)['value']
                       for p in ('fp', 'nf4')]
    left = lambda r: quickstart.worst_known(r, 'fp')
    under_nf4 = premise.correlation(arms, 'carried', ('nf4',))
    brought = mansu['properties']['Q']['by_scheme']
    of_nf4 = brought['nf4']
    for name in ('fp4', 'int4_g128', 'q4_k'):
      self.assertLessEqual(brought[name]['value'], 0.0)
    self.assertEqual(
        carried(graddiff, 'fp4'), carried(self._premise('circuit'), 'q4_k'))
    self.assertGreater(left(mansu), max(map(left, (
        graddiff, in_bfloat16, self._premise('circuit')))))
    self.assertStartsWith(best['attack'], 'lora')
    self.assertEqual(best['precision'], 'nf4')
    self.assertLen(arms, 9)
    self.assertEqual(min(
        float(carried(mansu, s)) for s in mansu['survival']), 1.0)
    for shown in (
        f'Q4_K brings back {back("q4_k")} of the knowledge in choice questions'
        f' and FP4 {back("fp4")} (NF4 none)',
        f'(rank correlation {correlation("carried")} over nine methods that'
        f' forgot and four quantizers, but {under_nf4} under NF4 alone), not the'
        f' edit\'s size ({correlation("size of the edit")}).',
        f'FP4 carries {carried(graddiff, "fp4")} of GradDiff\'s edit, Q4_K of'
        ' the third row\'s.',
        'FP4, INT4 and Q4_K were not seen to bring anything back; NF4 brought'
        f' {cells.estimate(of_nf4)}.',
        f'Q4_K carries {carried(graddiff, "q4_k")} of GradDiff\'s edit, FP4'
        f' {carried(in_bfloat16, "fp4")} of the one in bfloat16',
        f'answers {hidden["fp"]["block"]:.2f} of what the base does'
        f' (NF4 {hidden["nf4"]["block"]:.2f}); alone, less than'
        f' guessing ({hidden["fp"]["own"]:.2f}). So {hidden["fp"]["value"]:.2f}'
        f' [{low:.2f}, {high:.2f}] of',
        f'NF4 brings {back_of_nf4:.2f} of the knowledge back'
        f' ({over_seeds["value"]:.2f} over three seeds).',
        f'Held-out facts lose {lost["fp"]:.3f} (NF4 {lost["nf4"]:.3f}; over'
        f' seeds {lost_over_seeds[0]:.3f} and {lost_over_seeds[1]:.3f}).',
        f'from {" to ".join(taught["fp"])} (NF4 {" to ".join(taught["nf4"])})'
        f' and facts never known from {" to ".join(unknown["fp"])}. Less'
        ' guessing, the best attack of 100 steps on the former recipe\'s model'
        ' gains'
        f' {cells.estimate(best["gain"])} of them, and'
        f' {best["gain_unknown"]["value"]:.2f} on facts never known (LoRA,'
        ' NF4).',
        f'({trained:.2f} right)'):
      self.assertIn(shown, text)

  def test_capitals_are_answered_little_better_than_guessed(self):
    for run in stored.find(_RESULTS, 'quickstart'):
      known = run.record['forgetting']
      for p in ('fp', 'nf4'):
        for reading in ('choice', 'choice_unseen'):
          right = known[reading]['unlearned'][p]['value']
          guessed = known[reading]['ignorance']['unlearned'][p]
          self.assertLess(right - guessed, 0.08, (run.seed, reading, p))
        self.assertLess(known['generation']['unlearned'][p]['value'], 0.05)
    few_shot = max(
        run.record['forgetting']['generation_few_shot']['unlearned'][p]['value']
        for run in stored.find(_RESULTS, 'quickstart') for p in ('fp', 'nf4'))
    self.assertIn(f'after solved examples it writes {few_shot:.2f} of them.',
                  ' '.join(_README.read_text(encoding='utf-8').split()))

  def test_the_test_sets_are_of_the_stored_runs(self):
    found = pooled.find(_RESULTS)
    runs = pooled.Runs(found)
    self.assertEqual([*found], ['regions', 'customs and symbols'])
    self.assertEqual(runs.seeds, [0])
    known = lambda reading, p: 0.0 + round(pooled.known(  # Not -0.0.
        runs.asked(*stored.READINGS[reading]), p)['value'], 2)
    facts = lambda reading: len({
        line['fact'] for own in runs.asked(*stored.READINGS[reading])
        for line in own})
    back = pooled.brought_back(runs.asked(*stored.CHOICES), 'nf4')['upper']
    hidden = [run.record['structure']['hidden_share']['fp']['value']
              for run in runs]
    passed = {name: [run.record['properties'][name]['passed'] is True
                     for run in runs] for name in 'FR'}
    self.assertEqual(passed, {'F': [True, False], 'R': [False, False]})
    lost = lambda p: pooled.dropped(runs.split('retain_heldout'), p)['value']
    self.assertIn(
        f' of {facts("choice_unseen")} facts chose no setting: the countries of'
        ' regions, and of customs and symbols. Each ran once. In unseen choices'
        f' {known("choice_unseen", "fp"):.2f} of the knowledge is left (NF4'
        f' {known("choice_unseen", "nf4"):.2f}),'
        f' {known("generation", "fp"):.2f} in generated answers'
        f' ({facts("generation")} facts) and'
        f' {known("reverse", "fp"):.2f} in reverse questions'
        f' ({facts("reverse")}). Held-out facts lose {lost("fp"):.3f} (NF4'
        f' {lost("nf4"):.3f}), mostly those about countries. NF4 brings nothing'
        f' back (at most {back:.2f}). In full precision {hidden[0]:.2f} and'
        f' {hidden[1]:.2f} of each set is hidden. F passes on regions, R on'
        ' none.',
        ' '.join(_README.read_text(encoding='utf-8').split()))

  def _premise(self, arm):
    path = _RESULTS / 'premise' / arm / 's0' / 'record.json'
    return json.loads(path.read_text(encoding='utf-8'))


if __name__ == '__main__':
  absltest.main()
