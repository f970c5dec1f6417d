"""Packed shared-prefix scoring against one sequence a choice."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import accuracy
from mansu_jax.eval import scoring
from tests.eval import toy_model
from tests.reference import eval_naive

WORDS = ['aa', 'bcd', 'efghij', 'klm', 'nopqrstuv', 'w', 'xyz', 'Sao']


def make_question(i, prompt, choices, answer=0):
  return questions_lib.Question(
      id=f'q{i}', fact=f'f{i}', relation='r', prompt=prompt,
      answer=choices[answer], choices=tuple(choices), use='near')


def some_questions(n=9, seed=0):
  """Questions of varied lengths; two to five choices of one to many tokens."""
  rng = np.random.default_rng(seed)
  text = lambda k: ' '.join(rng.choice(WORDS, k))
  out = []
  for i in range(n):
    wanted, choices = 2 + i % 4, []
    while len(choices) < wanted:
      choice = text(1 + rng.integers(3))
      if choice not in choices:
        choices.append(choice)
    out.append(
        make_question(i, text(1 + rng.integers(9)), choices, i % wanted))
  return out


def make_scorer(**options):
  return scoring.Scorer(toy_model.apply, toy_model.unembed, **options)


def score(questions, params, tokenizer=None, scorer=None, **options):
  tokenizer = tokenizer or toy_model.ToyTokenizer()
  task = accuracy.build_task(questions, tokenizer, **options)
  return accuracy.score(scorer or make_scorer(), params, task)


class ScoreTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('plain', toy_model.ToyTokenizer(), {}, {}),
      ('bos', toy_model.ToyTokenizer(bos=1), {}, {}),
      ('bos_and_eos', toy_model.ToyTokenizer(bos=1, eos=2), {}, {}),
      ('chat', toy_model.ChatTokenizer(bos=1), {'chat': True}, {}),
      ('short_rows', toy_model.ToyTokenizer(), {'row_length': 8}, {}),
      ('one_row', toy_model.ToyTokenizer(), {'row_length': 512}, {}),
      ('row_a_batch', toy_model.ToyTokenizer(), {'token_budget': 1}, {}),
      ('small_blocks', toy_model.ToyTokenizer(), {},
       {'logit_bytes': 7 * 4 * toy_model.VOCAB}))
  def test_equals_one_sequence_a_choice(self, tokenizer, options, scorer):
    questions = some_questions()
    params = toy_model.init()
    got = score(questions, params, tokenizer, make_scorer(**scorer), **options)
    encoded = tokenization.encode_questions(
        questions, tokenizer, chat=options.get('chat', False))
    host = jax.tree.map(np.asarray, params)
    for i, (question, ids) in enumerate(zip(questions, encoded)):
      want = [
          eval_naive.choice_logprob(host, ids.prompt, choice)
          for choice in ids.choices]
      count, answer = len(want), question.answer_index
      best = max(v for j, v in enumerate(want) if j != answer)
      norm = [v / len(c) for v, c in zip(want, question.choices)]
      norm_best = max(v for j, v in enumerate(norm) if j != answer)
      np.testing.assert_allclose(got.logprob[i, :count], want, atol=1e-4)
      self.assertTrue(np.all(got.logprob[i, count:] == -np.inf))
      self.assertAlmostEqual(got.answer_logprob[i], want[answer], delta=1e-4)
      self.assertAlmostEqual(got.margin[i], want[answer] - best, delta=2e-4)
      self.assertEqual(got.correct[i], want[answer] > best)
      self.assertEqual(got.correct_norm[i], norm[answer] > norm_best)

  def test_questions_sharing_a_row_do_not_see_each_other(self):
    questions = some_questions(8)
    params, scorer = toy_model.init(), make_scorer()
    tokenizer = toy_model.ToyTokenizer()
    together = score(questions, params, tokenizer, scorer)
    for i in (0, 5):
      alone = score(questions[i:i + 1], params, tokenizer, scorer)
      count = len(questions[i].choices)
      np.testing.assert_allclose(
          alone.logprob[0], together.logprob[i, :count], atol=1e-5)

  def test_order_of_questions_does_not_matter(self):
    questions = some_questions(8)
    params, tokenizer = toy_model.init(), toy_model.ToyTokenizer()
    tokenizer([q.prompt for q in questions])  # Fixes the ids of words.
    tokenizer([' ' + c for q in questions for c in q.choices])
    forward = score(questions, params, tokenizer)
    backward = score(questions[::-1], params, tokenizer)
    np.testing.assert_allclose(
        forward.margin, backward.margin[::-1], atol=1e-5)

  def test_hand_numbers(self):
    # A model that ignores its input: logits 0, 1, 2, ... over the vocabulary.
    apply = lambda params, tokens, positions, mask: np.ones(
        (*tokens.shape, 1), np.float32)
    unembed = lambda params, hidden: hidden * np.arange(
        5, dtype=np.float32).reshape((1,) * (hidden.ndim - 1) + (5,))
    tokenizer = toy_model.ToyTokenizer()
    tokenizer([' a', ' b'], add_special_tokens=False)  # Ids 3 and 4.
    task = accuracy.build_task(
        [make_question(0, ' a', ['b', 'a']),
         make_question(1, ' b', ['a', 'b'])], tokenizer)
    got = accuracy.score(scoring.Scorer(apply, unembed), {}, task)
    norm = np.log(np.exp(np.arange(5)).sum())
    np.testing.assert_allclose(
        got.logprob, [[4 - norm, 3 - norm], [3 - norm, 4 - norm]], atol=1e-6)
    np.testing.assert_allclose(got.margin, [1, -1], atol=1e-6)
    self.assertEqual(got.correct.tolist(), [True, False])

  def test_tie_is_not_correct(self):
    params = jax.tree.map(lambda x: 0 * x + 1, toy_model.init())
    questions = [make_question(i, 'aa', ['w', 'x', 'y'], i) for i in range(3)]
    got = score(questions, params)
    self.assertEqual(got.correct.tolist(), [False] * 3)
    np.testing.assert_array_equal(got.margin, 0)

  def test_norm_counts_characters(self):
    params, long = toy_model.init(3), 'aa bcd klm w xyz'
    got = score([make_question(0, 'klm', [long, 'w'])], params)
    want = got.logprob[0, 0] / len(long) > got.logprob[0, 1] / 1
    self.assertEqual(bool(got.correct_norm[0]), want)
    self.assertNotEqual(want, bool(got.correct[0]))

  def test_broken_model_is_named(self):
    params = toy_model.init()
    params['up'] = params['up'] * np.nan
    with self.assertRaisesRegex(ValueError, "'q0'.*wanted finite"):
      score(some_questions(3), params)

  def test_no_questions(self):
    got = score([], toy_model.init())
    self.assertEqual(got.correct.shape, (0,))
    self.assertEqual(got.logprob.shape, (0, 0))

  def test_take_selects_a_split(self):
    got = score(some_questions(6), toy_model.init())
    part = got.take([4, 1])
    np.testing.assert_array_equal(part.margin, got.margin[[4, 1]])
    np.testing.assert_array_equal(part.logprob, got.logprob[[4, 1]])

  def test_too_long_for_the_model(self):
    with self.assertRaisesRegex(
        ValueError, 'supports 4 positions; wanted at most 4'):
      score(some_questions(9), toy_model.init(), max_length=4)


class CostTest(absltest.TestCase):

  def test_one_token_choices_add_no_tokens(self):
    tokenizer = toy_model.ToyTokenizer()
    questions = [make_question(i, f'aa w x{i}', ['b', 'c', 'd', 'e'])
                 for i in range(16)]
    task = accuracy.build_task(questions, tokenizer, row_length=48)
    computed = sum(batch.tokens.size for batch in task.batches)
    self.assertEqual(computed, 16 * 3)  # Full rows, prompts only.
    self.assertEqual([p.tolist() for p in task.positions], [[2]] * 16)

  def test_questions_with_one_prompt_share_its_tokens(self):
    tokenizer, params = toy_model.ToyTokenizer(), toy_model.init()
    questions = [
        make_question(0, 'aa w xyz', ['b', 'c d']),
        make_question(1, 'bcd w', ['b', 'c']),
        make_question(2, 'aa w xyz', ['c d', 'e', 'b'], 2)]
    scorer = scoring.Scorer(toy_model.apply, toy_model.unembed)
    task = accuracy.build_task(questions, tokenizer)
    self.assertEqual(task.segments.tolist(), [0, 1, 0])
    got = accuracy.score(scorer, params, task)
    for i, question in enumerate(questions):
      alone = score([question], params, tokenizer)
      count = len(question.choices)
      np.testing.assert_allclose(
          got.logprob[i, :count], alone.logprob[0], atol=1e-5)

  def test_at_most_three_shapes_whatever_the_lengths(self):
    questions = some_questions(40) + [
        make_question(100 + i, 'w ' * k, ['a', 'b'])
        for i, k in enumerate((70, 130, 300, 301, 333))]
    task = accuracy.build_task(questions, toy_model.ToyTokenizer())
    shapes = {batch.tokens.shape for batch in task.batches}
    self.assertLessEqual(len(shapes), 3)
    self.assertTrue(all(width % 8 == 0 for _, width in shapes))

  def test_models_share_one_compiled_program(self):
    traced = []

    def apply(*args):
      traced.append('apply')
      return toy_model.apply(*args)

    def unembed(*args):
      traced.append('unembed')
      return toy_model.unembed(*args)

    scorer = scoring.Scorer(apply, unembed)
    task = accuracy.build_task(
        some_questions(30), toy_model.ToyTokenizer(), token_budget=128)
    self.assertGreater(len(task.batches), 1)
    first = accuracy.score(scorer, toy_model.init(0), task)
    after_one = list(traced)
    second = accuracy.score(scorer, toy_model.init(1), task)
    self.assertEqual(traced, after_one)
    self.assertFalse(np.allclose(first.margin, second.margin))

  def test_blocks_of_logits_fit_the_budget(self):
    sizes = []

    def unembed(params, hidden):
      sizes.append(hidden.size // hidden.shape[-1])
      return toy_model.unembed(params, hidden)

    budget = 10 * 4 * toy_model.VOCAB
    scorer = scoring.Scorer(toy_model.apply, unembed, logit_bytes=budget)
    task = accuracy.build_task(some_questions(30), toy_model.ToyTokenizer())
    accuracy.score(scorer, toy_model.init(), task)
    self.assertEqual(sizes[-1], 10)  # The first call only asks for shapes.


if __name__ == '__main__':
  absltest.main()
