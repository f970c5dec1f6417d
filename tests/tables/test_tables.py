"""Each table has the figures of stored runs by hand."""

import dataclasses
import gzip
import json
import re

from absl.testing import absltest
import numpy as np

from experiments.tables import ablations
from experiments.tables import cells
from experiments.tables import controls
from experiments.tables import guides
from experiments.tables import pages
from experiments.tables import pooled
from experiments.tables import premise
from experiments.tables import quickstart
from experiments.tables import stored
from mansu_jax.config import flags as flags_lib
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import gaps
from tests.tables import runs


def _rows(text):
  """Cells of the tables in a text, by the first cell of the row."""
  return {cells_[0].strip(): [cell.strip() for cell in cells_[1:]]
          for row in re.findall(r'^\|(.*)\|$', text, re.MULTILINE)
          for cells_ in [row.split('|')]}


class QuickstartTest(runs.TestCase):

  def test_nothing_is_stored(self):
    for table in pages.TABLES.values():
      self.assertEqual(table(self.results), cells.NOTHING)

  def test_one_seed_has_the_figures_of_the_library(self):
    run = self.save('quickstart')
    rows = _rows(quickstart.quickstart(self.results))
    lines = run.asked('choice_unseen')
    for p, cell in zip(runs.PRECISIONS, ('fp', 'NF4')):
      asked = stored.columns(lines, p)
      want = forgetting.known_share(
          *asked.right.T, asked.ignorance, asked.facts, asked.forms,
          resamples=2000)
      self.assertEqual(rows[f'known, unseen choices, {cell}'],
                       [cells.estimate(want.record())])
    lines = run.split('retain_heldout')
    drop = gaps.paired_drop(
        *(stored.right(lines, m, 'nf4') for m in stored.MODELS),
        stored.facts(lines), resamples=2000)
    self.assertEqual(rows['accuracy drop on held-out facts, NF4'],
                     [cells.estimate(drop.record(), 3, True)])
    self.assertEqual(rows['hidden share, fp'], ['0.38 [0.29, 0.47]'])
    self.assertIn('Code: 0123456.', quickstart.quickstart(self.results))

  def test_several_seeds(self):
    saved = [self.save('quickstart', seed) for seed in (0, 1, 2)]
    rows = _rows(quickstart.quickstart(self.results))
    over, deviation, *single = rows['accuracy drop on held-out facts, fp']
    drops = [np.mean([
        line['models']['base']['fp']['correct']
        - line['models']['unlearned']['fp']['correct']
        for line in run.split('retain_heldout')]) for run in saved]
    self.assertEqual(single, [cells.signed(x) for x in drops])
    self.assertEqual(deviation, f'{np.std(drops, ddof=1):.3f}')
    self.assertStartsWith(over, f'{np.mean(drops):+.3f} [')
    self.assertEqual(rows['hidden share, fp'],
                     ['0.38', '0.00', '0.38', '0.38', '0.38'])
    share = np.mean([line['models']['unlearned']['fp']['correct']
                     for run in saved for line in run.asked('reverse')])
    self.assertStartsWith(
        rows['which country has this capital? (30)'][2], f'{share:.2f} [')

  def test_first_table_has_the_stored_methods(self):
    self.save('premise/mansu_four')
    rows = _rows(quickstart.first(self.results))
    self.assertEqual(list(rows), ['', '---', 'base', 'MANSU, former recipe'])
    self.assertEqual(rows['base'][3:], [
        cells.NONE, *rows['base'][4:6], *[cells.NONE] * 4])
    self.save('premise/circuit')
    self.assertLen(_rows(quickstart.first(self.results)), 5)
    self.assertEqual(rows['MANSU, former recipe'][6:8], [
        '-0.01 [-0.05, +0.02]', cells.NONE])


