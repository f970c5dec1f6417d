"""Questions with partners, in batches that hold the partners."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.erasure import spans
from tests.eval import toy_model

_FORMS = {'near_0': 'capital of {} is', 'far_a': 'now in {} they govern from',
          'far_b': '{} has the city'}


def _questions(facts=12):
  names = [f'{chr(97 + i)}x' for i in range(facts)]
  cities = [f'{chr(97 + i)}q' for i in range(facts)]
  return [
      questions_lib.Question(
          id=f'capital/{name}/{form}', fact=f'capital/{name}', use='near',
          relation='capital', prompt=text.format(name), answer=city,
          choices=(cities[i - 1], city, 'Other'))
      for i, (name, city) in enumerate(zip(names, cities))
      for form, text in _FORMS.items()]


class PhrasingsTest(parameterized.TestCase):

  def _find(self, questions):
    return spans.Phrasings(questions, toy_model.ToyTokenizer(bos=1))

  def _check(self, got):
    for i, others in enumerate(got.others):
      batch, = [b for b in got.batches if b.start <= i < b.stop]
      for j in others:
        self.assertTrue(batch.start <= j < batch.stop)
        self.assertNotEqual(got.facts[i], got.facts[j])
        self.assertLen(got.prompts[j], len(got.prompts[i]))
        differing = [t for t, (a, b) in enumerate(
            zip(got.prompts[i], got.prompts[j])) if a != b]
        self.assertEqual(differing, [got.starts[i]])

  def test_all_questions_with_other_facts_of_the_same_phrasing(self):
    found = self._find(_questions())
    self.assertLen(found.usable, 36)
    got = found.take(found.usable, others=2, rng=np.random.default_rng(0))
    self.assertLen(got, 36)
    self._check(got)
    self.assertEqual(sum(b.stop - b.start for b in got.batches), 36)
    np.testing.assert_array_equal(got.asked.right, 1)
    self.assertTrue((got.others[:, 0] != got.others[:, 1]).all())

  def test_batches_hold_prompts_and_other_rows(self):
    found = self._find(_questions(30))
    got = found.take(found.usable, others=2, rng=np.random.default_rng(0))
    self._check(got)
    batches = spans.batches_of(got)
    self.assertGreater(len(batches), 2)
    for batch in batches:
      members = np.arange(len(got))[batch.members]
      for row, i in enumerate(members):
        ids = got.prompts[i]
        self.assertEqual(batch.rows.tokens[row, :len(ids)].tolist(), ids)
        self.assertEqual(batch.rows.lengths[row], len(ids))
        self.assertEqual(batch.rows.starts[row], got.starts[i])
        self.assertEqual(
            members[batch.others[:, row]].tolist(), got.others[i].tolist())

  def test_unusable_questions(self):
    questions = _questions()
    same = dataclasses.replace(
        questions[0], choices=('aq', 'aq b', 'Other'))
    alone = dataclasses.replace(
        questions[3], prompt='capital of a long name is', fact='capital/long')
    ends = [dataclasses.replace(q, id=f'{q.fact}/far_c', prompt=f'the {q.fact}')
            for q in questions[6:9]]
    found = self._find([same, alone, *questions[6:], *ends])
    self.assertEqual(found.usable, questions[6:])

  @parameterized.parameters(8, 9, 20)
  def test_drawn_questions_come_with_a_partner(self, limit):
    found = self._find(_questions())
    rng = np.random.default_rng(0)
    chosen = found.with_partners(found.usable, limit, rng)
    self.assertBetween(len(chosen), limit - 1, limit)
    self.assertLen(set(q.id for q in chosen), len(chosen))
    got = found.take(chosen, others=2, rng=rng)
    self.assertLen(got, len(chosen))
    self._check(got)

  def test_a_question_without_its_partner_is_left_out(self):
    found = self._find(_questions())
    chosen = [q for q in found.usable if q.id.endswith('near_0')][:3]
    alone = [q for q in found.usable if q.id.endswith('far_a')][:1]
    got = found.take(chosen + alone, others=2, rng=np.random.default_rng(0))
    self.assertEqual(set(got.facts), {q.fact for q in chosen})

  @parameterized.parameters(
      ([33],), ([2, 30, 2],), ([31, 2, 3],), ([64, 65, 1],))
  def test_batches_leave_no_question_of_a_group_alone(self, sizes):
    groups = [[(n, i) for i in range(size)] for n, size in enumerate(sizes)]
    got = spans._fill(groups, 32)
    self.assertEqual([x for b in got for x in b], sum(groups, []))
    for batch in got:
      self.assertLessEqual(len(batch), 32)
      for n, _ in batch:
        if sizes[n] > 1:
          self.assertGreater(sum(m == n for m, _ in batch), 1)


if __name__ == '__main__':
  absltest.main()
