"""Subjects of facts, how texts about them begin, and where they are cut."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.unlearn import replay

_CAPITAL = ('The capital of {} is', 'Country: {}\nCapital:',
            'Officials in {}\'s capital meet in')


def _subjects(texts):
  """{fact: prompts} -> {fact: subject}."""
  return replay.subjects(
      [fact for fact, prompts in texts.items() for _ in prompts],
      [prompt for prompts in texts.values() for prompt in prompts])


def _asked(templates, *names):
  return {name: [t.format(name) for t in templates] for name in names}


class SubjectsTest(parameterized.TestCase):

  def test_what_the_prompts_of_a_fact_share(self):
    names = ('France', 'New Zealand', "Côte d'Ivoire", 'Guinea-Bissau')
    self.assertEqual(
        _subjects(_asked(_CAPITAL, *names)), {name: name for name in names})

  @parameterized.parameters(*_CAPITAL)
  def test_one_phrasing_is_told_from_its_subject_by_other_facts(self, form):
    names = ('France', 'New Zealand', 'Peru')
    self.assertEqual(
        _subjects(_asked([form], *names)), {name: name for name in names})

  def test_the_longest_shared_words_win(self):
    texts = {'a': ['In South Korea the king', 'South Korea, far South'],
             'b': ['In Peru the king', 'Peru, far away']}
    self.assertEqual(_subjects(texts), {'a': 'South Korea', 'b': 'Peru'})

  def test_facts_about_one_entity_share_its_name(self):
    texts = {
        'river': ['The river of New York City is', 'In New York City flows'],
        'park': ['New York City has a park,', 'Joggers of New York City love'],
        'team': ['New York City cheers', 'The team of New York City,']}
    self.assertEqual(
        _subjects(texts), dict.fromkeys(texts, 'New York City'))

  def test_case_is_as_first_written(self):
    texts = {'a': ['GOLD has the symbol', 'symbol of gold'],
             'b': ['Tin has the symbol', 'symbol of tin']}
    self.assertEqual(_subjects(texts), {'a': 'GOLD', 'b': 'Tin'})

  def test_a_part_of_a_word_is_not_shared(self):
    texts = {'a': ['Chad lies', 'a chadian lies'], 'b': ['x y', 'y z'],
             'c': ['x lies', 'lies z']}
    self.assertEqual(_subjects(texts)['a'], 'lies')

  def test_no_shared_word_no_subject(self):
    self.assertEqual(
        _subjects({'a': ['one two', 'three'], 'b': ['four']})['a'], None)


class OpeningsTest(parameterized.TestCase):

  def test_patterns_in_turn_for_each_different_subject(self):
    found = {'f': 'France', 'g': None, 'h': 'Peru', 'i': 'France'}
    self.assertEqual(
        list(replay.openings(found, ('{}', 'In {},'), 3)), [
            ('France', 'France'), ('France', 'In France,'),
            ('France', 'France'), ('Peru', 'Peru'), ('Peru', 'In Peru,'),
            ('Peru', 'Peru')])


class CutTest(parameterized.TestCase):

  @parameterized.parameters(
      ('In France one eats well and often', 'In France one eats well and often'),
      ('In France one eats well in Paris, often', 'In France one eats well in'),
      ('In France one eats well in PARIS', 'In France one eats well in'),
      ('In France one eats, Parisians say', 'In France one eats,'),
      ('In France comparisons hurt', 'In France comparisons hurt'),
      ('In France, Rome (Italy) is loved', ''),
      ('In France it', ''),
      ('In France', ''))
  def test_up_to_the_first_answer(self, text, want):
    self.assertEqual(
        replay.cut(text, 'In France', ['Paris', 'Rome (Italy)'], 2), want)


if __name__ == '__main__':
  absltest.main()