class PremiseTest(runs.TestCase):

  def _save(self, arm, size, brought, known=0.3):
    def change(record):
      record['movement']['total']['relative'] = size
      record['survival']['nf4'] |= {
          'changed_codes': size, 'cosine': 1 - size, 'carried': 1 - size}
      record['properties']['Q']['by_scheme']['nf4']['value'] = brought
      for reading in stored.CHOICES:
        record['forgetting'][reading]['known']['fp']['value'] = known

    self.save(f'premise/{arm}', change=change)

  def test_rows_and_rank_correlations(self):
    for arm, size, brought in (
        ('audit', 0.01, -0.02), ('circuit', 0.02, 0.1), ('lora', 0.03, 0.0),
        ('npo_1e-4', 0.04, 0.3)):
      self._save(arm, size, brought)
    self._save('npo_1e-6', 0.0001, 0.0, known=0.9)
    text = premise.premise(self.results)
    run = stored.find(self.results, 'premise/circuit')[0].record
    rows = _rows(text)
    self.assertIn('NPO, LoRA of rank 8', rows)
    self.assertNotIn('GradDiff, 1e-5', rows)
    self.assertIn('| NPO, 1e-4 | 4 % | 4 % |', text)
    trained = run['accuracy']['forget']['unlearned']['fp']['value']
    self.assertIn('| circuit alone, without floor, projection and loop |'
                  f' {trained:.2f} | 0.30 | 0.30 |', text)
    found = re.findall(r'^\| (.*?) \| (.*?) \| (.*?) \(n = (\d)\)',
                       premise.correlations(premise.find(self.results)), re.M)
    self.assertEqual(found, [
        ('all arms', 'size of the edit', '+0.67', '5'),
        ('all arms', 'codes changed', '+0.67', '5'),
        ('all arms', 'cosine', '-0.67', '5'),
        ('all arms', 'carried', '-0.67', '5'),
        ('arms that forgot', 'size of the edit', '+0.80', '4'),
        ('arms that forgot', 'codes changed', '+0.80', '4'),
        ('arms that forgot', 'cosine', '-0.80', '4'),
        ('arms that forgot', 'carried', '-0.80', '4')])

  def test_too_few_arms_have_no_correlation(self):
    self._save('audit', 0.01, 0.2)
    self.assertEqual(premise.correlations(premise.find(self.results)), '')
    self.assertIn('| MANSU for NF4', premise.premise(self.results))


class ControlsTest(runs.TestCase):

  def test_gates_that_do_not_hold_are_named(self):
    self.save('controls/mlps')
    rows = _rows(controls.controls(self.results))
    self.assertEqual(rows['MLPs of layers 13 to 22'][1], '0.38 [0.29, 0.47]')
    self.assertEqual(rows['MLPs of layers 13 to 22'][-3:], [
        'no: retained', 'failed', 'failed'])
    self.assertNotIn('quickstart', rows)

  def test_retain_terms_beside_the_quickstart(self):
    run = self.save('former')
    self.assertEqual(controls.retain_only(self.results), cells.NOTHING)
    self.save('retain_only', relation='capital')
    rows = _rows(controls.retain_only(self.results))
    self.assertEqual(
        rows['held-out facts, fp'][:2], ['+0.052 [+0.040, +0.064]'] * 2)
    self.assertEqual(rows['held-out facts, fp'][2].split()[0], '+0.000')
    lines = runs.answers('capital', 0)
    for line in lines:
      line['models']['unlearned']['fp']['correct'] = line['split'] == 'retain'
    control = stored.find(self.results, 'retain_only')[0]
    with gzip.open(control.folder / 'answers.jsonl.gz', 'wt') as file:
      file.write('\n'.join(map(json.dumps, lines)))
    rows = _rows(controls.retain_only(self.results))
    right = np.mean([line['models']['unlearned']['fp']['correct']
                     for line in run.split('retain_heldout')])
    self.assertStartsWith(rows['held-out facts, fp'][2], f'{-right:+.3f} [')
    self.assertStartsWith(rows['retained facts, fp'][2], '+')

  def test_other_questions_are_refused(self):
    self.save('former')
    control = self.save('retain_only')
    lines = [line for line in control.answers
             if line['id'] != 'retain/3/near_0']
    with gzip.open(control.folder / 'answers.jsonl.gz', 'wt') as file:
      file.write('\n'.join(map(json.dumps, lines)))
    with self.assertRaisesRegex(ValueError, 'answer different questions of'):
      controls.retain_only(self.results)

  def test_attacks(self):
    self.save('attacks')
    text = controls.attacks(self.results)
    self.assertIn(
        '| former quickstart, long | lora_3e-4 | NF4 |'
        ' 0.34 [0.26, 0.42], guessing 0.25 | 0.70 [0.62, 0.78], guessing 0.25 |'
        ' 10 | 0.25 [0.16, 0.33], guessing 0.25 |'
        ' 0.29 [0.20, 0.37], guessing 0.25 | 10 |',
        text)
    self.assertIn(
        '| former quickstart, long | lora_3e-4, NF4, step 10 | +0.362', text)
    self.assertIn('| +0.137 |', text)


