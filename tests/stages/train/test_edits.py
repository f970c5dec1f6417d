"""The circuit edit: equal to the full tree, at the size of the circuit."""

import dataclasses
from unittest import mock
import weakref

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mansu_jax import quant
from mansu_jax import transforms
from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.config import run as run_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models.io import loading
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import whole_edits
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import objective
from tests.circuits import small
from tests.reference import circuit_naive
from tests.stages.train import programs_of
from tests.unlearn import problem

_CONFIG = problem.CONFIG
_LAYOUT = layout.block_layout(_CONFIG)
_gather = jax.jit(param_mask.gather)
_TOKENS = np.array([[3, 1, 4, 1, 5]], np.int32)


def _run_config(**changes):
  return run_config.RunConfig(**changes)


def _hidden(params):
  return jax.jit(decoder.forward, static_argnums=0)(_CONFIG, params, _TOKENS)


def _weight_shapes():
  """Of all matrices, stacked over layers and of one layer."""
  params = problem.model().params
  stacked = {leaf.shape for module in ('mlp', 'attn')
             for leaf in params['layers'][module].values()}
  return stacked | {shape[1:] for shape in stacked} | {params['embed'].shape}


class SizeTest(parameterized.TestCase):
  """Gradients, state and updates have the size of the circuit."""

  def _made(self, edit):
    tx = edits.make_transform(
        problem.options(), run_config.EditConfig(), edit, None)
    step = loop.make_step(loop.Problem(
        theta=edit.theta, tx=tx, loss=objective.make_loss(
            problem.options(), edit.forward, edit.unembed),
        views=list(edit.views.values()), base=edit.base), None)
    carry = edit.theta, tx.init(edit.theta)
    # Without the text: with it as many places are predicted as words exist.
    batch = problem.batch(problem.hidden_of_model())._replace(text=None)
    return programs_of.shapes_made(jax.make_jaxpr(step)(
        carry, None, edit.base, edit.base, edit.theta, batch).jaxpr)

  def test_no_program_of_the_step_makes_a_full_weight(self):
    circuit = small.circuit(_CONFIG)
    circuit.heads[0, 3] = True  # Five: four slices look like a layer of o.
    edit = edits.circuit_edit(
        problem.model(), circuit, ('nf4',), quantized_views=True)
    self.assertEmpty(self._made(edit) & _weight_shapes())

  def test_the_check_sees_full_weight_gradients(self):
    made = self._made(whole_edits.full_edit(problem.model()))
    self.assertEqual(made & _weight_shapes(), _weight_shapes())

  def test_optimizer_state_is_of_the_circuit(self):
    edit = problem.circuit_edit()
    tx = edits.make_transform(
        problem.options(), run_config.EditConfig(), edit, None)
    size = sum(x.size for x in jax.tree.leaves(tx.init(edit.theta)))
    # Two moments, the latent, and scales, one a block where blocks are whole.
    theta = tree_paths.count(edit.theta)
    scales = jax.tree.leaves(edit.grids)
    self.assertLess(sum(x.size for x in scales), 0.7 * theta)
    self.assertBetween(
        size - sum(x.size for x in scales), 3 * theta, 3 * theta + 10)
    nodes = small.circuit(_CONFIG)
    self.assertEqual(theta, graph.num_weights(nodes, _CONFIG))


class ViewTest(absltest.TestCase):

  def test_a_view_in_bfloat16_is_the_quantized_model(self):
    model = problem.model()
    model = dataclasses.replace(model, params=jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), model.params))
    circuit = small.circuit(_CONFIG)
    edit = edits.circuit_edit(
        model, circuit, ('nf4',), quantized_views=True,
        storage_dtype=jnp.bfloat16)
    want = _gather(quant.fake_quantize(model.params, 'nf4', _LAYOUT),
                   param_mask.make_index(circuit))
    jax.tree.map(
        np.testing.assert_array_equal,
        edit.views['nf4'].quantize(edit.theta), want)
    self.assertEqual({x.dtype for x in jax.tree.leaves(edit.theta)},
                     {jnp.dtype('float32')})


