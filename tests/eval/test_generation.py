"""Greedy generation against running each sequence by itself."""

from absl.testing import absltest
from absl.testing import parameterized
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


def prompts(*lengths, seed=2):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, toy_model.VOCAB, n).tolist() for n in lengths]


class GenerationTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.params = toy_model.init(5)
    self.host = jax.tree.map(np.asarray, self.params)
    self.generator = generation.Generator(
        toy_model.prefill, toy_model.extend, toy_model.unembed)

  @parameterized.parameters(1, 2, 5, 6)
  def test_equals_one_sequence_at_a_time(self, new):
    asked = [[3, 4, 5], [6], [7, 8, 9, 10, 11]]
    got = self.generator(self.params, asked, max_new_tokens=new)
    self.assertEqual(got, [greedy(self.host, p, new) for p in asked])

  def test_several_batches_of_two_widths(self):
    asked = prompts(3, 40, 5, 37, 6, 7, 2)
    got = self.generator(self.params, asked, max_new_tokens=3, slots=40)
    self.assertEqual(got, [greedy(self.host, p, 3) for p in asked])
    found = generation.batches(asked, 3, slots=40)
    self.assertEqual([len(b.prompts) for b in found], [2, 2, 1, 1, 1])
    self.assertEqual([n for _, n in generation.shapes(found)], [3, 2])

  def test_shared_beginnings(self):
    first, second, *rest = prompts(9, 14, 3, 1, 4, 5, 20, 1)
    asked = [first + rest[0], second + rest[1], first + rest[2],
             second + rest[3], rest[4], first, rest[5]]
    labels = ['a', 'b', 'a', 'b', 'alone', 'a', 'one token']
    got = self.generator(
        self.params, asked, max_new_tokens=5, beginnings=labels, slots=128)
    self.assertEqual(got, [greedy(self.host, p, 5) for p in asked])
    (batch,) = generation.batches(asked, 5, beginnings=labels)
    # A prompt that is its label's beginning keeps its last token.
    self.assertEqual(sorted(batch.beginnings.length), [0, 8, 14, 19])

  def test_stops_before_the_stop_token(self):
    asked = [[3, 4, 5], [6]]
    free = self.generator(self.params, asked, max_new_tokens=8)
    stop = free[0][2]
    got = self.generator(
        self.params, asked, max_new_tokens=8, stop_ids=(stop,))
    for new, whole in zip(got, free):
      end = whole.index(stop) if stop in whole else len(whole)
      self.assertEqual(new, whole[:end])

  def test_runs_no_further_once_all_rows_have_stopped(self):
    (free,) = self.generator(self.params, [[3, 4, 5]], max_new_tokens=20)
    calls, decode = [], self.generator.decode
    self.generator.decode = lambda *args, **kwargs: calls.append(1) or decode(
        *args, **kwargs)
    got = self.generator(
        self.params, [[3, 4, 5]], max_new_tokens=20, stop_ids=(free[2],))
    self.assertEqual(got, [free[:free.index(free[2])]])
    self.assertLen(calls, 1)

  def test_compiles_once_for_all_batches_and_models(self):
    traced = []

    def extend(*args):
      traced.append(1)
      return toy_model.extend(*args)

    generator = generation.Generator(
        toy_model.prefill, extend, toy_model.unembed)
    for seed in range(2):
      generator(toy_model.init(seed), prompts(3, 4, 5, 6), max_new_tokens=9,
                slots=48)
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
    self.assertEqual(generation.complete(
        self.generator, self.params, [' w01 w02'], tokenizer,
        max_new_tokens=3, stop_ids=(new[0][0],)), [''])

  def test_no_prompts(self):
    self.assertEqual(self.generator(self.params, []), [])

  def test_bad_requests(self):
    with self.assertRaisesRegex(ValueError, r'prompts of \[1, 0\] tokens'):
      self.generator(self.params, [[3], []])
    with self.assertRaisesRegex(ValueError, 'max_new_tokens=0'):
      self.generator(self.params, [[3]], max_new_tokens=0)


if __name__ == '__main__':
  absltest.main()
