"""Gather and scatter against loops over units."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.models import layout
from tests.circuits import small
from tests.models import tiny
from tests.reference import circuit_naive

_CONFIG = small.config()
_gather = jax.jit(param_mask.gather)  # Eager, each operation is compiled.
_scatter = jax.jit(param_mask.scatter)
_KINDS = (graph.KINDS, ('neurons',), ('heads',), ('kv_heads',))


def _named(naive):
  return {f'layers/{module}/{leaf}': value
          for (module, leaf), value in naive.items()}


def _assert_trees_equal(got, want):
  got, want = tree_paths.flatten(got), tree_paths.flatten(want)
  assert set(got) == set(want), (set(got), set(want))
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)


class MovedTest(absltest.TestCase):

  def test_counts_the_weights_of_each_node_that_differ(self):
    before = small.params(_CONFIG)
    after = jax.tree.map(np.copy, before)
    after['layers']['mlp']['gate'][0, 2, 7] += 1  # [L, D, F]
    after['layers']['mlp']['down'][0, 7, 1:4] += 1  # [L, F, D]
    after['layers']['attn']['q'][1, 5, 3] += 1  # [L, D, N, H]
    after['layers']['attn']['v'][1, 0, 1, 2] += 1  # [L, D, K, H]
    after['embed'] += 1  # Of no node.
    got = param_mask.moved(before, after)
    want = {kind: np.zeros(shape) for kind, shape in graph.shapes(
        _CONFIG).items()}
    want['neurons'][0, 7] = 4
    want['heads'][1, 3] = _CONFIG.d_head
    want['kv_heads'][1, 1] = 1
    for kind, counts in want.items():
      np.testing.assert_array_equal(got[kind], counts, err_msg=kind)


class GatherTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.params = small.params(_CONFIG)

  @parameterized.parameters(*((kinds,) for kinds in _KINDS))
  def test_slices_equal_the_loops(self, kinds):
    nodes = small.circuit(_CONFIG, kinds)
    got = _gather(self.params, param_mask.make_index(nodes))
    want = circuit_naive.gather(self.params, small.members(nodes))
    self.assertNotEmpty(want)
    _assert_trees_equal(got, tree_paths.unflatten(_named(want)))

  @parameterized.parameters(bool, np.uint8)
  def test_keeps_the_dtype_of_the_tree(self, dtype):
    nodes = small.circuit(_CONFIG)
    tree = jax.tree.map(lambda x: (x > 0).astype(dtype), self.params)
    got = _gather(tree, param_mask.make_index(nodes))
    want = circuit_naive.gather(tree, small.members(nodes))
    _assert_trees_equal(got, tree_paths.unflatten(_named(want)))
    self.assertEqual(got['layers']['mlp']['up'].dtype, dtype)

  def test_none_leaves_stay_none(self):
    tree = {'layers': jax.tree.map(lambda x: x, self.params['layers'])}
    tree['layers']['mlp']['up'] = None
    got = _gather(
        tree, param_mask.make_index(small.circuit(_CONFIG)))
    self.assertIsNone(got['layers']['mlp']['up'])
    self.assertEqual(got['layers']['mlp']['down'].shape, (4, 16))

  def test_an_empty_circuit_has_no_slices(self):
    index = param_mask.make_index(graph.empty(_CONFIG))
    self.assertEqual(_gather(self.params, index), {})
    _assert_trees_equal(
        _scatter(self.params, index, {}), self.params)


class ScatterTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = small.params(_CONFIG)
    cls.nodes = small.circuit(_CONFIG)
    cls.index = param_mask.make_index(cls.nodes)
    cls.slices = _gather(cls.params, cls.index)

  def test_scatter_undoes_gather(self):
    zeros = jax.tree.map(np.zeros_like, self.params)
    got = _scatter(zeros, self.index, self.slices)
    owned = _named(circuit_naive.owned(
        self.params, small.members(self.nodes)))
    for name, leaf in tree_paths.flatten(self.params).items():
      want = np.where(owned.get(name, False), leaf, 0)
      np.testing.assert_array_equal(tree_paths.flatten(got)[name], want)
    _assert_trees_equal(
        _scatter(self.params, self.index, self.slices), self.params)

  def test_only_owned_weights_change(self):
    changed = jax.tree.map(lambda x: x + 1, self.slices)
    got = _scatter(self.params, self.index, changed)
    owned = _named(circuit_naive.owned(
        self.params, small.members(self.nodes)))
    for name, leaf in tree_paths.flatten(self.params).items():
      np.testing.assert_array_equal(
          tree_paths.flatten(got)[name] != leaf,
          np.broadcast_to(owned.get(name, False), leaf.shape), name)

  def test_gather_after_scatter_gives_the_slices(self):
    changed = jax.tree.map(lambda x: x + 1, self.slices)
    full = _scatter(self.params, self.index, changed)
    _assert_trees_equal(_gather(full, self.index), changed)

  def test_every_node_may_be_in_the_circuit(self):
    whole = small.random_circuit(_CONFIG, share=2.0)
    index = param_mask.make_index(whole)
    zeros = jax.tree.map(np.zeros_like, self.params)
    got = _scatter(zeros, index, _gather(self.params, index))
    for module in ('mlp', 'attn'):
      _assert_trees_equal(
          got['layers'][module], self.params['layers'][module])

  def test_keeps_the_dtype_of_the_params(self):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), self.params)
    got = _scatter(half, self.index, self.slices)
    self.assertEqual(
        {x.dtype for x in jax.tree.leaves(got)}, {jnp.dtype(jnp.bfloat16)})


class DecoderTest(parameterized.TestCase):

  @parameterized.named_parameters(('llama', {}), *tiny.LAYER_KINDS)
  def test_a_circuit_is_the_model_with_its_slices(self, changes):
    cfg = small.config(num_layers=3, **changes)
    params, ids = small.params(cfg), tiny.tokens(cfg)
    nodes = small.random_circuit(cfg, share=0.4)
    index = param_mask.make_index(nodes)
    slices = jax.tree.map(lambda x: 1.5 * x + 0.1, _gather(params, index))
    got = tiny.logits(
        cfg, params, ids, circuit=param_mask.collection(
            slices, index, param_mask.make_replacement_masks(nodes)),
        circuit_start=nodes.span[0])
    want = tiny.logits(cfg, _scatter(params, index, slices), ids)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    self.assertGreater(np.abs(want - tiny.logits(cfg, params, ids)).max(), 0.1)


class MaskTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = small.params(_CONFIG)
    cls.nodes = small.circuit(_CONFIG)
    cls.index = param_mask.make_index(cls.nodes)
    cls.slices = _gather(cls.params, cls.index)

  def test_full_mask_equals_the_weights_of_the_units(self):
    got = tree_paths.flatten(param_mask.full_mask(self.nodes, self.params))
    owned = _named(circuit_naive.owned(
        self.params, small.members(self.nodes)))
    for name, leaf in tree_paths.flatten(self.params).items():
      self.assertEqual(got[name].ndim, leaf.ndim)
      np.testing.assert_array_equal(
          np.broadcast_to(got[name], leaf.shape),
          np.broadcast_to(owned.get(name, False), leaf.shape), name)

  def test_slice_mask_picks_each_leafs_units(self):
    rng = np.random.default_rng(0)
    shapes = graph.shapes(_CONFIG)
    movable = {name: rng.random(shapes[kind]) < 0.5
               for name, (kind, _) in layout.UNIT_AXIS.items()}
    got = tree_paths.flatten(param_mask.slice_mask(movable, self.index))
    slices = tree_paths.flatten(self.slices)
    self.assertEqual(set(got), set(slices))
    for name, mask in got.items():
      kind, _ = layout.UNIT_AXIS[name]
      want = [movable[name][node] for node in zip(
          *np.nonzero(self.nodes[kind]))]
      self.assertEqual(mask.ndim, slices[name].ndim)
      np.testing.assert_array_equal(mask.ravel(), want, name)

  def test_replacement_masks_by_hand(self):
    replacement_masks = param_mask.make_replacement_masks(self.nodes)['layers']
    keep = np.ones((2, 24))
    for node in ((0, 0), (0, 7), (0, 23), (1, 7)):
      keep[node] = 0
    np.testing.assert_array_equal(replacement_masks['mlp']['keep'], keep)
    np.testing.assert_array_equal(replacement_masks['attn']['head_onehot'], [
        [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]])
    np.testing.assert_array_equal(
        replacement_masks['attn']['kv_onehot'], [[[0, 0]], [[0, 1]]])

  @parameterized.parameters(
      (('neurons',), {'mlp/keep'}), (('heads',), {'attn/head_onehot'}),
      (('kv_heads',), {'attn/kv_onehot'}), ((), set()))
  def test_replacement_masks_have_only_kinds_of_the_circuit(self, kinds, names):
    masks = param_mask.make_replacement_masks(
        small.circuit(_CONFIG, kinds))
    self.assertEqual(
        {n.removeprefix('layers/') for n in tree_paths.flatten(masks)
         if n}, names)

  def test_collection_holds_spread_slices_and_masks(self):
    replacement_masks = param_mask.make_replacement_masks(self.nodes)
    got = jax.jit(param_mask.collection)(
        self.slices, self.index, replacement_masks)
    want = _named(circuit_naive.spread(
        self.params, small.members(self.nodes)))
    _assert_trees_equal(got, tree_paths.unflatten(
        {**want, **tree_paths.flatten(replacement_masks)}))

  def test_gradient_of_spread_takes_each_unit_once(self):
    weights = jax.tree.map(
        lambda x: np.random.default_rng(x.size).normal(size=x.shape),
        param_mask.spread(self.slices, self.index))
    total = lambda slices: sum(jax.tree.leaves(jax.tree.map(
        lambda x, w: (x * w).sum(),
        param_mask.spread(slices, self.index), weights)))
    got = jax.jit(jax.grad(total))(self.slices)
    full = _scatter(jax.tree.map(np.zeros_like, self.params), self.index, got)
    want = tree_paths.flatten(weights)
    for (module, leaf), value in circuit_naive.spread(
        jax.device_get(full), small.members(self.nodes)).items():
      expected = want[f'layers/{module}/{leaf}']
      held = value != 0  # Padding has no gradient to give.
      np.testing.assert_allclose(value[held], expected[held], rtol=1e-6)
      self.assertEqual(held.sum(), got['layers'][module][leaf].size)


if __name__ == '__main__':
  absltest.main()