class PooledTest(runs.TestCase):

  def test_facts_of_all_relations_and_seeds(self):
    for relation in ('region', 'emblem'):
      for seed in (0, 1):
        self.save(f'test/{relation}', seed, relation)
    self.save('test/region', 2, 'region')
    text = pooled.test(self.results)
    self.assertIn('Pooled over regions, customs and symbols; seeds 0, 1.', text)
    rows = _rows(text)
    self.assertEqual(rows['unseen choices'][:2], ['60', '240'])
    self.assertEqual(rows['accuracy drop on held-out facts, fp'][:2],
                     ['30', '120'])  # Facts that both relations keep.
    self.assertEqual(
        _rows(pooled.by_relation(pooled.find(self.results)))['regions'][0], '3')
    values, shares = [], []
    for seed in (0, 1):
      lines = runs.answers('region', seed) + runs.answers('emblem', seed)
      lines = [line for line in lines if line['split'] == 'forget_unseen']
      asked = stored.columns(lines, 'fp')
      values.append(forgetting.known_share(
          *asked.right.T, asked.ignorance, asked.facts, asked.forms).value)
      shares.append(asked.right[:, 1].mean())
    guessed = np.mean([
        stored.ignorance(line, 'unlearned', 'fp') for seed in (0, 1)
        for relation in ('region', 'emblem')
        for line in runs.answers(relation, seed)
        if line['split'] == 'forget_unseen'])
    self.assertEqual(rows['unseen choices'][6], f'{guessed:.2f}')
    known, deviation = rows['unseen choices'][8].split(', deviation ')
    self.assertStartsWith(known, f'{np.mean(values):.2f} [')
    self.assertEqual(deviation, f'{np.std(values, ddof=1):.2f}')
    self.assertEqual(rows['unseen choices'][4], f'{np.mean(shares):.2f}')

  def test_readings_that_tell_too_little_are_named(self):
    for seed in (0, 1):
      def change(record, seed=seed):
        record['properties']['F']['cannot_pass'] = [['reverse', 'nf4'], *(
            [['choice', 'fp']] if seed else [])]
        for reading, entry in record['forgetting'].items():
          entry['avoided'] = {'nf4': {}} if reading == 'choice_unseen' else {}
      self.save('test/region', seed, 'region', change)
    row = _rows(pooled.by_reading(pooled.find(self.results)))['regions']
    self.assertEqual(row[-2:], [
        'unseen choices NF4 (2)', 'reversed NF4 (2), usual choices fp (1)'])

  def test_a_set_without_guesses_is_not_pooled(self):
    for folder in ('author', 'washington'):
      self.save(f'test/{folder}', 0, folder)
    text = pooled.test(self.results, pooled.FORMER)
    self.assertStartsWith(text, 'Pooled over authors; seeds 0.')
    self.assertIn('George Washington', text)

  def test_structure_is_a_mean_with_its_range(self):
    for seed, value in ((0, 0.3), (1, 0.5)):
      def change(record, value=value):
        record['structure']['hidden_share']['fp']['value'] = value
      self.save('test/region', seed, 'region', change)
    row = _rows(pooled.structure({'regions': stored.find(
        self.results, 'test/region')}))['regions']
    self.assertEqual(row[:2], ['2', '0.40 (0.30 to 0.50)'])
    self.assertEqual(row[3], '0 of 2')  # A gate of these is not measured.
    self.assertEqual(row[4], '+0.32 (+0.32 to +0.32)')
    text = pooled.verdicts(pooled.find(self.results))
    self.assertEqual(_rows(text)['regions'][3], 'failed, failed')


