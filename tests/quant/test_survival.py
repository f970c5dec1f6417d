"""Survival statistics by hand and against loops."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax.quant import affine
from mansu_jax.quant import survival as survival_lib
from tests.reference import quant_naive

_LAYOUT = {
    'w': quant.BlockLayout(memory='DF', out='F', inp='D'), 'norm': None}


def _reference(before, after, name):
  """Counts, ratios, carried share and cosine, by loops."""
  old = quant_naive.quantize(before, name)
  new = quant_naive.quantize(after, name)
  counts, ratios = [0, 0, 0], []
  for i in np.ndindex(before.shape):
    moved = before[i] != after[i]
    changed = old[0][i] != new[0][i]
    if name == 'fp4' and old[2][i] == 0 and new[2][i] == 0:
      changed = False
    counts[0] += moved
    counts[1] += changed
    counts[2] += moved and not changed
    if moved:
      lo, hi = quant_naive.interval(before[i], old[1][i], name)
      up = after[i] > before[i]
      distance = hi - before[i] if up else before[i] - lo
      ratios.append(abs(after[i] - before[i]) / distance)
  edit = (after - before).astype(np.float64).ravel()
  left = (new[2] - old[2]).astype(np.float64).ravel()
  cosine = edit @ left / np.linalg.norm(edit) / np.linalg.norm(left)
  return counts, ratios, edit @ left / (edit @ edit), cosine


class SurvivalTest(parameterized.TestCase):

  @parameterized.product(
      name=('nf4', 'fp4', 'int8', 'int4_g128'), size=(1e-3, 1e-2))
  def test_equals_loops(self, name, size):
    rng = np.random.default_rng(0)
    before = (rng.normal(size=(32, 12)) * 0.02).astype(np.float32)
    edit = size * rng.normal(size=before.shape) * (rng.random((32, 12)) < 0.5)
    after = before + edit.astype(np.float32)
    counts, ratios, carried, cosine = _reference(before.T, after.T, name)
    tree = lambda x: {'w': jnp.asarray(x), 'norm': jnp.ones(5)}
    got = survival_lib.survival(
        tree(before), tree(after), name, _LAYOUT, total_params=1000)
    json.dumps(got)
    self.assertEqual(list(got['leaves']), ['w'])
    for statistics in (got['total'], got['leaves']['w']):
      np.testing.assert_allclose(
          [statistics[k] for k in
           ('moved', 'changed_codes', 'moved_unchanged')],
          np.array(counts) / 1000, rtol=1e-12)
      np.testing.assert_allclose(
          statistics['median_ratio'], np.median(ratios), rtol=1e-4)
      np.testing.assert_allclose(statistics['carried'], carried, rtol=1e-5)
      np.testing.assert_allclose(statistics['cosine'], cosine, rtol=1e-5)
      self.assertEqual(sum(statistics['histogram']), counts[0])
    with np.errstate(divide='ignore'):
      past = np.sum(np.log10(ratios) >= 0)
    at = got['edges'].index(0.0)
    self.assertEqual(sum(got['total']['histogram'][at:]), past)

  def test_by_hand(self):
    # At scale 7, integers are codes: 0.2 stays below its boundary at 0.5.
    tree = lambda w, norm: {
        'w': jnp.array(w)[:, None], 'norm': jnp.full(1, norm)}
    before = tree([7.0, 0.0, 2.0, -7.0], 1.0)
    after = tree([7.0, 0.2, 3.0, -6.9], 0.0)
    got = survival_lib.survival(before, after, 'int4_g128', _LAYOUT)
    total = got['total']
    self.assertEqual(total['size'], 5)
    self.assertAlmostEqual(total['moved'], 4 / 5)
    self.assertAlmostEqual(total['changed_codes'], 1 / 5)
    self.assertAlmostEqual(total['moved_unchanged'], 2 / 5)
    # 0.2 / 0.5, 1 / 0.5 and 0.1 / 0.5.
    self.assertAlmostEqual(total['median_ratio'], 0.4, places=5)
    # 1 of 0.04 + 1 + 0.01.
    self.assertAlmostEqual(total['carried'], 1 / 1.05, places=5)
    self.assertAlmostEqual(total['cosine'], 1 / np.sqrt(1.05), places=5)
    self.assertAlmostEqual(got['leaves']['norm']['moved'], 1 / 5)

  def test_distances_beyond_an_end_code_are_infinite(self):
    before = {'w': jnp.array([[7.0], [6.8]]), 'norm': None}
    after = {'w': jnp.array([[7.0], [6.9]]), 'norm': None}
    total = survival_lib.survival(before, after, 'int4_g128', _LAYOUT)['total']
    self.assertEqual(total['median_ratio'], 0)
    self.assertEqual(total['histogram'][0], 1)

  @parameterized.parameters(1, 2, 5001, 5002)
  def test_medians_are_accurate_and_parts_add_up(self, size):
    rng = np.random.default_rng(size)
    ratios = np.exp(4 * rng.normal(size=size)).astype(np.float32)
    ratios[size // 2:size // 2 + size // 9] = np.inf
    ratios[:size // 7] = 0
    count = survival_lib._count_ratios
    parts = survival_lib._merge_ratios(
        list(map(count, np.array_split(rng.permutation(ratios), 4))))
    whole = count(ratios)
    np.testing.assert_allclose(whole.median, np.median(ratios), rtol=1.3e-4)
    self.assertEqual(whole.counts.sum(), size)
    self.assertEqual(whole.histogram.sum(), size)
    for one, other in zip(whole, parts):
      np.testing.assert_allclose(one, other, rtol=1e-12)
    self.assertIsNone(count(ratios[:0]).median)

  def test_nothing_moved(self):
    params = {'w': jnp.ones((4, 4)), 'norm': jnp.ones(3)}
    total = survival_lib.survival(params, params, 'nf4', _LAYOUT)['total']
    self.assertEqual(total['moved'], 0)
    self.assertIsNone(total['median_ratio'])
    self.assertIsNone(total['carried'])
    self.assertIsNone(total['cosine'])

  def test_quantization_preserves_a_diffuse_edit_under_noise(self):
    rng = np.random.default_rng(0)
    before = {'w': jnp.asarray(rng.normal(size=(512, 512)), jnp.float32),
              'norm': None}
    after = {'w': before['w'] + 1e-3 * np.sign(
        rng.normal(size=(512, 512))).astype(np.float32), 'norm': None}
    total = survival_lib.survival(before, after, 'nf4', _LAYOUT)['total']
    self.assertLess(total['changed_codes'], 0.02)
    self.assertAlmostEqual(total['carried'], 1.0, delta=0.1)
    self.assertLess(total['cosine'], 0.1)

  def test_statistics_of_each_layer(self):
    layout = {'w': quant.BlockLayout(memory='LDF', out='F', inp='D')}
    rng = np.random.default_rng(3)
    before = (rng.normal(size=(3, 32, 12)) * 0.02).astype(np.float32)
    after = before.copy()
    after[1] += 0.01 * rng.normal(size=(32, 12))
    after[2, :5] *= 0.5
    whole = survival_lib.survival(
        {'w': before}, {'w': after}, 'nf4', layout)['leaves']['w']
    for layer in range(3):
      alone = survival_lib.survival(
          {'w': before[layer:layer + 1]}, {'w': after[layer:layer + 1]},
          'nf4', layout)['total']
      for key, share in (('moved', 3), ('changed_codes', 3)):
        self.assertAlmostEqual(
            share * whole['by_layer'][key][layer], alone[key])
      got, want = whole['by_layer']['cosine'][layer], alone['cosine']
      if want is None:
        self.assertIsNone(got)
      else:
        self.assertAlmostEqual(got, want, places=5)
    self.assertEqual(whole['by_layer']['moved'][0], 0)

  def test_codes_of_calibrated_schemes(self):
    rng = np.random.default_rng(4)
    before = (rng.normal(size=(32, 12)) * 0.02).astype(np.float32)
    after = before + np.float32(0.004) * (rng.random((32, 12)) < 0.3)
    codes = [{'w': affine.round_to_nearest(jnp.asarray(x.T))}
             for x in (before, after)]
    tree = lambda x: {'w': jnp.asarray(x), 'norm': jnp.ones(5)}
    got = survival_lib.survival(
        tree(before), tree(after), 'gptq_g128', _LAYOUT, codes=codes)['total']
    old, new = (dict(zip(('code', 'scale', 'zero'), map(
        np.float64, (c['w'].code, *affine.spread(c['w']))))) for c in codes)
    value = lambda c: (c['code'] - c['zero']) * c['scale']
    edit, left = (after - before).T.astype(float), value(new) - value(old)
    self.assertAlmostEqual(got['moved'] * 389, np.sum(edit != 0))
    self.assertAlmostEqual(
        got['changed_codes'] * 389, np.sum(
            old['code'] - old['zero'] != new['code'] - new['zero']))
    self.assertAlmostEqual(
        got['carried'], np.sum(edit * left) / np.sum(edit * edit), places=4)
    end = (old['code'] + 0.5 - old['zero']) * old['scale']
    end[old['code'] == 15] = np.inf
    ratio = (edit / (end - before.T))[edit != 0]
    self.assertAlmostEqual(
        got['median_ratio'], np.median(ratio), delta=1e-3 * np.median(ratio))

  def test_refuses_other_shapes(self):
    with self.assertRaisesRegex(ValueError, r"unlearned.*\(2,\) at 'norm'"):
      survival_lib.survival(
          {'w': jnp.ones((4, 4)), 'norm': jnp.ones(3)},
          {'w': jnp.ones((4, 4)), 'norm': jnp.ones(2)}, 'nf4', _LAYOUT)


if __name__ == '__main__':
  absltest.main()
