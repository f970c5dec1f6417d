"""Scripts in experiments/ that no other test runs."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import re
import tempfile
import types
from unittest import mock

from absl.testing import absltest
import numpy as np
import pytest

from experiments import circuit_worth
from experiments import circuit_worth_table
from experiments.lab import __main__ as lab
from experiments.lab import world
from mansu_jax import tree_paths
from mansu_jax.data import questions as questions_lib
from mansu_jax.deployment import relearning_attack
from mansu_jax.models.io import loading
from mansu_jax.statistics import gaps
from tests import runs
from tests.models import tiny

_FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'


def _script(name):
  spec = importlib.util.spec_from_file_location(name, _FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class LabTest(absltest.TestCase):

  def test_world(self):
    self.assertNotEqual(world.questions(0), world.questions(1))
    roles = {
        role: [questions_lib.parse(role, line) for line in lines]
        for role, lines in world.questions(0).items()}
    facts = {role: {q.fact for q in asked} for role, asked in roles.items()}
    self.assertEqual({role: len(names) for role, names in facts.items()},
                     {'forget': 32, 'retain': 128, 'heldout': 128,
                      'unknown': 24})
    self.assertLen(set().union(*facts.values()), 312)
    trained = {choice for role in ('forget', 'retain') for q in roles[role]
               if q.reading == 'choice' for choice in q.choices}
    for question in roles['forget']:
      if question.reading == 'choice_unseen':
        self.assertEqual(trained & {*question.choices}, {question.answer})
    taught = {prompt for prompt, _ in world.lessons(0, 'retain', 'heldout')}
    for role, asked in roles.items():
      prompts = {q.prompt for q in asked}
      self.assertEqual(prompts & taught, prompts if role in (
          'retain', 'heldout') else set())

  @pytest.mark.medium
  def test_planting_moves_the_planted_neurons_alone_and_flagfiles_fit(self):
    there = tiny.temp_dir(self)
    folder = there / 'runs' / 'lab'
    for name in ('_STEPS', '_PLANTING_STEPS', '_BATCH'):
      self.enter_context(mock.patch.object(lab, name, 4))
    lab.make(folder, seed=1)
    self._check_moved(folder)
    (there / 'experiments').symlink_to(_FOLDER)
    self.enter_context(contextlib.chdir(there))
    flagfiles = sorted(_FOLDER.glob('lab_*.flags'))
    self.assertLen(flagfiles, 3)
    for path in flagfiles:
      with self.subTest(path.name):
        runs.check_flagfile(path)

  def _check_moved(self, folder):
    gold, planted = (
        tree_paths.flatten(loading.load(str(folder / name)).params)
        for name in ('gold', 'planted'))
    neurons = json.loads((folder / 'planted.json').read_text())
    want = np.zeros((6, 512), bool)
    for layer, numbers in neurons.items():
      want[int(layer), numbers] = True
    self.assertEqual(want.sum(), 64)
    for name, leaf in gold.items():
      moved = np.asarray(leaf != planted[name])
      if name.startswith('layers/mlp/'):
        axis = 2 if name.endswith('down') else 1
        np.testing.assert_array_equal(moved.any(axis), want)
      else:
        self.assertFalse(moved.any(), name)

  def test_tuning_goes_on_where_a_method_finds_nothing(self):
    out, ran, status = tiny.temp_dir(self) / 'tune', [], {'npo': 2, 'rmu': 75}

    def run(command, check):
      del check
      ran.append(command)
      (name,) = [pathlib.Path(arg).name for arg in command
                 if arg.startswith('--workdir=')]
      return types.SimpleNamespace(returncode=status.get(name, 0))

    self.enter_context(mock.patch.object(lab.subprocess, 'run', run))
    with self.assertRaisesRegex(SystemExit, 'Not tuned.*: npo\\.'):
      lab.tune(pathlib.Path('runs/lab1'), out, ['npo', 'graddiff'])
    self.assertLen(ran, 2)
    with self.assertRaisesRegex(SystemExit, '75'):
      lab.tune(pathlib.Path('runs/lab1'), out, ['rmu', 'graddiff'])
    self.assertLen(ran, 3)
    common = (out / 'common.flags').read_text()
    self.assertIn('--model=runs/lab1/planted', common)
    self.assertNotIn('runs/lab/p', common)
    for command in ran:
      name = command[-4].rpartition('/')[2]
      runs.parse(*(arg.replace(f'--flagfile={out}/common.flags', '--seed=0')
                   for arg in command[3:]))
      self.assertIn(name, command[-5])

  def test_score(self):
    folder = tiny.temp_dir(self)
    (folder / 'planted.json').write_text('{"2": [1, 2], "3": [4, 5]}')
    (folder / 'circuit.json').write_text(json.dumps({'nodes': {
        'neurons': {'2': {'1': 0.5, '7': -0.1}, '5': {'4': 0.2}}}}))
    self.assertEqual(lab.score(folder, folder), {
        'neurons': 3, 'precision': 1 / 3, 'recall': 0.25,
        'chance': 4 / (6 * 512)})


class NeverTaughtTest(absltest.TestCase):

  def test_false_facts_are_of_no_model(self):
    script = _script('never_taught')
    questions = questions_lib.read_questions('shipped:unknown_capital.jsonl')
    found = {name: [questions_lib.parse(name, line) for line in lines]
             for name, lines in script.false_facts(
                 script.grouped(questions)).items()}
    true = {q.fact: q.answer for q in questions}
    false = {name: {q.fact.removeprefix(f'{name}_'): q.answer for q in lines}
             for name, lines in found.items()}
    self.assertEqual({k: len(v) for k, v in false.items()},
                     {'taught': 60, 'unknown': 60, 'spare': 30})
    for fact, answer in false['taught'].items():
      self.assertLen({true[fact], answer, false['unknown'][fact]}, 3)
    self.assertEqual({*false['taught'], *false['spare']}, {*true})
    self.assertEqual(
        {*false['taught'].values(), *false['spare'].values()}, {*true.values()})
    spare = {*false['spare'].values()}
    for question in (*found['taught'], *found['unknown']):
      self.assertLen({*question.choices}, 4)
      wrong = {*question.choices} - {question.answer}
      self.assertEqual(wrong & spare, set() if question.reading == 'choice'
                       else wrong)
    with self.assertRaisesRegex(ValueError, 'wanted the same phrasings'):
      script.grouped([*questions[:40], *questions[41:]])


class OverCircuitsTest(absltest.TestCase):

  def _found(self, shifts, seed=0):
    """A circuit right on 0.5 less random ones right on 0.5 + shift each."""
    rng = np.random.default_rng(seed)
    own = (rng.random(400) < 0.5).astype(float)
    others = np.array([rng.random(400) < 0.5 + s for s in shifts], float)
    facts = [f'fact/{i // 2}' for i in range(400)]
    return own, others, facts

  def test_unlike_circuits_widen_the_interval_and_alike_ones_do_not(self):
    alike, unlike = self._found([0.0] * 10), self._found([-0.4, 0.4] * 5)
    got = [circuit_worth_table.over_circuits(*some) for some in (alike, unlike)]
    for (own, others, facts), (value, low, high) in zip((alike, unlike), got):
      self.assertAlmostEqual(value, own.mean() - others.mean())
      self.assertBetween(value, low, high)
      by_fact = gaps.mean_difference(own - others.mean(0), facts).interval
      self.assertGreater(high - low, by_fact[1] - by_fact[0])
    (_, low, high), (_, low_unlike, high_unlike) = got
    self.assertGreater(high_unlike - low_unlike, 3 * (high - low))
    # Of ten circuits 0.4 apart, as t of 9 degrees of freedom has it.
    self.assertAlmostEqual(high_unlike - low_unlike, 2 * 2.26 * np.sqrt(
        0.4**2 / 9 + 0.5**2 / 400 * 1.1), delta=0.08)

  @pytest.mark.slow
  def test_over_circuits_interval_has_nominal_coverage(self):
    rng, hit = np.random.default_rng(1), 0
    for trial in range(100):
      own, others, facts = self._found(rng.normal(0, 0.1, 8), seed=trial)
      _, low, high = circuit_worth_table.over_circuits(own, others, facts)
      hit += low <= 0 <= high
    self.assertBetween(hit, 88, 100)


class SettingTest(absltest.TestCase):

  def test_arms_of_another_setting_are_refused(self):
    config = runs.parse('--model=m', '--workdir=w', '--quant_schemes=nf4')
    bench = lambda config, data='1': types.SimpleNamespace(
        config=config, inputs=types.SimpleNamespace(hashes={'f.jsonl': data}))
    path = pathlib.Path(self.create_tempdir()) / 'setting_s0.json'
    with mock.patch.object(
        circuit_worth, '_TARGET', types.SimpleNamespace(value=0.33)):
      circuit_worth.check_setting(bench(config), path)
      # As if the flag were newer than the arms.
      there = json.loads(path.read_text())
      del there['config']['eval']['questions']
      path.write_text(json.dumps(there))
      circuit_worth.check_setting(
          bench(dataclasses.replace(config, workdir='other')), path)
      with self.assertRaisesRegex(
          ValueError, '^--out=.*config/seed was 0 and is now 3.*another'):
        circuit_worth.check_setting(
            bench(dataclasses.replace(config, seed=3)), path)
      with self.assertRaisesRegex(ValueError, 'hashes/f.jsonl was 1 and is now 2'):
        circuit_worth.check_setting(bench(config, '2'), path)


class CircuitWorthTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory()))
    self.table = _script('circuit_worth_table')
    self.questions = [
        ('forget_far', 'q0', 'capital/france', 'capital'),
        ('retain', 'q1', 'currency/france', 'currency'),
        ('retain_heldout', 'q2', 'continent/france', 'continent'),
        ('retain_heldout', 'q3', 'continent/brazil', 'continent')]
    (self.folder / 'questions_s0.json').write_text(json.dumps(self.questions))
    (self.folder / 'setting_s0.json').write_text('{"target": 0.33}')

  def _arm(self, name, fp, nf4, **fields):
    record = {'arm': name, 'right': {'fp': fp, 'nf4': nf4}, 'steps': 30,
              'reached': True, 'moved': 0.01,
              'perplexity': {'fp': 40.0, 'nf4': 50.0}} | fields
    (self.folder / f'{name.replace(":", "_")}_s0.json').write_text(
        json.dumps(record))

  def _tables(self):
    (found,) = self.table.read(self.folder).values()
    cells = lambda rows: [
        [cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    return (cells(self.table.as_stopped(found)),
            cells(self.table.less_random(found)))

  def test_arms_and_what_random_circuits_span(self):
    self._arm('attributed', '0111', '0101')
    self._arm('random:0', '0110', '0111', steps=20, moved=0.03)
    self._arm('random:1', '1111', '0101', reached=False, moved=0.02)
    (own, randoms), _ = self._tables()
    self.assertEqual(own, [
        'attributed', '1', '30', '0.000 / 0.000', '1.000 / 1.000',
        '1.000 / 0.500', '1.000 / 0.500', '40.0 / 50.0', '1.00 %'])
    self.assertEqual(randoms[:4], [
        'attributed, random (1 missed the target)', '2', '25 [20, 30]',
        '0.500 [0.000, 1.000] / 0.000 [0.000, 0.000]'])
    self.assertEqual(randoms[-1], '2.50 % [2.00 %, 3.00 %]')

  def test_differences_are_from_the_mean_of_its_random_circuits(self):
    self._arm('attributed', '0111', '0101')
    self._arm('random:0', '0110', '0111')
    self._arm('random:1', '1111', '0101')
    self._arm('small', '0001', '0000')
    self._arm('small+random:0', '0000', '0000')
    self._arm('other', '0111', '0111')
    _, rows = self._tables()
    by_arm = {row[0]: row for row in rows}
    self.assertEqual(by_arm['attributed'][1], '2 of attributed')
    self.assertStartsWith(by_arm['attributed'][2], '-0.500 [')
    # Held-out in fp: 1 less the mean of 0.5 and 1; it exceeds one of them.
    self.assertStartsWith(by_arm['attributed'][6], '+0.250 [')
    self.assertEndsWith(by_arm['attributed'][6], ', 1')
    self.assertEqual(by_arm['small'][1], '1 of small')
    self.assertStartsWith(by_arm['small'][6], '+0.500 [')
    self.assertEqual(by_arm['other'][1], '2 of attributed')

  def test_random_circuits_that_miss_the_target_are_compared(self):
    self._arm('attributed', '0111', '0101')
    self._arm('random:0', '0110', '0111')
    self._arm('random:1', '1111', '0101', reached=False)
    _, ((_, against, *_, held_out, _, _, _),) = self._tables()
    self.assertEqual(against, '2 of attributed (1 missed the target)')
    self.assertStartsWith(held_out, '+0.250 [')

  def test_recovered_answers_by_setting(self):
    facts = [f'capital/{i}' for i in range(8)]
    (self.folder / 'questions_s0.json').write_text(json.dumps(
        [('forget_far', fact, fact, 'capital') for fact in facts]))
    taught = relearning_attack.choose_taught_facts(facts, 0)
    asked = [f for f in facts if f not in taught]
    self.assertLen(asked, 4)
    right = lambda n: ''.join(  # Of what is not taught, the first n.
        str(int(f not in asked[n:])) for f in facts)
    (self.folder / 'relearning').mkdir()
    for name, cad, back in (
        ('attributed', {'own': 0.9}, 2), ('random:0', {
            'own': 0.7, 'attributed': 0.8}, 1), ('random:1', {
                'own': 0.6, 'attributed': 0.4}, 3)):
      (self.folder / f'relearning/{name.replace(":", "_")}_s0.json').write_text(
          json.dumps({'arm': name, 'cad': {
              k: {'value': v} for k, v in cad.items()},
                      'readability': {'value': back / 8}, 'relearning': [
                  {'step': 0, 'right': right(0)},
                  {'step': 2, 'right': right(back)}]}))
    (found,) = self.table.read(self.folder).values()
    own, randoms, less = self.table.relearned(found, 0)
    self.assertRegex(own, re.escape('| attributed | 1 | 0.900 |  | 0.250 |')
                     + r' 0.000 \[0.000, 0.\d+\] \| 0.500 \[0.\d+, [01].\d+\] ')
    self.assertEqual(
        randoms, '| attributed, random | 2 | 0.650 [0.600, 0.700]'
        ' | 0.600 [0.400, 0.800] | 0.250 [0.125, 0.375]'
        ' | 0.000 [0.000, 0.000] | 0.500 [0.250, 0.750] |')
    self.assertStartsWith(less, '| attributed, less random | 2 |')
    self.assertStartsWith(less.split(' | ')[-1], '+0.000 [-')

  def test_a_measure_without_questions(self):
    self.questions[1:] = [
        ('retain', 'q1', 'currency/peru', 'currency'),
        ('retain_heldout', 'q2', 'continent/peru', 'continent')]
    (self.folder / 'questions_s0.json').write_text(json.dumps(self.questions))
    self._arm('attributed', '011', '010')
    for i in range(5):
      self._arm(f'random:{i}', '110', '011')
    (own, _), ((_, _, *less),) = self._tables()
    self.assertEqual(own[6], '–')
    self.assertEqual(less[6:], ['–', '–'])
    (found,) = self.table.read(self.folder).values()
    (row,) = self.table.less_many(found)
    self.assertStartsWith(row, '| attributed | 5 | 5 | 0 | 5 |')
    self.assertEndsWith(row, '| – | – | 5 | 5 | 5 |')

  def test_random_circuits_some_of_which_miss_the_target(self):
    self._arm('attributed', '0111', '0101', moved=0.02)
    for i in range(6):
      self._arm(f'random:{i}', '0110', '0101', reached=i > 0)
    (found,) = self.table.read(self.folder).values()
    every, there = self.table.less_many(found)
    self.assertStartsWith(every, '| attributed | 6 | 5 | 0 | 6 |')
    self.assertStartsWith(there, (
        '| attributed, those that reached the target | 5 | 5 | 0 | 5 |'))
    self.assertEndsWith(there, '| 5 | 5 | 5 |')

  def test_arms_of_other_settings_are_no_random_circuits(self):
    self.assertEqual(self.table.setting('budget_1+random:3'), 'budget_1')
    self.assertEqual(self.table.setting('random:3'), 'attributed')


if __name__ == '__main__':
  absltest.main()
