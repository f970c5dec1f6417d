"""Tiny models for the tests: configs, random params, GGUF files, circuits."""

import functools
import pathlib
import tempfile

import gguf
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder

MERGES = ['Ġ Ġ', 't h', 'i n']
VOCAB = (
    ['<pad>', '<s>', '</s>']
    + [chr(c) for c in range(ord('!'), ord('~') + 1)] + ['Ġ', 'Ċ']
    + [merge.replace(' ', '') for merge in MERGES] + ['<a>', '<b>'])
KINDS = [3] * 3 + [1] * (len(VOCAB) - 3)

# Changes of the config that a GGUF file can hold, by name.
GGUF_CASES = (
    ('tied', {}),
    ('untied', {'tie_embeddings': False}),
    ('one_kv_head', {'num_kv_heads': 1, 'norm_eps': 1e-6}),
    ('wide_heads', {'d_head': 10, 'rope_theta': 500_000.0}),
    ('linear', {'rope_scaling': config_lib.RopeScaling(
        kind='linear', factor=4.0)}))


# What layers of the families compute: changes of the config, by name.
LAYER_NORM = {
    'norm': 'layer', 'gated': False, 'qkv_bias': True, 'out_bias': True,
    'activation': 'gelu', 'num_kv_heads': 4}
POST_NORMS = {
    'post_norms': True, 'norm_offset': 1.0, 'activation': 'gelu_tanh'}
LAYER_KINDS = (
    ('windows', {'windows': (0, 3, 2)}),
    ('bias_and_norm', {'qkv_bias': True, 'qk_norm': True}),
    ('post_norms', POST_NORMS | {
        'attn_soft_cap': 2.0, 'logits_soft_cap': 3.0, 'embed_scale': 4.0,
        'query_scale': 0.3, 'windows': (2, 0, 2), 'window_rope_theta': 100.0}),
    ('partly_rotary', {'d_rotary': 2}),
    ('learned', LAYER_NORM | {'positions': 'learned'}),
    ('parallel', LAYER_NORM | {'parallel': True, 'd_rotary': 2}))


def temp_dir(test):
  """A directory that is removed after the test."""
  made = tempfile.TemporaryDirectory()
  test.addCleanup(made.cleanup)
  return pathlib.Path(made.name)


def class_dir(case):
  """As `temp_dir`, for all tests of a class."""
  made = tempfile.TemporaryDirectory()
  case.addClassCleanup(made.cleanup)
  return pathlib.Path(made.name)


def config(**changes):
  fields = {
      'vocab_size': len(VOCAB), 'd_model': 24, 'num_layers': 3, 'num_heads': 4,
      'num_kv_heads': 2, 'd_head': 6, 'd_ff': 40, 'tie_embeddings': True,
      'max_position': 64, 'bos_token_id': 1, 'eos_token_id': 2} | changes
  return config_lib.ModelConfig(**fields)


def params(cfg, seed=0, scale=0.3):
  """Random params large enough that every part matters; norms near 1."""
  rng = np.random.default_rng(seed)
  return jax.tree.map_with_path(
      lambda path, a: jnp.asarray(
          rng.normal(size=a.shape) * scale + path[-1].key.endswith('_norm'),
          jnp.float32), decoder.abstract(cfg))


def tokens(cfg, batch=2, length=9, seed=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, cfg.vocab_size, (batch, length), dtype=np.int32)


@functools.partial(jax.jit, static_argnames=(
    'cfg', 'remat', 'circuit_start', 'dtype'))
def logits(cfg, weights, ids, **kwargs):
  return decoder.unembed(
      cfg, weights, decoder.forward(cfg, weights, ids, **kwargs))


def pair_rotary(rows, heads):
  """llama.cpp's row order, written as its converter does."""
  shape = (heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
  return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)


def _torch_rows(cfg, weights, layer):
  """{GGUF name: torch matrix} of one layer, by hand."""
  attn = {k: np.asarray(v[layer]) for k, v in weights['layers']['attn'].items()}
  mlp = {k: np.asarray(v[layer]) for k, v in weights['layers']['mlp'].items()}
  flat = lambda w: w.reshape(cfg.d_model, -1).T
  rows = {
      'attn_q': pair_rotary(flat(attn['q']), cfg.num_heads),
      'attn_k': pair_rotary(flat(attn['k']), cfg.num_kv_heads),
      'attn_v': flat(attn['v']),
      'attn_output': attn['o'].reshape(-1, cfg.d_model).T,
      'ffn_gate': mlp['gate'].T, 'ffn_up': mlp['up'].T,
      'ffn_down': mlp['down'].T,
      'attn_norm': np.asarray(weights['layers']['attn_norm'][layer]),
      'ffn_norm': np.asarray(weights['layers']['mlp_norm'][layer])}
  return {f'blk.{layer}.{name}.weight': value for name, value in rows.items()}


def gguf_tensors(cfg, weights):
  out = {'token_embd.weight': np.asarray(weights['embed']),
         'output_norm.weight': np.asarray(weights['final_norm'])}
  if not cfg.tie_embeddings:
    out['output.weight'] = np.asarray(weights['lm_head'])
  for layer in range(cfg.num_layers):
    out |= _torch_rows(cfg, weights, layer)
  return {name: np.ascontiguousarray(rows) for name, rows in out.items()}


def write_gguf_of(path, arch, add, rows, raw=()):
  """Writes a file.

  Args:
    path: of the file.
    arch: its architecture.
    add: called with the writer, for metadata.
    rows: {tensor name: array}.
    raw: {tensor name: (bytes, storage format)}, instead of some arrays.
  """
  writer = gguf.GGUFWriter(path, arch)
  add(writer)
  for name, values in rows.items():
    if name in raw:
      writer.add_tensor(name, raw[name][0], raw_dtype=raw[name][1])
    else:
      writer.add_tensor(name, values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def write_gguf(path, cfg, weights, *, architecture='llama', extra=None,
               change_tensors=lambda tensors: tensors, raw=None,
               add_bos=False, pre='smollm', vocab=VOCAB, merges=MERGES,
               kinds=KINDS, bos_and_eos=(1, 2), add=lambda writer: None):
  """Writes a float32 GGUF with a byte-level tokenizer of few tokens."""
  def add_all(writer):
    writer.add_block_count(cfg.num_layers)
    writer.add_context_length(cfg.max_position)
    writer.add_embedding_length(cfg.d_model)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.num_kv_heads)
    writer.add_key_length(cfg.d_head)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    if cfg.rope_scaling is not None:
      writer.add_rope_scaling_type(gguf.RopeScalingType(cfg.rope_scaling.kind))
      writer.add_rope_scaling_factor(cfg.rope_scaling.factor)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(bos_and_eos[0])
    writer.add_eos_token_id(bos_and_eos[1])
    writer.add_add_bos_token(add_bos)
    add(writer)
    for key, value in (extra or {}).items():
      writer.add_uint32(key, value)

  write_gguf_of(path, architecture, add_all, change_tensors(
      gguf_tensors(cfg, weights)), raw or {})