class ChainTest(parameterized.TestCase):

  def test_full_tree_and_slices_agree_through_the_chain(self):
    # Only heads: units on both axes, and half the programs.
    circuit = small.circuit(_CONFIG, ['heads', 'kv_heads'])
    only = lambda tree: {'layers': {'attn': tree['layers']['attn']}}
    params = only(problem.model().params)
    index = param_mask.make_index(circuit)
    mask = param_mask.full_mask(circuit, params)
    slices = _gather(params, index)
    rng = np.random.default_rng(0)
    draw = lambda: jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    fisher = jax.tree.map(np.square, draw())
    grid = quant.code_grid(params, 'int8', only(_LAYOUT))
    chain = lambda **parts: transforms.mansu(
        optax.adam(0.1), quantile=0.6, **parts)
    whole = chain(fisher=fisher, circuit_mask=mask, valid=mask, grids=grid)
    sliced = chain(
        fisher=_gather(fisher, index), circuit_mask=None,
        grids=grid.map_fields(lambda tree: _gather(tree, index)))
    walks = [[whole, params, whole.init(params)],
             [sliced, slices, sliced.init(slices)]]
    updates = [jax.jit(tx.update) for tx, _, _ in walks]
    for _ in range(3):
      grads = draw()
      for walk, update, some in zip(
          walks, updates, (grads, _gather(grads, index))):
        _, theta, state = walk
        _, state = update(some, state, theta)
        walk[1:] = [transforms.floor_params(state), state]
    merged = jax.jit(param_mask.scatter)(params, index, walks[1][1])
    jax.tree.map(np.testing.assert_array_equal, merged, walks[0][1])
    moved = jax.tree.map(lambda a, b: int(np.sum(a != b)), merged, params)
    for name, count in tree_paths.flatten(moved).items():
      self.assertGreater(count, 5, name)


class StoredViewTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = problem.model().params
    cls.edit = problem.circuit_edit()
    # Some weights sit on other codes, as under the floor; block maxima stay.
    rng = np.random.default_rng(1)
    noise = jax.tree.map(
        lambda x: (rng.random(x.shape) < 0.3) * rng.normal(
            size=x.shape).astype(np.float32), cls.edit.theta)
    grid = cls.edit.grids[0]
    centre = jax.jit(grid.decode_nearest)(jax.tree.map(
        jnp.add, cls.edit.theta, noise))
    cls.theta = jax.tree.map(
        lambda t, c, n, frozen: jnp.where((n != 0) & ~frozen, c, t),
        cls.edit.theta, centre, noise, grid.sets_scale(cls.edit.theta))
    cls.merged = cls.edit.merge(cls.theta)

  def test_full_precision_comes_first_and_structures_are_equal(self):
    self.assertEqual(list(self.edit.views), ['fp', 'nf4'])
    fp, nf4 = (view.frozen() for view in self.edit.views.values())
    self.assertIs(fp, self.edit.base)
    self.assertEqual(jax.tree.structure(fp), jax.tree.structure(nf4))
    without = edits.circuit_edit(
        problem.model(), small.circuit(_CONFIG), ('nf4',),
        quantized_views=False)
    self.assertEqual(list(without.views), ['fp'])

  def test_several_quantized_models_are_made_at_each_call_and_not_kept(self):
    edit = problem.circuit_edit(schemes=('nf4', 'int8'))
    shape = jax.tree.structure(edit.base)
    for name in ('nf4', 'int8'):
      made = edit.views[name].frozen()
      self.assertEqual(jax.tree.structure(made), shape)
      jax.tree.map(np.testing.assert_array_equal, made['params'],
                   quant.fake_quantize(self.params, name, _LAYOUT))
      held = weakref.ref(made['params']['layers']['mlp']['up'])
      del made
      self.assertIsNone(held(), name)
    alone = self.edit.views['nf4'].frozen
    self.assertIs(alone()['params'], alone()['params'])

  def test_merge_puts_the_slices_into_the_model(self):
    owned = circuit_naive.owned(
        self.params, small.members(small.circuit(_CONFIG)))
    for (module, leaf), mask in owned.items():
      changed = (self.merged['layers'][module][leaf]
                 != self.params['layers'][module][leaf])
      self.assertGreater(changed.sum(), 0)
      self.assertFalse(np.any(changed & ~mask))
    np.testing.assert_array_equal(self.merged['embed'], self.params['embed'])
    jax.tree.map(np.testing.assert_array_equal,
                 self.edit.merge(self.edit.theta), self.params)

  def test_codes_changed_counts_changed_codes(self):
    grid, theta0 = self.edit.grids[0], self.edit.theta
    want = sum(int(np.sum(a != b)) for a, b in zip(*(
        jax.tree.leaves(quant.fake_quantize(p, 'nf4', _LAYOUT))
        for p in (self.merged, self.params))))
    self.assertGreater(want, 100)
    self.assertEqual(int(edits.codes_changed(
        grid, theta0, self.theta)), want)
    nudged = jax.tree.map(lambda x: x * (1 + 1e-6), theta0)
    self.assertGreater(int(loop._moved(nudged, theta0)), 100)
    self.assertEqual(int(edits.codes_changed(grid, theta0, nudged)), 0)

  def test_the_quantized_view_is_the_quantized_model(self):
    view = self.edit.views['nf4'].frozen()
    seen = self.edit.views['nf4'].quantize(self.theta)
    want = quant.fake_quantize(self.merged, 'nf4', _LAYOUT)
    got = jax.jit(param_mask.scatter)(
        view['params'], param_mask.make_index(small.circuit(_CONFIG)), seen)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_allclose(
        jax.jit(self.edit.forward)(seen, view, _TOKENS), _hidden(want),
        rtol=1e-4, atol=1e-4)

  def test_the_full_precision_view_is_the_merged_model(self):
    view, seen = self.edit.base, self.edit.views['fp'].quantize(self.theta)
    jax.tree.map(np.testing.assert_array_equal, seen, self.theta)
    hidden = jax.jit(self.edit.forward)(seen, view, _TOKENS)
    np.testing.assert_allclose(
        hidden, _hidden(self.merged), rtol=1e-4, atol=1e-4)
    self.assertGreater(
        np.abs(hidden - _hidden(self.params)).max(), 1e-2)
    np.testing.assert_array_equal(
        self.edit.unembed(None, view, hidden),
        decoder.unembed(_CONFIG, self.params, hidden))


