"""Edits of every weight and of adapters: size, storage, merging, resuming."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax.config import run as run_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models import lora
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import training
from mansu_jax.stages.train import whole_edits
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import objective
from tests.models import tiny
from tests.stages.train import programs_of
from tests.unlearn import problem

_PLAIN = run_config.EditConfig(floor='none', projection='none')
_KINDS = {
    'all': {}, 'bfloat16': {'weights_dtype': 'bfloat16'},
    'lora': {'lora_rank': 3, 'lora_alpha': 6.0}}


def _options(kind, **changes):
  return problem.options(**{
      'quantizer_in_loop': False, 'steps': 6, 'learning_rate': 0.01,
      'swapped_weight': 0.0} | _KINDS[kind] | changes)


@functools.cache
def _edit(kind):
  return whole_edits.make(problem.model(), _options(kind), seed=0)


def _train(kind, keep=None, **changes):
  """(theta, history) of a short run."""
  batch = problem.batch(problem.hidden_of_model())
  done = training.unlearn(
      _options(kind, **changes), _PLAIN, _edit(kind), None, lambda step: batch,
      total_weights=tree_paths.count(problem.model().params), keep=keep)
  return done['theta'], done['history']


class FullEditTest(parameterized.TestCase):

  def test_trains_everything_and_unembeds_either(self):
    model, edit = problem.model(), _edit('all')
    self.assertEqual(edit.grids, ())
    self.assertEqual(list(edit.views), ['fp'])
    view, hidden = edit.base, jnp.ones((2, 16))
    other = {**model.params, 'embed': model.params['embed'] * 2}
    want = decoder.unembed(model.config, model.params, hidden)
    np.testing.assert_array_equal(edit.unembed(None, view, hidden), want)
    np.testing.assert_allclose(
        edit.unembed(other, view, hidden), 2 * want, rtol=1e-6)
    jax.tree.map(self.assertIs, edit.merge(other), other)
    self.assertEqual(edit.report, {
        'part': 'all', 'dtype': 'float32',
        'weights': tree_paths.count(model.params)})

  def test_theta_0_in_bfloat16_is_the_rounded_base_and_said_so(self):
    model, edit = problem.model(), _edit('bfloat16')
    differ = total = 0
    for name, leaf in tree_paths.flatten(edit.theta).items():
      base = np.asarray(tree_paths.flatten(model.params)[name])
      self.assertEqual(leaf.dtype, jnp.bfloat16)
      np.testing.assert_array_equal(leaf, base.astype(ml_dtypes.bfloat16))
      differ += int((np.float32(leaf) != base).sum())
      total += base.size
    self.assertEqual(edit.report, {
        'part': 'all', 'dtype': 'bfloat16', 'weights': total,
        'theta_0': 'the base rounded to bfloat16',
        'base_rounded': differ / total})
    self.assertGreater(differ, 0.9 * total)
    self.assertIs(edit.base['params'], model.params)  # The references' own.

  def test_a_trained_model_in_bfloat16_has_bfloat16_values(self):
    theta, history = _train('bfloat16')
    self.assertLess(history['loss'][-1], history['loss'][0])
    for leaf in jax.tree.leaves(_edit('bfloat16').merge(theta)):
      self.assertEqual(leaf.dtype, jnp.float32)
      np.testing.assert_array_equal(
          leaf, np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32))

  def test_small_rates_move_fewer_weights_in_bfloat16(self):
    moved = {kind: _train(kind, learning_rate=1e-4)[1]['moved'][0]
             for kind in ('all', 'bfloat16')}
    self.assertGreater(moved['all'], 0.9)
    self.assertBetween(moved['bfloat16'], 0.0, 0.5)


class QuantizedViewTest(absltest.TestCase):

  def test_steps_take_turns_at_the_quantized_weights(self):
    options = _options('all', quantizer_in_loop=True, fp_steps=1)
    edit = whole_edits.make(
        problem.model(), options, seed=0, scheme_names=('nf4',))
    self.assertEqual([*edit.views], ['fp', 'nf4'])
    seen = tree_paths.flatten(edit.views['nf4'].quantize(edit.theta))
    want = tree_paths.flatten(quant.fake_quantize(
        problem.model().params, 'nf4', layout.block_layout(problem.CONFIG)))
    for name, x in tree_paths.flatten(edit.theta).items():
      np.testing.assert_array_equal(seen[name], want[name], name)
      self.assertIsNot(seen[name], x)  # The step may take over x's memory.
    batch = problem.batch(problem.hidden_of_model())
    done = training.unlearn(
        options, _PLAIN, edit, None, lambda step: batch, total_weights=1)
    np.testing.assert_array_equal(done['history']['view'], [0, 1] * 3)
    nll = done['history']['forget_nll']
    self.assertGreater(nll[-2], nll[0])
    self.assertGreater(nll[-1], nll[1])


class LoraEditTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'matrices': ('down', 'o')}, ('mlp/down', 'attn/o'), (0, 1)),
      ({'matrices': ('down',), 'first_layer': 1}, ('mlp/down',), (1,)),
      ({'last_layer': 0}, ('mlp/up', 'mlp_norm', 'attn/k'), (0,)))
  def test_a_part_of_the_weights_is_trained(self, options, some, layers):
    options = _options('all', **options)
    edit = whole_edits.make(problem.model(), options, seed=0)
    batch = problem.batch(problem.hidden_of_model())
    done = training.unlearn(
        options, _PLAIN, edit, None, lambda step: batch, total_weights=1)
    before, after = map(tree_paths.flatten, (edit.theta, done['theta']))
    part, count = tree_paths.flatten(edit.movable), 0
    for name, leaf in before.items():
      moved = np.asarray(leaf != after[name])
      self.assertFalse((moved & ~part[name]).any(), name)
      count += np.broadcast_to(part[name], leaf.shape).sum()
      short = name.removeprefix('layers/')
      if short in some:
        rows = moved.reshape(len(moved), -1).any(1)
        self.assertEqual(tuple(np.flatnonzero(rows)), layers, name)
      elif options.matrices or not name.startswith('layers/'):
        self.assertFalse(moved.any(), name)
    self.assertEqual(edit.report['movable'], count)

  @parameterized.parameters('all', 'bfloat16', 'lora')
  def test_a_task_vector_is_subtracted(self, kind):
    theta, history = _train(
        kind, loss='task_vector', kl_weight=0.0, nll_weight=0.0)
    self.assertLess(history['forget_nll'][-1], history['forget_nll'][0])
    edit, options = _edit(kind), _options(kind, task_vector_scale=0.5)
    merged = [edit.merge(x) for x in (
        edit.theta, theta, whole_edits.subtract(options, edit, theta))]
    for before, learned, got in zip(*map(jax.tree.leaves, merged)):
      atol = 0.02 if kind == 'bfloat16' else 1e-6
      np.testing.assert_allclose(
          got, before - 0.5 * (learned - before), atol=atol)
    measure = jax.jit(objective.make_loss(
        problem.options(loss='none'), edit.forward, edit.unembed))
    before, after = (
        measure(x, edit.base, edit.base, problem.batch(
            problem.hidden_of_model()))[1].forget_nll
        for x in (edit.theta, whole_edits.subtract(options, edit, theta)))
    self.assertGreater(after, before)

  @parameterized.parameters('all', 'lora')
  def test_rmu_moves_the_layers_up_to_the_one_it_reads(self, kind):
    theta, history = _train(
        kind, loss='rmu', rmu_layer=0, kl_weight=0.0, nll_weight=0.0)
    self.assertLess(history['forget'][-1], history['forget'][0])
    before, after = (
        tree_paths.flatten(_edit(kind).merge(x)['layers'])
        for x in (_edit(kind).theta, theta))
    for name, leaf in before.items():
      moved = np.any(leaf != after[name], axis=tuple(range(1, leaf.ndim)))
      self.assertFalse(moved[1:].any(), name)
    self.assertTrue(np.any(before['mlp/down'][0] != after['mlp/down'][0]))

  def test_theta_is_the_adapters_by_the_seed(self):
    edit, model = _edit('lora'), problem.model()
    jax.tree.map(np.testing.assert_array_equal, edit.theta,
                 lora.init(model.params, 3, 0))
    other = whole_edits.make(model, _options('lora'), seed=1).theta
    self.assertTrue((tree_paths.flatten(other)['layers/mlp/up/a'] !=
                     tree_paths.flatten(edit.theta)['layers/mlp/up/a']).all())
    self.assertEqual(edit.report, {
        'part': 'lora', 'dtype': 'float32', 'rank': 3, 'alpha': 6.0,
        'weights': tree_paths.count(edit.theta)})

  def test_training_lowers_the_loss_of_the_merged_model(self):
    theta, history = _train('lora')
    self.assertLess(history['loss'][-1], history['loss'][0])
    model, edit = problem.model(), _edit('lora')
    merged = edit.merge(theta)
    tokens = problem.FORGET[0]
    np.testing.assert_allclose(
        edit.forward(theta, edit.base, tokens),
        decoder.forward(model.config, merged, tokens), atol=2e-4)
    for name, leaf in tree_paths.flatten(merged).items():
      same = leaf == tree_paths.flatten(model.params)[name]
      self.assertEqual(bool(same.all()), name not in layout.MATRICES, name)

  def test_merging_rounds_the_sums_once_to_the_base_s_dtype(self):
    model = problem.model()
    half = dataclasses.replace(model, params=jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), model.params))
    edit = whole_edits.make(half, _options('lora'), seed=0)
    theta = jax.tree.map(lambda x: x + 0.01, edit.theta)
    # Alpha over rank.
    want = lora.merge(half.params, theta, 2.0, 'float32')
    for name, leaf in tree_paths.flatten(edit.merge(theta)).items():
      self.assertEqual(leaf.dtype, jnp.bfloat16)
      np.testing.assert_array_equal(leaf, np.asarray(
          tree_paths.flatten(want)[name]).astype(ml_dtypes.bfloat16))

  def test_a_weight_that_overflows_the_export_is_an_error(self):
    model = problem.model()
    half = dataclasses.replace(model, params=jax.tree.map(
        lambda x: x.astype(jnp.float16), model.params))
    edit = whole_edits.make(half, _options('lora'), seed=0)
    with self.assertRaisesRegex(ValueError, 'too large for float16'):
      edit.merge(jax.tree.map(lambda x: x + 1e3, edit.theta))

  def _made(self, kind):
    """Shapes that a step computes, and the size of its optimizer state."""
    edit, options = _edit(kind), _options(kind)
    tx = edits.make_transform(options, _PLAIN, edit, None)
    step = loop.make_step(loop.Problem(
        theta=edit.theta, tx=tx, loss=objective.make_loss(
            options, edit.forward, edit.unembed),
        views=list(edit.views.values()), base=edit.base), None)
    state = tx.init(edit.theta)
    batch = problem.batch(problem.hidden_of_model())._replace(text=None)
    return programs_of.shapes_made(jax.make_jaxpr(step)(
        (edit.theta, state), None, edit.base, edit.base, edit.theta, batch
    ).jaxpr), sum(x.size for x in jax.tree.leaves(state))

  def test_no_stacked_matrix_is_made_and_the_state_is_of_the_adapters(self):
    params = tree_paths.flatten(problem.model().params)
    sizes = {params[name].shape for name in layout.MATRICES}
    flat = {(x[0], *np.shape(a)[1:2], np.shape(b)[2]) for x, a, b in (
        (params[name].shape, *(tree_paths.flatten(_edit('lora').theta)[
            f'{name}/{end}'] for end in 'ab')) for name in layout.MATRICES)}
    made, state = self._made('lora')
    self.assertEmpty(made & (sizes | flat))
    adapters = tree_paths.count(_edit('lora').theta)
    self.assertBetween(state, 2 * adapters, 2 * adapters + 10)
    self.assertContainsSubset(sizes, self._made('all')[0])  # It can fail.


class _StopAfter:
  """Real checkpoints of a loop that is interrupted after a step."""

  def __init__(self, steps, last):
    self._steps, self._last = steps, last
    self.restore = steps.restore

  def after(self, step, carry, history):
    self._steps.after(step, carry, history)
    if step == self._last:
      raise KeyboardInterrupt


class ResumeTest(parameterized.TestCase):

  @parameterized.parameters(*_KINDS)
  def test_a_resumed_run_ends_with_the_same_bits(self, kind):
    want, history = _train(kind)
    root = tiny.temp_dir(self)
    with checkpoints.StageCache(root, resume=True) as cache:
      with self.assertRaises(KeyboardInterrupt):
        with cache.steps('steps', 2) as steps:
          _train(kind, keep=_StopAfter(steps, 4))
      with cache.steps('steps', 2) as steps:
        self.assertIsNotNone(steps.restore(
            (want, edits.make_transform(
                _options(kind), _PLAIN, _edit(kind), None).init(
                    loop.float32(want)))))
        got, rows = _train(kind, keep=steps)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      self.assertEqual(a.dtype, b.dtype)
      self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())
    jax.tree.map(np.testing.assert_array_equal, rows, history)


if __name__ == '__main__':
  absltest.main()
