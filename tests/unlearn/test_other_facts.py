"""Partners, group marginals and choices by hand."""

from absl.testing import absltest
import numpy as np

from mansu_jax.unlearn import other_facts


class SwapPartnersTest(absltest.TestCase):

  def test_partners_share_relation_and_template_where_they_can(self):
    relations = ['capital', 'capital', 'capital', 'capital', 'river', 'river']
    got = other_facts.swap_partners(
        relations, relations,
        ['t1', 't1', 't2', 't1', 't1', 't3'],
        ['fr', 'de', 'fr', 'fr', 'po', 'rhone'])
    want = [[1], [0, 3], [1], [1], [5], [4]]
    self.assertEqual([p.tolist() for p in got], want)

  def test_a_relation_of_one_fact_is_refused(self):
    with self.assertRaisesRegex(
        ValueError, "two facts of a relation.*'river'.*only 'po'"):
      other_facts.swap_partners(
          ['a', 'a', 'river'], ['a', 'a', 'river'], ['t'] * 3,
          ['x', 'y', 'po'])

  def test_a_group_comes_before_the_rest_of_the_relation(self):
    got = other_facts.swap_partners(
        ['eu', 'eu', 'as', 'as', 'af'], ['cap'] * 5,
        ['t1', 't1', 't1', 't2', 't1'], ['fr', 'de', 'jp', 'cn', 'eg'])
    self.assertEqual(
        [p.tolist() for p in got], [[1], [0], [3], [2], [0, 1, 2, 3]])


class PartnersTest(absltest.TestCase):

  _FORGET = [
      ('cap', 't1', 'fr', 'paris'), ('cap', 't1', 'de', 'berlin'),
      ('cap', 't2', 'de', 'berlin'), ('cap', 't1', 'jp', 'tokyo'),
      ('lang', 't1', 'mx', 'spanish'), ('lang', 't1', 'cl', 'spanish'),
      ('bird', 't1', 'emu', 'egg')]
  _RETAIN = [
      ('lang', 't2', 'it', 'italian'), ('lang', 't1', 'pe', 'spanish'),
      ('bird', 't9', 'owl', 'owlet'), ('bird', 't1', 'hen', 'chick')]

  def _partners(self, retain=_RETAIN, forget=_FORGET):
    return other_facts.Partners(
        ['eu', 'eu', 'eu', 'as', 'lang', 'lang', 'bird'][:len(forget)],
        forget, retain)

  def _of(self, question, *sets, **options):
    return self._partners(*sets).of(question, **options).tolist()

  def test_the_nearest_kind_comes_first(self):
    self.assertEqual(self._of(0), [1])  # Group and template.
    self.assertEqual(self._of(2), [0])  # Group.
    self.assertEqual(self._of(3), [0, 1, 2])  # Relation.
    self.assertEqual(self._of(6), [10])  # Retained, template.
    self.assertEqual(self._of(6, self._RETAIN[:3]), [9])
    self.assertEqual(self._of(6, ()), [0, 1, 2, 3, 4, 5])
    self.assertEqual(self._of(0, [('x', 't', 'y', 'z')], self._FORGET[:1]), [1])
    self.assertEqual(self._of(6, same_relation=True), [])

  def test_a_fact_with_the_same_answer_is_no_partner(self):
    self.assertEqual(self._of(4), [7])
    self.assertEqual(self._of(4, ()), [0, 1, 2, 3, 6])

  def test_partners_are_drawn_for_each_question(self):
    got = other_facts.prior_partners(
        self._partners(), [q[2] for q in self._FORGET], 9,
        np.random.default_rng(0))
    self.assertEqual(got.shape, (9, 7))
    self.assertEqual(
        [sorted(set(column)) for column in got.T],
        [[1], [0], [0], [0, 1, 2], [7], [7], [10]])

  def test_without_another_answer_it_is_refused(self):
    with self.assertRaisesRegex(ValueError, "another answer than .* 'fr'"):
      other_facts.prior_partners(
          self._partners((), self._FORGET[:1]), ['fr'], 1,
          np.random.default_rng(0))