class AblationsTest(runs.TestCase):

  def _arm(self, folder, relation, seed, right):
    """Stores a run whose answers to forget questions are `right`."""
    run = self.save(f'{folder}/{relation}', seed, relation)
    lines = run.answers
    for line in lines:
      if line['split'].startswith('forget'):
        line['models']['unlearned']['nf4']['correct'] = right
    with gzip.open(run.folder / 'answers.jsonl.gz', 'wt') as out:
      out.write('\n'.join(map(json.dumps, lines)))

  def test_arms_have_the_relations_and_seeds_of_all(self):
    for relation in ('region', 'emblem'):
      for seed in (0, 1):
        self._arm('test', relation, seed, False)
    self._arm('ablations/floor_none', 'region', 0, True)
    self._arm('ablations/floor_none', 'region', 2, True)
    text = ablations.ablations(self.results)
    self.assertIn('Pooled over regions; seeds 0.', text)
    rows = re.findall(r'^\| no floor \|(.*)\|$', text, re.MULTILINE)
    measured, differences = [
        [cell.strip() for cell in row.split('|')] for row in rows]
    self.assertEqual(measured[1], '1.05')  # The base knows less than all.
    self.assertEqual(measured[-1], '0.65 %')
    self.assertStartsWith(differences[0], '+0.00 ')
    self.assertStartsWith(differences[1], '+1.05 [')
    self.assertStartsWith(differences[2], '+0.000 [-0.1')

  def test_an_arm_asked_other_questions_is_refused(self):
    self._arm('test', 'region', 0, False)
    other = runs.answers('region', 0, facts=20)
    self._arm('ablations/loop_off', 'region', 0, False)
    path = self.results / 'ablations/loop_off/region/s0/answers.jsonl.gz'
    with gzip.open(path, 'wt') as out:
      out.write('\n'.join(map(json.dumps, other)))
    with self.assertRaisesRegex(ValueError, 'wanted the same'):
      ablations.ablations(self.results)

  def test_every_arm_changes_only_its_part(self):
    folder = stored.RESULTS.parent
    arms = {path.stem: path for path in folder.glob('ablations/*.flags')}
    common = arms.pop('common')
    self.assertEqual(arms.keys(), ablations.ARMS.keys())
    parts = lambda path: dataclasses.asdict(flags_lib.from_flagfile(
        str(folder / 'test/region.flags'), f'--flagfile={path}'))
    default = parts(common)
    for name, path in arms.items():
      changed = parts(path)
      self.assertEqual(
          {key for key in default if default[key] != changed[key]},
          {'edit', 'unlearn'} if name == 'floor_none_loop_off' else
          {'unlearn'} if name == 'loop_off' else
          {'circuit'} if name == 'random_circuit' else {'edit'})


