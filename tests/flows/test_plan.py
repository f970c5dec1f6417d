"""The planned memory and time of a run, on the devices of the test."""

import contextlib
import dataclasses
import functools
import gc
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import pytest

from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.config import mode_checks
from mansu_jax.flows import plan
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models.io import loading
from mansu_jax.planning import cost
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.report.sections import plan as plan_lines
from mansu_jax.runtime import clock
from mansu_jax.stages.prepare import abstract
from tests import runs
from tests import tiny_job


@functools.cache
def _made():
  folder = tempfile.TemporaryDirectory()  # Removed at the end, with the cache.
  return folder, tuple(tiny_job.make(pathlib.Path(folder.name)))


def _job():
  return _made()[1]


def _config(*flags):
  return runs.parse(
      *_job(), '--mode=plan', '--plan_topology=this', *flags)


@functools.cache
def _plan():
  return _traced()


def _traced(*flags):
  """A plan without the compiler: what is held and called, and how often."""
  def compile_none(recorder, program):
    fn = program.fn
    traced = fn if hasattr(fn, 'jaxpr') else fn.trace(
        *program.args, **program.static)
    return (1.0, '', cost.count(traced.jaxpr),
            recorder._placer.replicate(traced.out_info))

  with mock.patch.object(recorder_lib.Recorder, '_compile', compile_none):
    return plan.run(_config(*flags))


def _drawn(config, shapes):
  return abstract.draw_circuit(
      config.attribution.level, config.circuit, config.seed, shapes)


def _bytes_there():
  """Of all arrays; those that share their memory count once."""
  return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()
              if not x.is_deleted()}.values())


