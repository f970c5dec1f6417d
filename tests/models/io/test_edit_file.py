"""The edit alone: bit for bit, both ways, and only in its own base."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from mansu_jax import tree_paths
from mansu_jax.models.io import edit_file
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests.models import tiny

_NAME = 'model.layers.1.mlp.up_proj.weight'
_FUSED = {'family': 'phi3', 'd_model': 64}
_BY_HEAD = {'family': 'gpt_neox', **dict(tiny.LAYER_KINDS)['parallel']}
_TRANSPOSED = {'family': 'gpt2', **dict(tiny.LAYER_KINDS)['learned']}


def _edit(params, share=0.02):
  """Moves some weights of the up projection and one of the queries'."""
  rng = np.random.default_rng(0)
  flat = tree_paths.flatten(params)
  up = np.array(flat['layers/mlp/up'])
  up[1] += (rng.random(up[1].shape) < share) * 0.25
  q = np.array(flat['layers/attn/q'])
  q[2, 3, 1, 2] = -q[2, 3, 1, 2]
  return tree_paths.unflatten(flat | {
      'layers/mlp/up': jnp.asarray(up), 'layers/attn/q': jnp.asarray(q)})


def _bytes(path):
  return {name: (x.dtype, x.shape, x.tobytes()) for name, x in
          safetensors_numpy.load_file(path / 'model.safetensors').items()}


class EditFileTest(parameterized.TestCase):

  def _write(self, dtype='float32', **changes):
    """Both models and the edit, in a new folder."""
    self.root = tiny.temp_dir(self)
    cfg = tiny.config(**changes)
    base = tiny.params(cfg)
    edited = _edit(base)
    for name, params in (('base', base), ('edited', edited)):
      hf_io.write(self.root / name, cfg, params, None, export_dtype=dtype)
    self.file = self.root / 'edit.safetensors'
    edit_file.write(self.file, cfg, base, edited, dtype)
    return cfg

  def _apply(self, name, **options):
    return edit_file.apply(
        self.file, loading.load(self.root / name), **options)

  @parameterized.named_parameters(
      ('float32', 'float32', {}), ('bfloat16', 'bfloat16', {}),
      ('float16', 'float16', {}), ('fused', 'float32', _FUSED),
      ('by_head', 'float32', _BY_HEAD), ('transposed', 'float32', _TRANSPOSED))
  def test_both_ways_bit_for_bit(self, dtype, changes):
    cfg = self._write(dtype, **changes)
    for source, target, reverse in (
        ('base', 'edited', False), ('edited', 'base', True)):
      hf_io.write(self.root / 'made', cfg, self._apply(source, reverse=reverse),
                  None, export_dtype=dtype)
      self.assertEqual(
          _bytes(self.root / 'made'), _bytes(self.root / target))
    self.assertNotEqual(
        _bytes(self.root / 'base'), _bytes(self.root / 'edited'))

  def test_may_be_read_like_the_model(self):
    cfg = self._write()
    base = tiny.params(cfg)
    for mode in 0o755, 0o750:
      self.root.chmod(mode)
      edit_file.write(self.file, cfg, base, base, 'float32')
      self.assertEqual(self.file.stat().st_mode & 0o777, mode & 0o666)

  def test_holds_what_moved_and_nothing_else(self):
    self._write()
    read = edit_file.read(self.file)
    queries = 'model.layers.2.self_attn.q_proj.weight'
    self.assertEqual(set(read.moved), {_NAME, queries})
    index, bits = read.moved[queries]
    self.assertEqual(index.tolist(), [(1 * 6 + 2) * 24 + 3])  # [N H, D]
    self.assertEqual(bits.tolist(), [1 << 31])  # The sign.
    self.assertEqual(read.dtype, 'float32')

  @parameterized.parameters(
      (False, 'base', 'before'), (True, 'edited', 'after'))
  def test_another_model_is_refused_by_tensor(self, reverse, name, side):
    cfg = self._write()
    model = loading.load(self.root / name)
    flat = tree_paths.flatten(model.params)
    flat['layers/mlp/down'] = flat['layers/mlp/down'].at[0, 0, 0].add(1e-6)
    hf_io.write(self.root / name, cfg, tree_paths.unflatten(flat), None)
    message = f'tensor model.layers.0.mlp.down_proj.weight is not .*{side}'
    with self.assertRaisesRegex(ValueError, message):
      self._apply(name, reverse=reverse)

  def test_the_wrong_direction_is_refused(self):
    self._write()
    with self.assertRaisesRegex(ValueError, 'q_proj.* is not.*--apply_reverse'):
      self._apply('edited')

  def test_a_model_with_other_tensors_is_refused(self):
    self._write()
    cfg = tiny.config(num_layers=2)
    hf_io.write(self.root / 'base', cfg, tiny.params(cfg), None)
    with self.assertRaisesRegex(ValueError, 'other tensors: .*layers.2'):
      self._apply('base')

  def test_a_missing_file(self):
    with self.assertRaisesRegex(ValueError, "no file 'nowhere'; wanted"):
      edit_file.read('nowhere')

  @parameterized.named_parameters(
      ('another_file', lambda x, m: (x, {}), 'is no edit'),
      ('format', lambda x, m: (x, m | {'format': '2'}), 'is no edit'),
      ('sums', lambda x, m: (x, m | {'sha256': '{"a": 1}'}), 'is no edit'),
      ('dtype', lambda x, m: (x, m | {'dtype': 'int8'}), 'is no edit'),
      ('no_bits', lambda x, m: (
          {k: v for k, v in x.items() if k != f'{_NAME}.bits'}, m), 'damaged'),
      ('empty', lambda x, m: (x | {
          f'{_NAME}.{part}': x[f'{_NAME}.{part}'][:0]
          for part in ('index', 'bits')}, m), 'damaged'),
      ('another_part', lambda x, m: (x | {
          f'{_NAME}.note': x[f'{_NAME}.index']}, m), 'damaged'),
      ('deep', lambda x, m: (x, m | {'sha256': '[' * 200_000}), 'is no edit'),
      ('float8', lambda x, m: (x | {f'{_NAME}.bits': x[
          f'{_NAME}.bits'].astype(ml_dtypes.float8_e4m3fn)}, m), 'damaged'),
      ('order', lambda x, m: (x | {
          f'{_NAME}.index': x[f'{_NAME}.index'][::-1].copy()}, m), 'damaged'),
      ('width', lambda x, m: (x | {
          f'{_NAME}.bits': x[f'{_NAME}.bits'].astype(np.uint16)}, m),
       'damaged'),
      ('beyond', lambda x, m: (x | {
          f'{_NAME}.index': x[f'{_NAME}.index'] + 10**6}, m),
       'positions up to'),
      ('bits', lambda x, m: (x | {
          f'{_NAME}.bits': x[f'{_NAME}.bits'] ^ 1}, m), 'is not the one'))
  def test_damaged_files(self, change, message):
    self._write()
    with safetensors.safe_open(self.file, framework='np') as file:
      metadata = file.metadata()
    values, metadata = change(
        safetensors_numpy.load_file(self.file), metadata)
    safetensors_numpy.save_file(values, self.file, metadata=metadata)
    with self.assertRaisesRegex(ValueError, message):
      self._apply('base')


if __name__ == '__main__':
  absltest.main()