class GuidesTest(runs.TestCase):

  def _write(self, name, content):
    path = self.results / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

  def test_stability(self):
    one = lambda value: {'value': value, 'interval': [value - 0.1, value + 0.1]}
    drawn = lambda mean: {'kept': {'mean': mean, 'interval': [0.1, 0.9]}}
    phrasing = {'kept': one(0.4), 'faithfulness': one(0.8),
                'random_faithfulness': one(0.2)}
    stability = {
        'resamples': drawn(0.7), 'random': drawn(0.2), 'halves': drawn(0.5) | {
            'own_faithfulness': one(0.9), 'faithfulness': one(0.85)},
        'phrasings': {'near': phrasing, 'far': phrasing}}
    for name, found in (
        ('nodes', {'level': 'neuron_and_head', 'share_of_weights': 0.01,
                   'nodes': {'neurons': 1522, 'heads': 6}}),
        ('edges', {'level': 'edge', 'edges': 194, 'candidates': 123211})):
      self._write(f'stability/{name}/record.json', {
          'circuit': found | {'stability': stability, 'random': {'mean': 0.3}},
          'config': {'circuit': {'first_layer': 13, 'last_layer': 23}},
          'environment': {'commit': '0123456789'}})
    text = guides.stability(self.results)
    self.assertIn('|  | 1,522 neurons and 6 heads, 1 % of the weights, layers'
                  ' 13 to 23 | 194 of 123,211 edges |', text)
    rows = _rows(text)
    for row, want in (
        ('share selected again: resampled facts', '0.70 [0.10, 0.90]'),
        ('circuit of the other half', '0.85 [0.75, 0.95]'),
        ('random circuits there', '0.30'),
        ('on far phrasings', '0.80 [0.70, 0.90]')):
      self.assertEqual(rows[row], [want, want])
    self.assertIn('Code: 0123456.', text)

  def test_plans(self):
    stages = {'attribution': {'bytes': 2**31, 'seconds': 1.0},
              'unlearn': {'bytes': 2**30, 'seconds': 30.0}}
    text = guides.planned({
        'environment': {'commit': '0123456789', 'libtpu': '0.0.52'}, 'plans': [{
            'model': 'llama31_8b', 'topology': 'v5e:2x4', 'schemes': ['nf4'],
            'memory': 2**34, 'fits': True, 'seconds_of_a_step': 0.3,
            'stages': stages}]})
    self.assertEqual(_rows(text)['llama31_8b'], [
        'v5e:2x4', 'nf4', '16.00', '2.0', '1.0', 'yes', '0.30', '31'])
    self.assertIn('Code: 0123456; libtpu 0.0.52.', text)

  def test_deployment(self):
    answered = {split: {'n': 10, 'simulated': 0.4, 'real': 0.5} for split in (
        'forget_far', 'forget_unseen', 'forget_reverse', 'retain_heldout')}
    difference = {'value': -0.004, 'interval': [-0.011, 0.002]}
    scheme = {'accuracy': answered, 'n': 1168, 'differing': [{}] * 24,
              'weights': {'differing': 0, 'of': 10}, 'difference': difference,
              'rounded_activations': {'difference': difference}}
    self._write('deployment.json', {
        'versions': {'jax': '0.10.2'}, 'environment': {'commit': '0123456789'},
        'schemes': {'nf4': scheme | {'weights': None,
                                     'rounded_activations': None},
                    'q8_0': scheme}})
    text = guides.deployment(self.results)
    shared = ['0.40 / 0.50'] * 4 + ['24 of 1,168']
    rows = _rows(text)
    self.assertEqual(
        rows['nf4'], [*shared, '–', '-0.004 [-0.011, +0.002]', '–'])
    self.assertEqual(
        rows['q8_0'], [*shared, '0', *['-0.004 [-0.011, +0.002]'] * 2])
    self.assertIn('Code: 0123456; jax 0.10.2.', text)

  def test_tofu(self):
    figures = {name: 0.1 * i for i, name in enumerate((
        'forget_p', 'forget_ks', 'forget_truth_ratio', 'utility', *(
            f'{split}_{name}' for name in ('probability', 'rouge')
            for split in ('forget', 'retain'))))}
    text = guides.benchmarked({'environment': {'commit': '0123456'}, 'models': {
        'x': {'nf4': figures | {'commit': '98765432'}}}})
    self.assertEqual(_rows(text)['x, NF4'],
                     ['0.0e+00', *(f'{0.1 * i:.2f}' for i in range(1, 8))])
    self.assertIn('Code: 0123456; asked in part by 9876543.', text)

  def test_a_guide_without_its_file_has_no_table(self):
    for table in (guides.plans, guides.tofu, guides.deployment):
      self.assertEqual(table(self.results), cells.NOTHING)


if __name__ == '__main__':
  absltest.main()