class PlanTest(parameterized.TestCase):

  def test_every_stage_is_planned(self):
    self.assertEqual([stage.name for stage in _plan().stages], [
        'attribution', 'references', 'fisher', 'unlearn', 'export', 'evaluate',
        'erasure', 'samples', 'survival'])
    self.assertTrue(_plan().fits)
    for stage in _plan().stages:
      self.assertNotEmpty(stage.calls)

  @pytest.mark.slow
  def test_compiled_plan_has_the_traced_calls(self):
    compiled = plan.run(_config())
    self.assertTrue(compiled.fits)
    for stage, traced in zip(compiled.stages, _plan().stages, strict=True):
      self.assertGreater(min(call.bytes for call in stage.calls), 0)
      self.assertEqual([(call.name, call.calls) for call in stage.calls],
                       [(call.name, call.calls) for call in traced.calls])

  def test_planned_steps_equal_the_steps_of_a_run(self):
    config = _config()
    stage = next(s for s in _plan().stages if s.name == 'unlearn')
    steps = [call for call in stage.calls if call.name.startswith('step at')]
    self.assertEqual(sum(c.calls for c in steps), config.unlearn.steps)
    self.assertLen(steps, 1 + len(config.quant_schemes))

  def test_what_the_base_says_quantized_and_in_its_own_words(self):
    found = _traced(
        '--unlearn_quantized_reference', '--unlearn_swapped_batch=4',
        '--unlearn_swapped_continuation=5')
    calls = {stage.name: {call.name: call.calls for call in stage.calls}
             for stage in found.stages}
    for name in _config().quant_schemes:
      self.assertEqual(calls['unlearn'][f'references at {name}'],
                       calls['unlearn'][f'step at {name}'])
    self.assertGreater(calls['references']['prompts'], 0)
    self.assertEqual(calls['references']['next tokens'],
                     calls['references']['prompts'])
    before = {stage.name: [call.name for call in stage.calls]
              for stage in _traced(
                  '--nounlearn_quantized_reference',
                  '--unlearn_swapped_batch=4',
                  '--unlearn_swapped_continuation=0').stages}
    self.assertNotIn('prompts', before['references'])
    self.assertFalse([name for name in before['unlearn']
                      if name.startswith('references at')])

  def test_held_memory_equals_the_size_of_the_models(self):
    params = loading.load(_config().model).params
    want = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    stages_ = {stage.name: stage for stage in _plan().stages}
    self.assertEqual(stages_['attribution'].held['base'], want)
    rest = sum(leaf.nbytes for name, leaf in tree_paths.flatten(
        params).items() if name not in layout.MATRICES)
    self.assertEqual(stages_['evaluate'].held['unlearned'], want - rest)
    self.assertEqual(stages_['unlearn'].held['view under nf4'], want - rest)

  def test_bfloat16_halves_held_memory(self):
    half = _traced('--export_dtype=bfloat16').stages[0]
    self.assertEqual(half.held['base'], _plan().stages[0].held['base'] / 2)

  @pytest.mark.slow
  def test_planned_memory_equals_live_arrays(self):
    job = _job()  # Before anything is measured.
    flags = ('--attribution_level=neuron_and_head', '--unlearn_steps=2',
             '--eval_cad_pairs=0')
    gc.collect()
    self.addCleanup(gc.collect)
    self.addCleanup(gc.enable)
    gc.disable()  # Arrays in reference cycles stay and are counted.
    found, timed, before = {}, clock.Clock.stage, _bytes_there()

    @contextlib.contextmanager
    def measured(self, name):
      with timed(self, name):
        yield
        found[name] = _bytes_there() - before

    with mock.patch.object(clock.Clock, 'stage', measured):
      with tempfile.TemporaryDirectory() as folder:
        runs.run(pathlib.Path(folder, 'run'), *job, *flags)
    planned = {stage.name: stage for stage in _traced(*flags).stages}
    held = {name: sum(stage.held.values()) for name, stage in planned.items()}
    slices = planned['fisher'].held['slices']
    self.assertEqual(found['attribution'], held['attribution'])
    for name, want in (
        ('fisher', held['fisher'] + slices),  # It is the stage's result.
        ('export', held['export']), ('evaluate', held['survival']),
        ('survival', held['survival'])):
      self.assertAlmostEqual(found[name] / want, 1, delta=0.01, msg=name)

  def test_trained_arrays_have_the_circuits_size(self):
    config = _config()
    shapes = loading.find(config.model).config
    size = 4 * graph.num_weights(_drawn(config, shapes), shapes)
    held = next(s for s in _plan().stages if s.name == 'unlearn').held
    self.assertEqual(held['slices_before'], size)
    # theta, two moments, latent; mask, and scales once a block or a weight.
    self.assertBetween(held['slices_and_optimizer'], 4 * size, 5.3 * size)

  def test_the_circuit_has_the_budgets_size(self):
    config = _config('--circuit_budget=0.1')
    found = loading.find(config.model)
    circuit = _drawn(config, found.config)
    total = tree_paths.count(loading.load(config.model).params)
    share = graph.num_weights(circuit, found.config) / total
    self.assertBetween(share, 0.07, 0.1)

  @pytest.mark.slow
  def test_attribution_of_edges_has_its_own_programs(self):
    found = _traced(
        '--attribution_level=edge', '--circuit_edges=50').stages[0]
    names = [call.name for call in found.calls]
    for name in ('edges.pair_scores', 'edge_patching.corrupted',
                 'edge_patching.metric'):
      self.assertIn(name, names)

  @pytest.mark.slow
  def test_calibration_is_planned(self):
    stages_ = {stage.name: stage for stage in _traced(
        '--quant_schemes=nf4,gptq_g128', '--eval_cad_pairs=0').stages}
    called = {call.name: call.calls for call in stages_['evaluate'].calls}
    self.assertEqual(called['calibration of gptq_g128'], 2)  # Of both models.
    self.assertEqual(called['gptq_g128 of layers/mlp/down'], 2)
    self.assertIn('gptq_g128 codes of layers/mlp/down', {
        call.name for call in stages_['survival'].calls})

  def test_plan_names_flags_when_memory_is_short(self):
    stage = next(s for s in _plan().stages if s.name == 'unlearn')
    most = (sum(stage.held.values()) + stage.bytes) / 2
    wider = 'se more devices, or a larger --mesh_fsdp or --mesh_tensor.'
    for memory, dtype, advice in (
        (most, 'float32', 'Lower --circuit_budget, --unlearn_forget_batch,'
         ' --unlearn_retain_batch, --unlearn_text_batch; or give'
         f' --export_dtype=bfloat16; or u{wider}'),
        (1e5, 'float32', f'Give --export_dtype=bfloat16; or u{wider}'),
        (1e5, 'bfloat16', f'U{wider}')):  # Less than the base.
      found = dataclasses.replace(
          _plan(), chip=_plan().chip._replace(memory=memory), dtype=dtype)
      self.assertFalse(found.fits)
      said = plan_lines.lines(found)
      self.assertStartsWith(said[-1], 'does not fit: the largest stage is')
      told, = (line for line in said if line.startswith('unlearn does not fit'))
      self.assertEndsWith(told, f'more. {advice}')
    self.assertStartsWith(
        plan_lines.lines(_plan())[-1], 'fits: the largest stage')

  @parameterized.parameters(
      ('--unlearn_lora_rank=2', 'adapters'),
      ('--unlearn_weights_dtype=bfloat16', 'weights'))
  @pytest.mark.slow
  def test_edits_of_the_whole_model(self, flag, part):
    found = _traced('--method=npo', flag, '--unlearn_stop_forget=0.3')
    names = [stage.name for stage in found.stages]
    self.assertNotIn('fisher', names)
    stage = found.stages[names.index('unlearn')]
    self.assertNotIn('--circuit_budget', stage.flags)
    calls = {call.name: call.calls for call in stage.calls}
    steps = _config().unlearn.steps
    self.assertEqual(calls['step at fp'], steps)
    self.assertEqual(calls['probe'], steps + 1)  # Once before the first.
    trained = stage.parts[0].held[f'{part}_before']
    # The weights, and two moments in float32, beside a few counters.
    own = 4 if part == 'adapters' else 2
    self.assertAlmostEqual(
        stage.parts[0].held[f'{part}_and_optimizer'],
        trained * (own + 8) / own, delta=100)
    base = stage.parts[0].held['base']
    self.assertBetween(trained, 1, base / 2)
    merged = [call.name for call in found.stages[names.index('export')].calls
              if call.name.startswith('merge into')]
    self.assertLen(merged, 7 if part == 'adapters' else 0)

  @pytest.mark.slow
  def test_a_plan_for_less_memory(self):
    found = _traced('--plan_memory_gib=0.0001')
    self.assertFalse(found.fits)
    self.assertEqual(found.chip.memory, 0.0001 * 2**30)

  @pytest.mark.slow
  def test_a_config_alone_is_enough(self):
    found = _traced('--model=shipped:llama32_1b', '--circuit_last_layer=15',
                    '--unlearn_steps=2')
    self.assertEqual(found.weights, 1_235_814_400)
    self.assertLen(found.notes, 1)

  @parameterized.parameters(
      ('--plan_topology=v5e', 'wanted `this`'),
      ('--model=shipped:llama9', 'is not a shipped config'),
      ('--workdir=somewhere', 'has no effect in --mode=plan'),
      ('--mesh_tensor=3', 'does not divide the'))
  def test_bad_flags(self, flag, message):
    with self.assertRaisesRegex(ValueError, message):
      plan.run(_config(flag))

  def test_flags_of_plans_in_other_modes(self):
    config = runs.parse(*_job(), '--plan_topology=v5p:2x2x4')
    with self.assertRaisesRegex(ValueError, 'it applies to --mode=plan'):
      mode_checks.check_unread_flags(config)


class ShapesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('llama32_1b', 1_235_814_400), ('llama31_8b', 8_030_261_248),
      ('llama33_70b', 70_553_706_496), ('mistral_7b', 7_248_023_552),
      ('qwen25_7b', 7_615_616_512), ('qwen3_8b', 8_190_735_360),
      ('gemma2_9b', 9_241_705_984), ('gemma2_27b', 27_227_128_320),
      ('gemma3_12b', 11_766_034_176), ('phi4_mini', 3_836_021_760),
      ('gpt2_xl', 1_557_611_200), ('pythia_6_9b', 6_857_302_016))
  def test_configs_have_the_published_number_of_weights(self, name, want):
    _, shapes, tokenizer = loading.find_config(f'shipped:{name}')
    made = jax.eval_shape(
        functools.partial(decoder.init, shapes), jax.random.key(0))
    self.assertEqual(tree_paths.count(made), want)
    tree_paths.check_same_structure(made, decoder.abstract(shapes), 'Params')
    self.assertIsNone(tokenizer)


if __name__ == '__main__':
  absltest.main()