class SpanTest(parameterized.TestCase):
  """Views of a circuit in one layer equal the merged model."""

  @parameterized.product(layer=(0, 1, 2), view=('fp', 'nf4'))
  @pytest.mark.slow
  def test_views_are_the_merged_model(self, layer, view):
    config = dataclasses.replace(_CONFIG, num_layers=3)
    model = loading.LoadedModel(config, jax.tree.map(
        jnp.asarray, small.params(config, 3)), None, {})
    circuit = graph.empty(config)
    circuit.neurons[layer, :9] = True
    circuit.heads[layer, 1] = True
    circuit.kv_heads[layer, 0] = True
    edit = edits.circuit_edit(model, circuit, ('nf4',), quantized_views=True)
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), edit.theta)
    theta = jax.tree.map(
        lambda t, n, frozen: jnp.where(frozen, t, t + 0.3 * jnp.abs(t) * n),
        edit.theta, noise, edit.grids[0].sets_scale(edit.theta))
    theta = jax.tree.map(  # Block maxima stay the largest.
        lambda t, scale: jnp.clip(t, -scale, scale), theta,
        edit.grids[0].scale)
    want, frozen = edit.merge(theta), edit.views[view].frozen()
    if view == 'nf4':
      want = quant.fake_quantize(want, 'nf4', layout.block_layout(config))
    run = jax.jit(decoder.forward, static_argnums=0)
    got = jax.jit(edit.forward)(
        edit.views[view].quantize(theta), frozen, _TOKENS)
    np.testing.assert_allclose(
        got, run(config, want, _TOKENS), rtol=1e-4, atol=1e-4)
    self.assertGreater(np.abs(got - run(
        config, frozen['params'], _TOKENS)).max(), 1e-2)


