"""A tiny attention model and tokenizers for the tests of data and eval."""

import re

import jax
import jax.numpy as jnp
import numpy as np

VOCAB = 97
WIDTH = 16


def init(seed=0, vocab=VOCAB, scale=0.7):
  rng = np.random.default_rng(seed)
  shapes = {
      'embed': (vocab, WIDTH), 'query': (WIDTH, WIDTH), 'key': (WIDTH, WIDTH),
      'value': (WIDTH, WIDTH), 'place': (512, WIDTH), 'up': (WIDTH, WIDTH)}
  return {
      name: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
      for name, shape in shapes.items()}


def apply(params, tokens, positions, attention_mask):
  """Hidden [B, T, D] of two rounds of masked attention."""
  x = params['embed'][tokens] + params['place'][positions]
  for _ in range(2):
    scores = jnp.einsum(
        'btd,bsd->bts', x @ params['query'], x @ params['key']) / 4
    weights = jax.nn.softmax(jnp.where(attention_mask, scores, -1e30), -1)
    x = x + jnp.einsum('bts,bsd->btd', weights, x @ params['value'])
    x = x + jnp.tanh(x @ params['up'])
    x = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True))
  return x


def unembed(params, hidden):
  return hidden @ params['embed'].T


def prefill(params, tokens, length, *, slots):
  """The toy's cache is its tokens, which it runs again; see `generation`."""
  cache = {'tokens': jnp.full((1, tokens.shape[0], slots), -1, jnp.int32)}
  return extend(params, tokens, jnp.zeros_like(length), length, cache)


def extend(params, tokens, start, length, cache):
  rows = np.arange(tokens.shape[0])
  known = cache['tokens'][0].at[
      rows[:, None], start[:, None] + np.arange(tokens.shape[1])[None]].set(
          tokens, mode='drop')
  size = known.shape[1]
  hidden = apply(
      params, known, np.arange(size)[None],
      np.tril(np.ones((1, size, size), bool)))
  return hidden[rows, start + length - 1], {'tokens': known[None]}


class ToyTokenizer:
  """Words with their leading space, cut in pieces of four characters.

  Called like a transformers tokenizer. Ids come from a growing table, so no
  two pieces share one; `bos` is put before texts, `eos` behind them; with
  `merge`, a colon and the space after it become one token (a tokenizer that
  merges over the border of prompt and answer).
  """

  chat_template = None

  def __init__(self, bos=None, eos=None, merge=False):
    self.bos, self.eos, self.merge = bos, eos, merge
    self._ids = {}

  def _encode(self, text):
    words = re.findall(r': |\s?\S+|\s' if self.merge else r'\s?\S+|\s', text)
    pieces = [w[i:i + 4] for w in words for i in range(0, len(w), 4)]
    return [self._ids.setdefault(p, len(self._ids) + 3) for p in pieces]

  def __call__(self, texts, add_special_tokens=True):
    out = []
    for text in texts:
      ids = self._encode(text)
      if add_special_tokens and self.bos is not None:
        ids = [self.bos, *ids]
      if add_special_tokens and self.eos is not None:
        ids = [*ids, self.eos]
      out.append(ids)
    return {'input_ids': out}

  def decode(self, ids):
    pieces = {i: piece for piece, i in self._ids.items()}
    return ''.join(pieces.get(int(i), '?') for i in ids)


class ChatTokenizer(ToyTokenizer):
  """The same with a chat template."""

  chat_template = '<user> {prompt} <bot>'

  def apply_chat_template(
      self, messages, tokenize=False, add_generation_prompt=True, **_):
    assert not tokenize and add_generation_prompt
    return f'<user> {messages[0]["content"]} <bot> '
