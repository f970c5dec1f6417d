"""The llama.cpp engine on a stub of its library, which needs no llama.cpp."""

import ctypes
import pathlib
import types
from unittest import mock

from absl.testing import absltest
import numpy as np
from scipy import special

from mansu_jax.deployment import llamacpp
from mansu_jax.deployment import scoring_plan

_VOCAB = 16


class _Library:
  """llama.cpp with a model whose next token depends on token and position."""

  def __init__(self):
    rng = np.random.default_rng(0)
    self.table = rng.normal(size=(64, _VOCAB, _VOCAB)).astype(np.float32)
    self.freed, self.batch_sizes, self.status = [], [], 0
    for name in ('llama_model_default_params', 'llama_context_default_params'):
      setattr(self, name, types.SimpleNamespace)
    for name in ('llama_model_load_from_file', 'llama_init_from_model',
                 'llama_model_get_vocab', 'llama_get_memory'):
      setattr(self, name, lambda *unused: 1)
    for name in ('llama_batch_free', 'llama_free', 'llama_model_free'):
      setattr(self, name, lambda arg, name=name: self.freed.append(name))
    self.llama_memory_clear = lambda *unused: None
    self.llama_vocab_n_tokens = lambda vocab: _VOCAB

  def llama_batch_init(self, size, embd, sequences):
    del embd
    empty = lambda: [None] * size
    return types.SimpleNamespace(
        token=empty(), pos=empty(), n_seq_id=empty(), logits=empty(),
        seq_id=[[None] * sequences for _ in range(size)], n_tokens=0)

  def llama_decode(self, context, batch):
    """Stores the logits of the rows that ask for them, in their order."""
    del context
    n = batch.n_tokens
    self.batch_sizes.append(n)
    sequences = [ids[0] for ids in batch.seq_id[:n]]
    for sequence in set(sequences):  # Each sequence starts at position 0.
      positions = [p for p, s in zip(batch.pos, sequences) if s == sequence]
      assert positions == list(range(len(positions))), positions
    self._logits = np.ascontiguousarray([
        self.table[batch.pos[i], batch.token[i]] for i in range(n)
        if batch.logits[i]])
    return self.status

  def llama_get_logits(self, context):
    del context
    return self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


class EngineTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.library = _Library()
    self.enterContext(mock.patch.object(
        llamacpp, '_library', lambda: self.library))

  def _requests(self, count):
    rng = np.random.default_rng(1)
    for _ in range(count):
      length = int(rng.integers(2, 40))
      tokens = tuple(rng.integers(0, _VOCAB, length).tolist())
      # Positions repeat where several targets follow one prefix.
      positions = np.sort(rng.integers(0, length, 6))
      yield scoring_plan.Request(
          tokens, positions, rng.integers(0, _VOCAB, 6))

  def test_scores_targets_at_their_positions(self):
    requests = list(self._requests(100))
    with llamacpp.Engine(pathlib.Path('x.gguf'), 40) as engine:
      got = engine(requests)
    self.assertGreater(len(self.library.batch_sizes), 2)
    self.assertEqual(sum(self.library.batch_sizes),
                     sum(len(r.tokens) for r in requests))
    for request, scores in zip(requests, got):
      tokens = np.array(request.tokens)[request.positions]
      logits = self.library.table[request.positions, tokens]
      want = special.log_softmax(logits.astype(np.float64), axis=-1)
      np.testing.assert_allclose(
          scores, want[np.arange(6), request.targets], rtol=1e-12)
    self.assertEqual(self.library.freed, [
        'llama_batch_free', 'llama_free', 'llama_model_free'])

  def test_a_failed_decode_is_an_error(self):
    self.library.status = 1
    with llamacpp.Engine(pathlib.Path('x.gguf'), 40) as engine:
      with self.assertRaisesRegex(ValueError, r'decode a batch \(status 1\)'):
        engine(list(self._requests(1)))


if __name__ == '__main__':
  absltest.main()