class LoopTest(parameterized.TestCase):
  """The whole step on a decoder, quantizer in the loop."""

  def test_floor_holds_at_the_end_and_one_program_was_compiled(self):
    config = _run_config(unlearn=problem.options(
        steps=4, learning_rate=0.2, warmup=0.0))
    edit, params = problem.circuit_edit(), problem.model().params
    rng = np.random.default_rng(0)
    fisher = jax.tree.map(
        lambda x: np.float32(rng.random(x.shape)), edit.theta)
    batch = problem.batch(problem.hidden_of_model())._replace(
        text=None, prompts=None)
    loss = mock.Mock(side_effect=objective.make_loss(
        config.unlearn, edit.forward, edit.unembed))
    theta, history = loop.run(
        loop.Problem(
            theta=edit.theta, tx=edits.make_transform(
                config.unlearn, config.edit, edit, fisher),
            loss=loss,
            views=list(edit.views.values()), base=edit.base),
        lambda step: batch, steps=4,
        total_weights=tree_paths.count(params), max_retain_kl=1e3)
    loss.assert_called_once()  # Traced.
    merged = edit.merge(theta)
    codes = lambda p: quant.fake_quantize(p, 'nf4', _LAYOUT)
    moved = 0
    for a, b, qa, qb in zip(*map(jax.tree.leaves, (
        merged, params, codes(merged), codes(params)))):
      np.testing.assert_array_equal(a != b, qa != qb)
      np.testing.assert_array_equal(a[a != b], qa[a != b])  # On its centre.
      moved += int(jnp.sum(a != b))
    self.assertGreater(moved, 50)
    self.assertAlmostEqual(
        history[-1]['moved'], moved / tree_paths.count(params), places=6)
    for d, f, grid_frozen in zip(*map(jax.tree.leaves, (
        jax.tree.map(lambda a, b: np.asarray(a != b), theta, edit.theta),
        fisher, edit.grids[0].sets_scale(edit.theta)))):
      self.assertFalse(np.any(d & np.asarray(grid_frozen)))
      self.assertFalse(np.any(d & (f > 0.9)))  # Above the quartile for sure.


class OptimizerTest(parameterized.TestCase):

  def _second_update(self, name, **options):
    tx = edits.optimizer(problem.options(
        optimizer=name, warmup=0.0, steps=1000, learning_rate=0.1, **options))
    theta = {'a': jnp.full((2, 3), 5.0), 'b': jnp.full((4,), 1e-2)}
    grads = {'a': jnp.arange(6.0).reshape(2, 3) - 2,
             'b': jnp.array([1e-6, 0.0, -1e-3, 5.0])}
    state = tx.init(theta)
    _, state = tx.update(grads, state, theta)
    return theta, grads, tx.update(grads, state, theta)[0]

  def test_adam_gives_every_coordinate_the_same_step(self):
    _, grads, updates = self._second_update('adam')
    for name, grad in grads.items():
      held = np.asarray(grad) != 0
      np.testing.assert_allclose(
          np.asarray(updates[name])[held], -0.1 * np.sign(grad)[held],
          rtol=0.02)

  def test_lars_keeps_proportions_and_scales_to_each_leaf(self):
    theta, grads, updates = self._second_update('lars')
    for name, grad in grads.items():  # Two like gradients: 1 + 0.9 momentum.
      size = 0.19 * np.linalg.norm(theta[name])
      np.testing.assert_allclose(
          updates[name], -size * grad / np.linalg.norm(grad), rtol=1e-3)

  @parameterized.parameters('adam', 'lars')
  def test_the_state_holds_the_learning_rate(self, name):
    tx = edits.optimizer(problem.options(optimizer=name, learning_rate=0.1))
    theta = {'w': jnp.full(4, 2.0)}
    sizes = []
    for rate in (0.1, 0.02, 0.0):
      state = optax.tree.set(tx.init(theta), learning_rate=jnp.float32(rate))
      updates, _ = tx.update({'w': jnp.full(4, 3.0)}, state, theta)
      sizes.append(-float(updates['w'][0]))
    # Adam moves by the rate; LARS moves the leaf by a share of its norm.
    scale = 2.0 if name == 'lars' else 1.0
    np.testing.assert_allclose(
        sizes, scale * np.array([0.1, 0.02, 0.0]), rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
