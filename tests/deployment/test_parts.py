"""Parts of the deployment check that need no engine."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special

from mansu_jax.data import questions as questions_lib
from mansu_jax.deployment import compare
from mansu_jax.deployment import items
from mansu_jax.deployment import scoring_plan
from mansu_jax.deployment import tables
from mansu_jax.eval import accuracy
from tests import tiny_job
from tests.models import tiny


def _question(i, choices, prompt='a b', answer=None):
  return questions_lib.Question(
      id=f'q{i}', fact=f'fact{i}', relation='r', prompt=prompt, use='far',
      answer=answer or choices[0], choices=tuple(choices))


class _Letters:
  """A tokenizer of single characters."""

  def __call__(self, texts, add_special_tokens=False):
    del add_special_tokens
    return {'input_ids': [[ord(c) - 32 for c in text] for text in texts]}


class _Bigrams:
  """An engine whose next token depends on the last one only."""

  def __init__(self):
    logits = np.random.default_rng(0).normal(size=(96, 96))
    self.logprob = special.log_softmax(logits, axis=-1)

  def __call__(self, requests):
    return [np.array([self.logprob[r.tokens[p], t]
                      for p, t in zip(r.positions, r.targets)])
            for r in requests]

  def sequence(self, text):
    ids = [ord(c) - 32 for c in text]
    return sum(self.logprob[a, b] for a, b in zip(ids, ids[1:]))


class ScoringPlanTest(absltest.TestCase):

  def test_scores_equal_those_of_full_sequences(self):
    questions = [
        _question(0, ['x', 'y', 'xyz', 'xy']), _question(1, ['uv', 'w'])]
    engine = _Bigrams()
    got = scoring_plan.ScoringPlan(questions, _Letters()).score(engine)
    for question, row in zip(questions, got.logprob):
      want = [engine.sequence(f'{question.prompt} {choice}')
              - engine.sequence(question.prompt)
              for choice in question.choices]
      np.testing.assert_allclose(row[:len(want)], want, rtol=1e-12)
      self.assertTrue(np.isneginf(row[len(want):]).all())

  def test_choices_share_sequences(self):
    # Continuations ' x', ' y' and ' xy': inputs 'a b ' (twice) and 'a b x'.
    plan = scoring_plan.ScoringPlan(
        [_question(0, ['x', 'y', 'xy'])], _Letters())
    self.assertLen(plan.requests, 2)
    self.assertEqual([len(r.tokens) for r in plan.requests], [4, 5])
    self.assertEqual([len(r.targets) for r in plan.requests], [3, 3])

  def test_non_finite_scores_are_refused(self):
    plan = scoring_plan.ScoringPlan(
        [_question(0, ['x', 'y'])], _Letters())
    broken = lambda requests: [np.full(len(r.positions), np.nan)
                               for r in requests]
    with self.assertRaisesRegex(ValueError, "'q0' score .* wanted finite"):
      plan.score(broken)

  def test_batches_hold_each_request_once_within_limits(self):
    rng = np.random.default_rng(0)
    requests = [scoring_plan.Request((0,) * n, np.arange(1), np.arange(1))
                for n in rng.integers(1, 40, 200).tolist() + [300]]
    got = scoring_plan.make_batches(requests, 128, 8)
    self.assertEqual(sorted(sum(got, [])), list(range(201)))
    self.assertEqual(got[0], [200])  # Longer than a batch.
    for batch in got[1:]:
      widest = max(len(requests[i].tokens) for i in batch)
      self.assertLessEqual(widest * len(batch), 128)
      self.assertLessEqual(len(batch), 8)


class AnswersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = tiny.temp_dir(self) / 'answers.jsonl'

  def _line(self, i, split='retain', **changes):
    entry = {'choice': 'y', 'correct': False, 'margin': -0.5 - i}
    return {'split': split, 'id': f'q{i}', 'fact': f'f{i // 2}',
            'relation': 'r', 'prompt': 'a', 'answer': 'x',
            'choices': ['x', 'y'],
            'models': {'unlearned': {'fp': entry}}} | changes

  def _read(self, *lines):
    tiny_job.write_jsonl(self.path, lines)
    return items.read_answers(self.path)

  def test_reads_and_subsamples(self):
    got = self._read(*(self._line(i) for i in range(6)),
                     self._line(6, 'forget'))
    self.assertEqual(got.splits, ('retain',) * 6 + ('forget',))
    np.testing.assert_array_equal(
        got.recorded['fp'].margin, -0.5 - np.arange(7))
    np.testing.assert_array_equal(got.recorded['fp'].choice, [1] * 7)
    few = got.subsample(3)
    self.assertEqual(few.splits, ('retain',) * 3 + ('forget',))
    self.assertLen({q.fact for q in few.questions}, 4)
    for question, margin in zip(few.questions, few.recorded['fp'].margin):
      self.assertEqual(margin, -0.5 - int(question.id[1:]))
    self.assertEqual(got.subsample(0).questions, got.questions)

  def test_every_reading_is_read(self):
    got = self._read(*(
        self._line(i, reading=reading)
        for i, reading in enumerate(questions_lib.READINGS)))
    self.assertEqual(
        tuple(q.reading for q in got.questions), questions_lib.READINGS)

  @parameterized.parameters(
      ({'prompt': None}, 'wanted a string'),
      ({'models': {'unlearned': {'fp': {
          'choice': 'z', 'correct': True, 'margin': 1.0}}}},
       "fp has the choice 'z'; wanted one of"),
      ({'models': {'unlearned': {}}}, "lacks the field 'fp'"))
  def test_a_bad_line_is_named(self, changes, message):
    with self.assertRaisesRegex(ValueError, f'answers.jsonl:2.*{message}'):
      self._read(self._line(0), self._line(1, **changes))

  def test_answers_of_older_runs_are_refused(self):
    old = {k: v for k, v in self._line(0).items() if k != 'prompt'}
    with self.assertRaisesRegex(ValueError, 'Repeat the run, or give --model'):
      self._read(old)


class CompareTest(absltest.TestCase):

  def _compare(self, real, simulated_choice, margin):
    """Compares on questions whose answer is the first of two choices."""
    questions = [_question(i, ['x', 'y']) for i in range(len(real))]
    scores = accuracy.judge(questions, np.array(real))
    choice = np.array(simulated_choice)
    simulated = items.Answers(choice, choice == 0, np.array(margin))
    both = items.Items(
        questions=tuple(questions), recorded={},
        splits=tuple('ab'[i % 2] for i in range(len(real))))
    return compare.compare_answers(both, simulated, scores)

  def test_by_hand(self):
    got = self._compare(
        [[-1.0, -2.0], [-1.0, -3.0], [-2.0, -1.0]], [0, 1, 1],
        [1.25, -2.0, -1.0])
    self.assertEqual(got['accuracy'], {
        'a': {'n': 2, 'simulated': 0.5, 'real': 0.5},
        'b': {'n': 1, 'simulated': 0.0, 'real': 1.0}})
    self.assertEqual(got['max_margin_difference'], 4.0)
    (item,) = got['differing']
    self.assertEqual(
        (item['id'], item['simulated'], item['real'], item['gap']),
        ('q1', 'y', 'x', 2.0))
    self.assertFalse(item['tie'] or got['same_answers'])
    self.assertAlmostEqual(got['difference']['value'], 1 / 3)
    self.assertTrue(got['zero_inside'])

  def test_ties_are_the_same_answer(self):
    got = self._compare([[-1.0, -1.0001]], [1], [-1e-4])
    self.assertTrue(got['same_answers'])
    self.assertTrue(got['differing'][0]['tie'])
    got = self._compare([[-1.0, -1.0001]], [1], [-0.5])
    self.assertFalse(got['same_answers'])  # Tied in one engine only.

  def test_interval_of_a_difference_in_all_facts_excludes_zero(self):
    got = self._compare([[-1.0, -2.0]] * 40, [1] * 40, [-1.0] * 40)
    self.assertFalse(got['zero_inside'])
    self.assertEqual(got['difference']['value'], 1.0)


class TablesTest(absltest.TestCase):

  def test_a_scheme_without_simulated_weights_has_a_dash(self):
    found = {
        'accuracy': {'retain': {'n': 1, 'simulated': 1.0, 'real': 0.0}},
        'differing': [], 'n': 1, 'max_margin_difference': 0.25,
        'weights': None, 'agrees': False, 'exact': False, 'seconds': 1.0,
        'difference': {'value': -1.0, 'interval': [-1.0, 0.5]}}
    result = {'schemes': {'q4_k': found}, 'versions': {'jax': '1'},
              'questions': 1, 'agrees': False, 'not_checked_yet': ['q6_k']}
    page = tables.render(result)
    self.assertIn(
        'do not agree: q4_k. Not checked yet: q6_k.', page)
    self.assertIn('| 1.000 / 0.000 | 0 of 1 | 0.25 | – | -1.000', page)
    self.assertNotIn('## GGUF', page)
    self.assertIn('DOES NOT AGREE', tables.line('q4_k', found))


if __name__ == '__main__':
  absltest.main()
