"""A gathered circuit computes what the scattered params compute."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.erasure import spans
from mansu_jax.erasure import transplant
from mansu_jax.models import circuit_layers
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import sites
from mansu_jax.runtime import memory
from tests.models import tiny

# Units a layer, padded with F, N or K, which are out of range.
_NEURONS = np.array([[3, 17, 40], [0, 40, 40], [5, 6, 39]])
_HEADS = np.array([[1, 3], [0, 4], [2, 4]])
_KV_HEADS = np.array([[1], [2], [0]])
_UNITS = {
    'mlp': {'gate': (_NEURONS, 2), 'up': (_NEURONS, 2), 'down': (_NEURONS, 1)},
    'attn': {'q': (_HEADS, 2), 'o': (_HEADS, 1), 'k': (_KV_HEADS, 2),
             'v': (_KV_HEADS, 2)}}


def _slices(layers, fn):
  """{module: {leaf: fn(leaf values, unit ids, unit axis)}} of the circuit."""
  return {module: {name: fn(np.array(layers[module][name]), ids, axis)
                   for name, (ids, axis) in leaves.items()}
          for module, leaves in _UNITS.items()}


def _gather(leaf, ids, axis):
  units = np.moveaxis(leaf, axis, 1)
  out = np.zeros((*ids.shape, *units.shape[2:]), np.float32)
  for layer, row in enumerate(ids):
    for slot, unit in enumerate(row):
      if unit < units.shape[1]:
        out[layer, slot] = units[layer, unit]
  return out


def _onehot(ids, size):
  return (ids[..., None] == np.arange(size)).astype(np.float32)


def _circuit(cfg, layers):
  circuit = _slices(layers, _gather)
  circuit['mlp']['keep'] = 1 - _onehot(_NEURONS, cfg.d_ff).sum(1)
  circuit['attn']['head_onehot'] = _onehot(_HEADS, cfg.num_heads)
  circuit['attn']['kv_onehot'] = _onehot(_KV_HEADS, cfg.num_kv_heads)
  return {'layers': circuit}


def _edited(cfg, weights, seed=5):
  """Params whose circuit units have other values."""
  rng = np.random.default_rng(seed)
  def change(leaf, ids, axis):
    units = np.moveaxis(leaf, axis, 1)
    for layer, row in enumerate(ids):
      for unit in row[row < units.shape[1]]:
        units[layer, unit] += rng.normal(size=units.shape[2:]) * 0.3
    return jnp.asarray(leaf)
  return {**weights, 'layers': {
      **weights['layers'], **_slices(weights['layers'], change)}}


def _loss(cfg, weights, ids, circuit=None, remat=False):
  logits = tiny.logits(cfg, weights, ids, circuit=circuit, remat=remat)
  return -jax.nn.log_softmax(logits)[:, -1, 7].sum()


_full_gradient = jax.jit(jax.grad(_loss, argnums=1), static_argnums=0)
_circuit_gradient = jax.jit(
    jax.grad(_loss, argnums=3), static_argnums=(0, 4))

_GROUPS = (
    ('all', ('gate', 'up', 'down', 'keep', 'q', 'o', 'head_onehot', 'k', 'v',
             'kv_onehot')),
    ('mlp_only', ('gate', 'up', 'down', 'keep')),
    ('query_heads_only', ('q', 'o', 'head_onehot')),
    ('kv_heads_only', ('k', 'v', 'kv_onehot')))


def _only(circuit, names):
  layers = {module: {k: v for k, v in leaves.items() if k in names}
            for module, leaves in circuit['layers'].items()}
  return {'layers': {module: v for module, v in layers.items() if v}}


def _merge(base, edited, names):
  """Base params with the named leaves from the edited ones."""
  layers = {
      module: {k: (edited if k in names else base)['layers'][module][k]
               for k in base['layers'][module]} for module in ('mlp', 'attn')}
  return {**base, 'layers': {**base['layers'], **layers}}


class CircuitTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.cfg = tiny.config()
    self.base = tiny.params(self.cfg)
    self.edited = _edited(self.cfg, self.base)
    self.ids = tiny.tokens(self.cfg)

  @parameterized.named_parameters(*_GROUPS)
  def test_forward_equals_scattered_params(self, names):
    circuit = _only(_circuit(self.cfg, self.edited['layers']), names)
    want = tiny.logits(
        self.cfg, _merge(self.base, self.edited, names), self.ids)
    got = tiny.logits(self.cfg, self.base, self.ids, circuit=circuit)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    without = tiny.logits(self.cfg, self.base, self.ids)
    self.assertGreater(np.abs(want - without).max(), 0.1)

  @parameterized.named_parameters(
      *((*group, False) for group in _GROUPS),
      ('all_rematerialised', _GROUPS[0][1], True))
  def test_gradient_equals_gathered_full_gradient(self, names, remat):
    circuit = _only(_circuit(self.cfg, self.edited['layers']), names)
    merged = _merge(self.base, self.edited, names)
    full = _full_gradient(self.cfg, merged, self.ids)
    want = _slices(full['layers'], _gather)
    got = _circuit_gradient(
        self.cfg, self.base, self.ids, circuit, remat)['layers']
    for module, leaves in want.items():
      for name, value in leaves.items():
        if name in names:
          np.testing.assert_allclose(
              got[module][name], value, rtol=1e-3, atol=1e-4)

  @parameterized.parameters((0, 2), (1, 2), (1, 3), (2, 3))
  def test_a_circuit_may_cover_some_layers(self, start, stop):
    whole = _circuit(self.cfg, self.base['layers'])
    part = jax.tree.map(
        lambda x: x[start:stop],
        _circuit(self.cfg, self.edited['layers']))
    mixed = jax.tree.map(
        lambda w, p: np.concatenate([w[:start], p, w[stop:]]), whole, part)
    want = tiny.logits(self.cfg, self.base, self.ids, circuit=mixed)
    got = tiny.logits(
        self.cfg, self.base, self.ids, circuit=part, circuit_start=start)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    without = tiny.logits(self.cfg, self.base, self.ids)
    self.assertGreater(np.abs(want - without).max(), 0.1)

  @parameterized.parameters((None, 2), (2, 2), (-1, 2), (1, 3))
  def test_refuses_rows_that_are_no_layers(self, start, rows):
    circuit = jax.tree.map(
        lambda x: x[:rows], _circuit(self.cfg, self.edited['layers']))
    with self.assertRaisesRegex(
        ValueError, f'{rows} layers from layer {start} on, but the decoder'
        ' runs layers 0 to 2'):
      tiny.logits(self.cfg, self.base, self.ids, circuit=circuit,
                  circuit_start=start)

  @parameterized.product(layer=(1, 2), remat=(False, True))
  def test_rows_run_again_with_the_layer_of_the_base(self, layer, remat):
    circuit = jax.tree.map(
        lambda x: x[1:], _circuit(self.cfg, self.edited['layers']))
    edited = dict(self.edited, layers=jax.tree.map(
        lambda b, e: jnp.concatenate([b[:1], e[1:]]), self.base['layers'],
        self.edited['layers']))
    rows, size = np.array([1, 0]), len(self.ids)
    lengths = np.full(size, self.ids.shape[1], np.int32)
    prompts = spans.Rows(np.asarray(self.ids), lengths, 0 * lengths, None)
    run = functools.partial(
        decoder.forward, self.cfg, self.base, self.ids, circuit=circuit,
        circuit_start=1, remat=remat)
    got = run(again=circuit_layers.Again(layer, rows))
    np.testing.assert_allclose(got[:size], run(), rtol=1e-5, atol=1e-5)
    before = [transplant.run(self.cfg, params, prompts, layer).before
              for params in (self.base, edited)]
    want = transplant.routed(
        self.cfg, self.base, before[0], edited, before[1], self.base, prompts,
        layer)[:, -1]
    np.testing.assert_allclose(
        got[size:, -1], layers.norm(
            self.cfg, self.base, 'final_norm', want)[rows],
        rtol=1e-4, atol=1e-4)
    self.assertGreater(np.abs(got[size:] - got[:size][rows]).max(), 0.1)

  @parameterized.product(tap=(0, 1, 2), remat=(False, True))
  def test_reads_the_residual_stream_of_a_layer(self, tap, remat):
    circuit = jax.tree.map(
        lambda x: x[1:2], _circuit(self.cfg, self.edited['layers']))
    edited = dict(self.edited, layers=jax.tree.map(
        lambda b, e: jnp.concatenate([b[:1], e[1:2], b[2:]]),
        self.base['layers'], self.edited['layers']))
    site = sites.Site.RESIDUAL
    want, found = decoder.forward_with_taps(
        self.cfg, edited, self.ids, sites=(site,))
    for params, how in (
        (self.base, {'circuit': circuit, 'circuit_start': 1}), (edited, {})):
      got, tapped = decoder.forward(
          self.cfg, params, self.ids, tap=tap, remat=remat, **how)
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
      np.testing.assert_allclose(tapped, found[site][tap], rtol=1e-4, atol=1e-4)

  @parameterized.parameters(({'tap': 3}, 'runs layers 0 to 2'), (
      {'tap': 1, 'again': circuit_layers.Again(1, np.array([0]))},
      'some rows again'))
  def test_refuses_to_read_what_it_cannot(self, options, message):
    circuit = _circuit(self.cfg, self.edited['layers'])
    with self.assertRaisesRegex(ValueError, f'is to be read.*{message}'):
      decoder.forward(
          self.cfg, self.base, self.ids, circuit=circuit, **options)

  @parameterized.parameters(0, 3)
  def test_refuses_to_run_a_layer_again_outside_the_circuit(self, layer):
    circuit = jax.tree.map(
        lambda x: x[1:], _circuit(self.cfg, self.edited['layers']))
    with self.assertRaisesRegex(
        ValueError, f'Layer {layer} is to run again.*layers are 1 to 2'):
      decoder.forward(
          self.cfg, self.base, self.ids, circuit=circuit, circuit_start=1,
          again=circuit_layers.Again(layer, np.array([0])))

  def test_layers_below_the_circuit_are_not_differentiated(self):
    circuit = jax.tree.map(
        lambda x: x[2:], _circuit(self.cfg, self.edited['layers']))
    def loss(circuit):
      hidden = decoder.forward(
          self.cfg, self.base, self.ids, circuit=circuit, circuit_start=2,
          remat=True)
      return hidden.sum()
    lengths = [eqn.params['length']
               for eqn in jax.make_jaxpr(jax.grad(loss))(circuit).jaxpr.eqns
               if eqn.primitive.name == 'scan']
    self.assertEqual(sorted(lengths), [1, 1, 2])  # Below: forward only.

  @pytest.mark.slow
  def test_a_small_device_keeps_less_of_the_forward_pass(self):
    circuit = _circuit(self.cfg, self.edited['layers'])

    def compiled():  # Not `_circuit_gradient`: it would be traced once.
      return jax.jit(jax.grad(lambda circuit: _loss(
          self.cfg, self.base, self.ids, circuit, True))).lower(
              circuit).compile()

    large = compiled()
    with memory.planned(1.0):
      jax.clear_caches()
      small = compiled()
    jax.clear_caches()
    for got, want in zip(
        jax.tree.leaves(small(circuit)), jax.tree.leaves(large(circuit))):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    flops = lambda program: program.cost_analysis()['flops']
    self.assertGreater(flops(small), 1.05 * flops(large))

  def test_no_gradient_of_full_size_exists(self):
    circuit = _circuit(self.cfg, self.edited['layers'])
    full = {a.shape for a in jax.tree.leaves(self.base['layers'])
            if a.ndim > 2}
    grad = lambda weights, circuit: jax.grad(_loss, argnums=3)(
        self.cfg, weights, self.ids, circuit, True)
    made = _shapes_made(jax.make_jaxpr(grad)(self.base, circuit).jaxpr)
    self.assertEmpty(made & full)
    everything = lambda w: jax.grad(_loss, argnums=1)(self.cfg, w, self.ids)
    made = _shapes_made(jax.make_jaxpr(everything)(self.base).jaxpr)
    self.assertEqual(made & full, full)  # The check can see such gradients.

  def test_absent_circuit_costs_nothing(self):
    text = lambda **kwargs: jax.jit(
        lambda w, t: decoder.forward(self.cfg, w, t, **kwargs)).lower(
            self.base, self.ids).as_text()
    self.assertEqual(text(circuit={}), text())
    self.assertEqual(text(circuit={'layers': {}}), text())


def _shapes_made(jaxpr):
  """Shapes of everything computed outside scans and by whole scans."""
  shapes = set()
  for eqn in jaxpr.eqns:
    inner = [v for v in eqn.params.values() if hasattr(v, 'jaxpr')]
    shapes |= {v.aval.shape for v in eqn.outvars}
    for closed in inner:
      shapes |= _shapes_made(closed.jaxpr)
  return shapes


if __name__ == '__main__':
  absltest.main()
