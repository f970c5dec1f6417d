"""Attacks on a tiny model: what is taught, asked, kept and planned."""

import collections
import dataclasses
import pathlib
import tempfile
import types
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import pytest

from mansu_jax.attacks import fine_tune
from mansu_jax.eval import accuracy
from mansu_jax.models import lora
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import programs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import attack_programs
from mansu_jax.stages.judge import attacks
from mansu_jax.stages.judge import programs as judge_programs
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.prepare import inputs as inputs_lib
from tests import runs
from tests import tiny_job

_FLAGS = ('--eval_attacks=relearn,lora,benign,few_shot',
          '--eval_attack_rates=1e-3', '--eval_attack_steps=3',
          '--eval_attack_shares=0.1,0.5', '--quant_schemes=nf4,gptq_g128')


def _unknown():
  """The capitals of countries that no model has seen."""
  renamed = []
  for question in tiny_job.questions()['forget']:
    text = lambda x: f'New {x}'
    renamed.append(question | {
        'id': f'un{question["id"]}', 'fact': f'un{question["fact"]}',
        'relation': 'uncapital', 'prompt': f'Far off. {question["prompt"]}',
        'answer': text(question['answer']),
        'choices': [text(c) for c in question['choices']]})
  return renamed


class AttacksTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    job = tiny_job.make(folder / 'job', train=False)
    tiny_job.write_jsonl(folder / 'unknown.jsonl', _unknown())
    cls.config = runs.parse(
        *job, *_FLAGS, f'--data_unknown={folder}/unknown.jsonl')
    cls.model = loading.load(cls.config.model)
    cls.inputs = inputs_lib.read(cls.config)
    cls.quantize = quantizers.Quantizers(
        cls.config.quant_schemes, cls.model)

  def _measure(self, cache=checkpoints.NoCache(), **changes):
    config = self.config
    options = config.eval if not changes else dataclasses.replace(
        config.eval, **changes)
    return attacks.measure(
        options, config.data, self.inputs, self.quantize, self.model,
        self.model.params, seed=0, cache=cache).record

  def test_no_attacks(self):
    found = self._measure(attacks=())
    self.assertEqual(found['attacks'], {})
    self.assertEqual(found['attack_verdict']['passed'], 'inconclusive')
    self.assertIn('--eval_attacks=', found['attack_verdict']['reason'])

  @pytest.mark.slow
  def test_a_resumed_run_gives_equal_results_without_training(self):
    before = jax.tree.map(np.array, self.model.params)
    folder = self.enter_context(tempfile.TemporaryDirectory())
    with checkpoints.StageCache(pathlib.Path(folder), resume=True) as cache:
      first = self._measure(cache)
    with (checkpoints.StageCache(pathlib.Path(folder), resume=True) as cache,
          mock.patch.object(fine_tune, 'run', side_effect=AssertionError)):
      self.assertEqual(self._measure(cache), first)
    jax.tree.map(
        np.testing.assert_array_equal, self.model.params, before)
    names = ['relearn_1e-3_share_0.1', 'relearn_1e-3', 'lora_1e-2_share_0.1',
             'lora_1e-2', 'benign_1e-3', 'few_shot']
    for key in ('attacks', 'attacks_unknown'):
      self.assertEqual(list(first[key]), names)
      for name, by_precision in first[key].items():
        self.assertEqual(list(by_precision), ['fp', 'nf4'])  # Not calibrated.
        for steps in by_precision.values():
          self.assertEqual([x['step'] for x in steps],
                           [0, 1, 5] if name == 'few_shot' else [0, 3])
    # Step 0 is the model before any attack.
    zero = {name: first['attacks'][name]['nf4'][0] for name in names}
    self.assertLen({str(x) for x in zero.values()}, 1)
    self.assertEqual(first['attack_setup']['benign_on'], 'text')
    self.assertEqual(first['attack_setup']['unknown']['taught_facts'], 6)

  def _judged(self, base, *, guessed):
    """A measurement of given answers by the base; attacks bring back half.

    Args:
      base: Digits of each side, repeated: what the base answers.
      guessed: Digits of the prompts about other facts.
    """
    made = attacks.Attacks(
        self.config.eval, self.config.data, self.inputs, self.model,
        self.quantize.names, seed=0)

    def repeat(digits, name):
      count = len(made.sides[name].questions)
      probes = len(made.tasks[name].questions) - count
      return (digits * count)[:count] + (guessed * probes)[:probes]

    def run(*args, steps, **kwargs):
      del args, kwargs
      return [{'step': step} | {
          name: dict.fromkeys(('fp', 'nf4'), repeat('10' if step else '0', name))
          for name in made.sides} for step in steps]

    with (mock.patch.object(fine_tune, 'run', run),
          mock.patch.object(
              attacks.Attacks, 'ask', lambda self, _, name, examples=None: (
                  repeat(base[name] if examples is None else '0', name)))):
      return attacks.measure(
          self.config.eval, self.config.data, self.inputs, self.quantize,
          self.model, self.model.params, seed=0).record

  def test_gains_count_from_what_is_guessed(self):
    found = self._judged({'forget': '1', 'unknown': '10'}, guessed='10')
    verdict = found['attack_verdict']
    self.assertAlmostEqual(
        found['attack_setup']['unknown']['base_guessed'], 0.5, delta=0.05)
    self.assertAlmostEqual(verdict['gain_unknown']['value'], 0, delta=0.1)
    self.assertTrue(verdict['control']['valid'])
    self.assertEqual(verdict['passed'], 'inconclusive')

  def test_facts_that_the_base_knows_are_no_control(self):
    found = self._judged({'forget': '1', 'unknown': '1'}, guessed='0')
    verdict = found['attack_verdict']
    setup = found['attack_setup']['unknown']
    self.assertEqual((setup['base'], setup['base_guessed']), (1.0, 0.0))
    self.assertFalse(verdict['control']['valid'])
    self.assertIsNotNone(verdict['difference'])
    self.assertEqual(verdict['passed'], 'inconclusive')
    self.assertIn('the base knows facts of --data_unknown', verdict['reason'])

  def test_probes_have_the_choices_that_the_attack_leaves(self):
    made = attacks.Attacks(
        self.config.eval, self.config.data, self.inputs, self.model,
        self.quantize.names, seed=0)
    questions = {q.id: q for q in made.sides['unknown'].questions}
    probes = made.tasks['unknown'].questions[len(questions):]
    self.assertLen(probes, len(questions))
    for probe in probes:
      question = questions[probe.id.split('/as/')[0]]
      self.assertEqual(probe.choices, question.choices)
      self.assertNotEqual(probe.prompt, question.prompt)

  def test_examples_are_taught_facts_and_stand_before_each_prompt(self):
    made = attacks.Attacks(
        self.config.eval, self.config.data, self.inputs, self.model,
        self.quantize.names, seed=0)
    for name, side in made.sides.items():
      facts = {q.answer for q in side.taught}
      plain = made.tasks[name].questions
      self.assertIs(made.shown[name, 0], made.tasks[name])
      for count in 1, 5:
        shown = made.shown[name, count].questions
        self.assertLen(shown, len(plain))
        for before, after in zip(plain, shown):
          self.assertEqual(after.choices, before.choices)
          self.assertEndsWith(after.prompt, f'\n\n{before.prompt}')
          self.assertEqual(after.prompt.count('\n\n'), count)
          self.assertLen([x for x in facts if x in after.prompt], count)

  def test_examples_that_do_not_fit_are_left_out(self):
    small = dataclasses.replace(self.model, config=dataclasses.replace(
        self.model.config, max_position=32))
    made = attacks.Attacks(
        self.config.eval, self.config.data, self.inputs, small,
        self.quantize.names, seed=0)
    plain, one, five = (made.shown['forget', n].questions for n in (0, 1, 5))
    self.assertTrue(any(a != b for a, b in zip(plain, one)))
    self.assertEqual(plain, five)

  def test_the_plan_lists_each_program_as_often_as_it_is_called(self):
    calls = collections.Counter()

    def counted(name, fn):
      def call(*args, **kwargs):
        calls[name] += 1
        return fn(*args, **kwargs)
      return call

    with (mock.patch.object(
        fine_tune, 'start', counted('start', fine_tune.start)),
          mock.patch.object(fine_tune, 'train_step', counted(
              'step', lambda config, frozen, carry, *rest: (
                  carry, np.float32(0)))),
          mock.patch.object(lora, 'merge', counted('merge', lora.merge)),
          mock.patch.object(accuracy, 'score', counted(
              'ask', lambda scorer, params, task: types.SimpleNamespace(
                  correct=np.ones(len(task.questions), bool)))),
          mock.patch.object(quantizers.Quantizers, '__call__', counted(
              'quantize', lambda self, name, params, donate=(): params))):
      self._measure()
    planned, asked = self._planned()
    self.assertEqual(
        {name: calls[name] for name in ('start', 'step', 'merge')},
        {'start': planned['start of an attack'],
         'merge': planned['merge into layers/mlp/up'],
         'step': sum(n for name, n in planned.items() if name.startswith(
             'step of '))})
    self.assertEqual(calls['quantize'], planned['nf4 of layers/mlp/up'])
    self.assertEqual(calls['ask'], asked)

  def _planned(self):
    """Calls by program, and how often a side is asked."""
    config = self.config
    placer = programs.Placer(jax.make_mesh(
        (1, 1, 1), ('data', 'fsdp', 'tensor'), axis_types=(
            jax.sharding.AxisType.Auto,) * 3))
    shapes = self.model.config
    model = abstract.make(
        shapes, self.model.tokenizer, abstract.draw_circuit(
            config.attribution.level, config.circuit, 0, shapes), 'float32',
        placer)
    job = judge_programs.Job(
        model=model, inputs=self.inputs, options=config.eval, data=config.data,
        attribution=settings_lib.Settings.from_run(config),
        schemes=config.quant_schemes)
    calls, asked = collections.Counter(), 0
    made, out = attack_programs.attacks(job), None
    with mock.patch.object(attack_programs, '_ask', lambda *args, calls: iter(
        [calls])):
      while True:
        try:
          step = made.send(out)
        except StopIteration:
          return calls, asked
        out = None
        if isinstance(step, int):
          asked += step
        elif isinstance(step, programs.Program):
          calls[step.name] += step.calls
          out = jax.tree.map(
              lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
              step.fn.eval_shape(*step.args, **step.static))


if __name__ == '__main__':
  absltest.main()
