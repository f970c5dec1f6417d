"""Loss on text against token-by-token NumPy."""

import math

from absl.testing import absltest
import jax
import numpy as np

from mansu_jax.data import tokenization
from mansu_jax.data.readers import text as text_lib
from mansu_jax.eval import perplexity
from mansu_jax.eval import scoring
from tests.eval import toy_model
from tests.reference import eval_naive

DOCUMENTS = [
    text_lib.TextDocument(text='aa bcd efghij klm w xyz aa w', kind='prose'),
    text_lib.TextDocument(text='w w xyz', kind='list'),
    text_lib.TextDocument(text='klm aa', kind='prose'),
]


def score(params, tokenizer=None, **options):
  tokenizer = tokenizer or toy_model.ToyTokenizer(bos=1)
  task = perplexity.build_task(DOCUMENTS, tokenizer, **options)
  scorer = scoring.Scorer(toy_model.apply, toy_model.unembed)
  return perplexity.score(scorer, params, task)


class PerplexityTest(absltest.TestCase):

  def test_equals_token_by_token(self):
    params, window = toy_model.init(), 4
    tokenizer = toy_model.ToyTokenizer(bos=1)
    got = score(params, tokenizer, window=window)
    host = jax.tree.map(np.asarray, params)
    want, count = {'prose': 0.0, 'list': 0.0}, {'prose': 0, 'list': 0}
    for document in DOCUMENTS:
      ids = tokenization.encode_prompts([document.text], tokenizer)[0]
      for t in range(1, len(ids)):  # Windows of 4 start every 3 tokens.
        start = (t - 1) // 3 * 3
        want[document.kind] -= eval_naive.next_logprob(
            host, ids[start:t], ids[t])
        count[document.kind] += 1
    self.assertEqual(list(got), ['prose', 'list'])
    for kind in want:
      self.assertAlmostEqual(got[kind].nll, want[kind], delta=1e-3)
      self.assertEqual(got[kind].tokens, count[kind])
      self.assertAlmostEqual(
          got[kind].perplexity, math.exp(want[kind] / count[kind]), delta=0.1)

  def test_every_token_but_the_first_is_scored_whatever_the_window(self):
    params = toy_model.init()
    counts = {
        w: perplexity.pool(score(params, window=w).values()).tokens
        for w in (2, 3, 5, 64)}
    self.assertLen(set(counts.values()), 1)

  def test_pool_weighs_tokens_alike(self):
    got = score(toy_model.init(), window=8)
    pooled = perplexity.pool(got.values())
    nll = sum(x.nll for x in got.values())
    tokens = sum(x.tokens for x in got.values())
    self.assertAlmostEqual(pooled.perplexity, math.exp(nll / tokens))

  def test_uniform_model_has_the_vocabulary_as_perplexity(self):
    params = jax.tree.map(lambda x: 0 * x + 1, toy_model.init())
    got = score(params, window=8)
    for loss in got.values():
      self.assertAlmostEqual(loss.perplexity, toy_model.VOCAB, delta=0.01)

  def test_max_windows_of_each_kind(self):
    got = score(toy_model.init(), window=2, max_windows=2)
    self.assertEqual({k: len(v.window_nll) for k, v in got.items()},
                     {'prose': 2, 'list': 2})

  def test_no_text(self):
    task = perplexity.build_task([], toy_model.ToyTokenizer(), window=8)
    scorer = scoring.Scorer(toy_model.apply, toy_model.unembed)
    self.assertEqual(perplexity.score(scorer, toy_model.init(), task), {})
    with self.assertRaisesRegex(ValueError, 'no text'):
      perplexity.pool([])

  def test_broken_model_is_named(self):
    params = jax.tree.map(lambda x: x * np.inf, toy_model.init())
    with self.assertRaisesRegex(ValueError, "kind 'prose' is not finite"):
      score(params, window=8)

  def test_window_too_short(self):
    with self.assertRaisesRegex(ValueError, 'window is 1 tokens'):
      score(toy_model.init(), window=1)

  def test_overflow_is_infinite_and_not_an_error(self):
    loss = perplexity.TextLoss(
        window_nll=np.array([1e4]), window_tokens=np.array([2]))
    self.assertEqual(loss.perplexity, math.inf)


if __name__ == '__main__':
  absltest.main()