class ConfusableGroupsTest(absltest.TestCase):

  def test_confusable_groups_are_transitive(self):
    got = other_facts.confusable_groups(
        ['cap'] * 5 + ['river'],
        ['fr', 'jp', 'de', 'cn', 'pl', 'po'],
        ['Paris', 'Tokyo', 'Berlin', 'Beijing', 'Warsaw', 'Italy'],
        [['Paris', 'Berlin'], ['Tokyo', 'Beijing'], ['Berlin', 'Oslo'],
         ['Beijing', 'Hanoi'], ['Warsaw', 'Berlin'], ['Italy', 'Paris']])
    europe, asia = 'cap (fr and others)', 'cap (jp and others)'
    self.assertEqual(got, [europe, asia, europe, asia, europe, 'river'])

  def test_an_undivided_relation_keeps_its_name(self):
    got = other_facts.confusable_groups(
        ['a', 'a', 'b', 'b', 'a'], ['x', 'y', 'x', 'y', 'x'], '12341',
        ['12', '21', '34', '43', '15'])
    self.assertEqual(got, ['a', 'a', 'b', 'b', 'a'])

  def test_one_answer_of_two_facts_links_them(self):
    got = other_facts.confusable_groups(
        ['a'] * 4, 'xyzw', '1123', ['15', '16', '23', '37'])
    self.assertEqual(got, ['a (x and others)'] * 2 + ['a (z and others)'] * 2)

  def test_choices_that_isolate_a_fact_divide_nothing(self):
    got = other_facts.confusable_groups(
        ['a'] * 3 + ['b'], 'xyzx', '1234', ['12', '21', '35', '46'])
    self.assertEqual(got, ['a'] * 3 + ['b'])


class GroupMarginalsTest(absltest.TestCase):

  def test_averages_the_facts_of_a_relation_and_template(self):
    probabilities = lambda rows: np.eye(5)[rows]
    relations = ['a', 'b', 'a', 'a', 'b']
    table, row = other_facts.group_marginals(
        relations, relations, ['t'] * 5, probabilities)
    np.testing.assert_array_equal(row, [0, 1, 0, 0, 1])
    np.testing.assert_allclose(
        table, [[1 / 3, 0, 1 / 3, 1 / 3, 0], [0, 0.5, 0, 0, 0.5]])
    self.assertEqual(table.dtype, np.float32)

  def test_a_group_with_one_sequence_of_a_template_takes_the_relation(self):
    table, row = other_facts.group_marginals(
        ['eu', 'eu', 'as', 'as', 'as'], ['cap'] * 5,
        ['t1', 't1', 't1', 't2', 't2'], lambda rows: np.eye(5)[rows])
    np.testing.assert_array_equal(row, [0, 0, 1, 2, 2])
    third = 1 / 3
    np.testing.assert_allclose(table, [
        [0.5, 0.5, 0, 0, 0], [third, third, third, 0, 0],
        [0, 0, 0, 0.5, 0.5]], rtol=1e-6)

  def test_a_relation_with_one_sequence_of_a_template_is_refused(self):
    relations = ['a', 'a', 'river', 'river', 'river']
    with self.assertRaisesRegex(
        ValueError, "'river' has a single question in phrasing 't2'.*=prior"):
      other_facts.group_marginals(
          relations, relations, ['t', 't', 't', 't', 't2'],
          lambda rows: np.eye(5)[rows])


class ChoicesTest(absltest.TestCase):

  def test_gathers_the_choices_of_a_facts_sequences(self):
    got = other_facts.choice_targets(
        ['fr', 'de', 'fr'], [5, 6, 5], [[5, 1, 2], [3, 6, 6], [7, 2, 5]])
    np.testing.assert_array_equal(
        got.tokens, [[5, 1, 2, 7], [6, 3, 0, 0], [5, 1, 2, 7]])
    np.testing.assert_array_equal(
        got.valid, [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    third = 1 / 3
    np.testing.assert_allclose(
        got.target, [[0, third, third, third], [0, 1, 0, 0],
                     [0, third, third, third]], rtol=1e-6)
    self.assertEqual(got.target.dtype, np.float32)

  def test_an_answer_that_is_spelled_in_two_ways_has_two_pools(self):
    got = other_facts.choice_targets(['fr', 'fr'], [5, 9], [[5, 1], [9, 8]])
    np.testing.assert_array_equal(got.tokens, [[5, 1], [9, 8]])

  def test_choices_that_begin_alike_are_refused(self):
    with self.assertRaisesRegex(
        ValueError, "choice_kl_weight needs wrong choices.*'de'.*to 0"):
      other_facts.choice_targets(['fr', 'de'], [5, 6], [[5, 1], [6, 6]])


if __name__ == '__main__':
  absltest.main()
