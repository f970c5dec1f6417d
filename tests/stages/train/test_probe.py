"""The probe asks distinct prompts once, as a loop over questions would."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.stages.train import probe
from mansu_jax.stages.train import whole_edits
from tests.reference import decoder_naive
from tests.unlearn import problem

_SIZE = problem.CONFIG.vocab_size


def _tokenizer(texts, add_special_tokens):
  """Word wN is token N."""
  del add_special_tokens
  return {'input_ids': [
      [int(re.sub(r'\D', '', word) or 1) for word in text.split()]
      for text in texts]}


def _question(i, prompt, answer, *wrong):
  choices = (*wrong[:1], answer, *wrong[1:])
  return questions_lib.Question(
      id=f'q{i}', fact=f'f{i % 7}', relation='r', prompt=prompt, answer=answer,
      choices=choices, use='train')


def _questions(count, seed=0):
  rng, out = np.random.default_rng(seed), []
  for i in range(count):
    words = [f'w{n}' for n in rng.integers(2, _SIZE, 3 + i % 4)]
    choices = [
        f'w{n}' for n in rng.permutation(np.arange(2, _SIZE))[:2 + i % 3]]
    out.append(_question(i, ' '.join(words), *choices))
  return out


def _make(questions, **options):
  return probe.make(questions, _tokenizer, **dict(
      chat=False, seed=0) | options)


def _prompts(made):
  """The prompt of each question, read from the packed rows."""
  tokens, segments = (np.ravel(x) for x in (
      made.packed.tokens, made.packed.segments))
  width = made.packed.tokens.shape[1]
  rows = np.arange(tokens.size) // width
  return [tuple(tokens[(segments == segments[end]) & (rows == rows[end])])
          for end in made.ends]


class ProbeTest(parameterized.TestCase):

  def test_share_equals_that_of_a_loop(self):
    questions = _questions(40)
    edit = whole_edits.full_edit(problem.model())
    params = jax.device_get(problem.model().params)
    right = []
    for question, (prompt, choices) in zip(
        questions, tokenization.encode_questions(questions, _tokenizer)):
      logits = decoder_naive.forward(
          np.array(prompt), params, theta=problem.CONFIG.rope_theta,
          eps=problem.CONFIG.norm_eps)[0][-1]
      scores = [logits[ids[0]] for ids in choices]
      right.append(int(np.argmax(scores)) == question.answer_index)
    got = probe.measure(edit, _make(questions))(edit.theta)
    self.assertAlmostEqual(got, np.mean(right), places=6)
    self.assertBetween(got, 0.2, 0.8)

  def test_without_wrong_choices_any_token_competes(self):
    edit = whole_edits.full_edit(problem.model())
    params = jax.device_get(problem.model().params)
    questions = []
    for i, question in enumerate(_questions(8)):
      (prompt, _), = tokenization.encode_questions([question], _tokenizer)
      logits = decoder_naive.forward(
          np.array(prompt), params, theta=problem.CONFIG.rope_theta,
          eps=problem.CONFIG.norm_eps)[0][-1]
      token = np.argsort(-logits)[i % 4 and 1]  # The likeliest, or the next.
      questions.append(_question(i, question.prompt, f'w{token}'))
    made = _make(questions)
    self.assertEqual(probe.measure(edit, made)(edit.theta), 0.25)
    self.assertEqual(made.chance, 0.0)

  def test_prompts_are_whole_and_asked_once(self):
    questions = _questions(30)
    twice = [_question(90 + i, q.prompt, 'w3', 'w4')
             for i, q in enumerate(questions)]
    made = _make(questions + twice)
    want = [tuple(e.prompt) for e in tokenization.encode_questions(
        questions, _tokenizer)]
    self.assertEqual(sorted(_prompts(made)), sorted(want))
    self.assertEqual(sorted(_prompts(_make(questions))), sorted(want))

  def test_at_most_64_evenly_over_facts_by_the_seed(self):
    questions = _questions(300)
    made = _make(questions)
    self.assertLen(made.ends, 64)
    facts = {tuple(e.prompt): q.fact for q, e in zip(
        questions, tokenization.encode_questions(questions, _tokenizer))}
    counts = np.unique(
        [facts[p] for p in _prompts(made)], return_counts=True)[1]
    self.assertLen(counts, 7)
    self.assertBetween(np.ptp(counts), 0, 1)
    self.assertEqual(_prompts(made), _prompts(_make(questions)))
    self.assertNotEqual(_prompts(made), _prompts(_make(questions, seed=1)))

  def test_a_right_answer_that_begins_as_another_is_left_out(self):
    alike = _question(1, 'w5 w6', 'w7 w8', 'w7 w9')
    wrong_alike = _question(2, 'w5 w9', 'w2', 'w7 w9', 'w7 w8')
    made = _make([alike, wrong_alike])
    self.assertLen(made.ends, 1)
    self.assertEqual((made.right.tolist(), made.wrong.tolist()),
                     ([2], [[7, 7]]))
    with self.assertRaisesRegex(
        ValueError,
        'none of the 1 train questions.*Leave --unlearn_stop_forget out'):
      _make([alike])

  def test_one_program_for_all_measures(self):
    edit = whole_edits.full_edit(problem.model())
    measure = probe.measure(edit, _make(_questions(20)))
    other = jax.tree.map(lambda x: -x, edit.theta)
    with self.assertLogs('jax', 'WARNING') as logs, jax.log_compiles():
      shares = [measure(theta) for theta in (edit.theta, other, edit.theta)]
    self.assertLen(
        [x for x in logs.output if 'Compiling jit(right_share)' in x], 1)
    self.assertEqual(shares[0], shares[2])
    self.assertNotEqual(shares[0], shares[1])

  @parameterized.parameters(False, True)
  def test_circuits_and_adapters_are_probed_as_merged(self, lora):
    edit = (whole_edits.lora_edit(problem.model(), 2, 16.0, seed=0) if lora
            else problem.circuit_edit())
    theta = jax.tree.map(lambda x: x + 0.3, edit.theta)
    made, full = _make(_questions(60)), whole_edits.full_edit(problem.model())
    got = probe.measure(edit, made)(theta)
    self.assertEqual(got, probe.measure(full, made)(edit.merge(theta)))
    self.assertNotEqual(got, probe.measure(edit, made)(edit.theta))


if __name__ == '__main__':
  absltest.main()
