"""Packed shared-prefix scoring against one sequence a choice."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import accuracy
from mansu_jax.eval import scoring
from tests.eval import toy_model
from tests.reference import eval_naive


def make_question(i, prompt, choices, answer=0):
  return questions_lib.Question(
      id=f'q{i}', fact=f'f{i}', relation='r', prompt=prompt,
      answer=choices[answer], choices=tuple(choices), use='near')


def some_questions(n=23, seed=0):
  """Questions of varied lengths; choices of one to many tokens."""
  rng = np.random.default_rng(seed)
  words = ['aa', 'bcd', 'efghij', 'klm', 'nopqrstuv', 'w', 'xyz', 'Sao']
  text = lambda k: ' '.join(rng.choice(words, k))
  out = []
  for i in range(n):
    wanted = 2 + i % 4
    choices = []
    while len(choices) < wanted:
      choice = text(1 + rng.integers(3))
      if choice not in choices:
        choices.append(choice)
    out.append(make_question(i, text(1 + rng.integers(9)), choices, i % wanted))
  return out


def causal_hidden(params, ids):
  ids = np.array(ids)[None]
  places = np.arange(ids.shape[1])[None]
  mask = np.tril(np.ones((1, ids.shape[1], ids.shape[1]), bool))
  return toy_model.apply(params, ids, places, mask)[0]


def make_scorer(**kwargs):
  return scoring.Scorer(toy_model.apply, toy_model.unembed, **kwargs)


class AccuracyTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('plain', toy_model.ToyTokenizer(), {}),
      ('bos', toy_model.ToyTokenizer(bos=1), {}),
      ('bos_and_eos', toy_model.ToyTokenizer(bos=1, eos=2), {}),
      ('chat', toy_model.ChatTokenizer(bos=1), {'chat': True}),
      ('short_rows', toy_model.ToyTokenizer(), {'row_length': 8}),
      ('one_row', toy_model.ToyTokenizer(), {'row_length': 512}),
      ('one_row_a_batch', toy_model.ToyTokenizer(), {'token_budget': 1}))
  def test_equals_one_sequence_a_choice(self, tokenizer, options):
    questions = some_questions()
    params = toy_model.init()
    task = accuracy.build_task(questions, tokenizer, **options)
    got = accuracy.score(make_scorer(), params, task)
    encoded = tokenization.encode_questions(
        questions, tokenizer, chat=options.get('chat', False))
    for i, (question, ids) in enumerate(zip(questions, encoded)):
      want = [
          eval_naive.choice_logprob(
              lambda x: causal_hidden(params, x), params['embed'], ids.prompt,
              choice) for choice in ids.choices]
      count = len(want)
      np.testing.assert_allclose(got.logprob[i, :count], want, atol=1e-4)
      self.assertTrue(np.all(got.logprob[i, count:] == -np.inf))
      answer = question.answer_index
      others = [v for j, v in enumerate(want) if j != answer]
      self.assertAlmostEqual(
          got.margin[i], want[answer] - max(others), delta=2e-4)
      self.assertEqual(got.correct[i], want[answer] > max(others))
      self.assertAlmostEqual(got.answer_logprob[i], want[answer], delta=1e-4)
      norm = [v / len(c) for v, c in zip(want, question.choices)]
      best = max(v for j, v in enumerate(norm) if j != answer)
      self.assertEqual(got.correct_norm[i], norm[answer] > best)


if __name__ == '__main__':
  absltest.main()
