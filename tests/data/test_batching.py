"""Masks of training sequences, packed choices and the sampler."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import batching
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import text as text_lib
from tests.eval import toy_model


def make(prompt, answer):
  return questions_lib.Question(
      id=prompt, fact='f', relation='r', prompt=prompt, answer=answer,
      choices=('no', answer), use='train')


class SequencesTest(parameterized.TestCase):

  def test_answer_mask_marks_the_predictors_of_the_answer(self):
    tokenizer = toy_model.ToyTokenizer(bos=1)
    got = batching.encode_sequences(
        [make('a b', 'c d'), make('a b c d e f g', 'h')], tokenizer)
    self.assertEqual(got.tokens.shape, (2, 16))  # Longest is 9.
    self.assertEqual(got.tokens.dtype, np.int32)
    self.assertEqual(got.length.tolist(), [5, 9])
    for row, answer in zip(range(2), (' c d', ' h')):
      scored = np.flatnonzero(got.answer_mask[row])
      self.assertEqual(
          tokenizer.decode(got.tokens[row, scored + 1]), answer)
    self.assertEqual(np.flatnonzero(got.answer_mask[0]).tolist(), [2, 3])
    self.assertTrue(np.all(got.tokens[0, 5:] == 0))

  def test_take(self):
    got = batching.encode_sequences(
        [make('a', 'b'), make('c', 'd')], toy_model.ToyTokenizer())
    np.testing.assert_array_equal(
        got.take(np.array([1, 1])).tokens, got.tokens[[1, 1]])

  def test_no_questions(self):
    with self.assertRaisesRegex(ValueError, 'got no sequence'):
      batching.encode_sequences([], toy_model.ToyTokenizer())

  @parameterized.parameters(2, 3, 4, 9, 50)
  def test_windows_predict_every_token_once(self, window):
    tokenizer = toy_model.ToyTokenizer(bos=1)
    texts = ['a b c d e f g h', 'i j', 'k']
    documents = [text_lib.TextDocument(text=t, kind='k') for t in texts]
    got = batching.encode_text(documents, tokenizer, window)
    predicted = []
    for tokens, length, mask in zip(*got):
      self.assertLessEqual(length, window)
      where = np.flatnonzero(mask)
      self.assertEqual(where.tolist(), list(range(length - 1)))
      predicted += tokens[where + 1].tolist()
    want = tokenizer(texts, add_special_tokens=False)['input_ids']
    self.assertEqual(predicted, sum(want, []))

  def test_text_with_nothing_to_predict(self):
    documents = [text_lib.TextDocument(text='a', kind='k')]
    with self.assertRaisesRegex(ValueError, 'has two tokens'):
      batching.encode_text(documents, toy_model.ToyTokenizer(), 8)


class PackChoicesTest(absltest.TestCase):

  def test_one_token_choices_are_never_inputs(self):
    got = batching.pack_choices(tokenization.Encoded([5, 6], [[7], [8]]))
    self.assertEqual(got.segment.tokens.tolist(), [5, 6])
    self.assertEqual(got.predictors, [[1], [1]])

  def test_layout_by_hand(self):
    got = batching.pack_choices(
        tokenization.Encoded([5, 6], [[7, 8, 9], [7, 8], [4, 3], [7, 1]]))
    self.assertEqual(got.segment.tokens.tolist(), [5, 6, 7, 8, 4])
    self.assertEqual(got.segment.positions.tolist(), [0, 1, 2, 3, 2])
    self.assertEqual(got.segment.visible.astype(int).tolist(), [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1]])
    self.assertEqual(got.predictors, [[1, 2, 3], [1, 2], [1, 4], [1, 2]])
    self.assertEqual(got.targets, [[7, 8, 9], [7, 8], [4, 3], [7, 1]])


class BatchSamplerTest(parameterized.TestCase):

  @parameterized.parameters((10, 3), (4, 4), (3, 7), (1, 1))
  def test_each_epoch_is_a_permutation(self, n, batch):
    sampler = batching.BatchSampler(n, batch, seed=0)
    flat = np.concatenate([sampler[step] for step in range(5 * n)])
    epochs = flat[:len(flat) // n * n].reshape(-1, n)
    for epoch in epochs:
      self.assertCountEqual(epoch.tolist(), range(n))
    if n > 4:
      self.assertGreater(len(set(map(tuple, epochs.tolist()))), 1)

  def test_a_step_needs_no_history(self):
    walked = batching.BatchSampler(11, 4, seed=3)
    steps = [walked[step] for step in range(30)]
    resumed = batching.BatchSampler(11, 4, seed=3)
    for step in (29, 7, 0):
      np.testing.assert_array_equal(resumed[step], steps[step])

  def test_seed_matters(self):
    a, b = (batching.BatchSampler(50, 50, seed=s)[0] for s in (0, 1))
    self.assertFalse(np.array_equal(a, b))

  def test_bad_sizes(self):
    for n, batch in ((0, 1), (1, 0)):
      with self.assertRaisesRegex(ValueError, 'wanted both positive'):
        batching.BatchSampler(n, batch, seed=0)
    with self.assertRaisesRegex(IndexError, 'Step -1'):
      batching.BatchSampler(3, 1, seed=0)[-1]


class FavouringSamplerTest(absltest.TestCase):

  def test_favoured_rows_are_drawn_in_epochs(self):
    favoured = np.array([4, 17, 9])
    sampler = batching.FavouringSampler(
        20, 5, 0, favoured=favoured, part=3)
    for step in range(6):
      self.assertCountEqual(sampler[step][:3].tolist(), favoured.tolist())
    rest = np.concatenate([sampler[step][3:] for step in range(10)])
    self.assertCountEqual(rest.tolist(), range(20))

  def test_a_step_needs_no_history_and_the_seed_matters(self):
    make = lambda seed: batching.FavouringSampler(
        20, 5, seed, favoured=np.arange(8), part=2)
    first = make(1)
    steps = [first[step] for step in range(9)]
    for step in (8, 2):
      np.testing.assert_array_equal(make(1)[step], steps[step])
    self.assertFalse(np.array_equal(make(2)[0], steps[0]))


if __name__ == '__main__':
  absltest.main()
