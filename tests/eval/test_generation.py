"""Greedy generation against running each sequence by itself."""

from absl.testing import absltest
import jax
import numpy as np

from mansu_jax.eval import generation
from tests.eval import toy_model
from tests.reference import eval_naive


def greedy(params, ids, steps):
  """One token at a time from loop-written hidden states."""
  ids, out = list(ids), []
  for _ in range(steps):
    state = np.array(eval_naive.hidden_states(params, ids)[-1])
    out.append(int(np.argmax(params['embed'] @ state)))
    ids.append(out[-1])
  return out


class GenerationTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.params = toy_model.init(5)
    self.generator = generation.Generator(toy_model.apply, toy_model.unembed)

  def test_equals_one_sequence_at_a_time(self):
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11]]
    got = self.generator(self.params, prompts, max_new_tokens=6)
    host = jax.tree.map(np.asarray, self.params)
    self.assertEqual(got, [greedy(host, p, 6) for p in prompts])

  def test_stops_before_the_stop_token(self):
    prompts = [[3, 4, 5], [6]]
    free = self.generator(self.params, prompts, max_new_tokens=8)
    stop = free[0][2]
    got = self.generator(
        self.params, prompts, max_new_tokens=8, stop_ids=(stop,))
    for new, whole in zip(got, free):
      end = whole.index(stop) if stop in whole else len(whole)
      self.assertEqual(new, whole[:end])

  def test_compiles_once_for_all_steps_and_models(self):
    traced = []

    def apply(*args):
      traced.append(1)
      return toy_model.apply(*args)

    generator = generation.Generator(apply, toy_model.unembed)
    for seed in range(2):
      generator(toy_model.init(seed), [[3, 4], [5]], max_new_tokens=5)
    self.assertLen(traced, 1)

  def test_complete_returns_text(self):
    tokenizer = toy_model.ToyTokenizer()
    tokenizer([f' w{i:02}' for i in range(94)])  # Fills the vocabulary.
    got = generation.complete(
        self.generator, self.params, [' w01 w02', ' w03'], tokenizer,
        max_new_tokens=3)
    new = self.generator(
        self.params, tokenizer([' w01 w02', ' w03'])['input_ids'],
        max_new_tokens=3)
    self.assertEqual(got, [tokenizer.decode(n) for n in new])
    self.assertTrue(all(len(text) == 3 * 4 for text in got))

  def test_no_prompts(self):
    self.assertEqual(self.generator(self.params, []), [])

  def test_bad_requests(self):
    with self.assertRaisesRegex(ValueError, r'prompts of \[1, 0\] tokens'):
      self.generator(self.params, [[3], []])
    with self.assertRaisesRegex(ValueError, 'max_new_tokens=0'):
      self.generator(self.params, [[3]], max_new_tokens=0)


if __name__ == '__main__':
  absltest.main()
