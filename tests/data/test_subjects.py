"""Finding the subjects of facts, and phrasings with other subjects."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import subjects as subjects_lib

_CAPITAL = ('The capital of {} is', 'Country: {}\nCapital:',
            'Officials in {}\'s capital meet in')


def _subjects(texts):
  """{fact: prompts} -> {fact: subject}."""
  return subjects_lib.subjects(
      [fact for fact, prompts in texts.items() for _ in prompts],
      [prompt for prompts in texts.values() for prompt in prompts])


def _asked(templates, *names):
  return {name: [t.format(name) for t in templates] for name in names}


class SubjectsTest(parameterized.TestCase):

  def test_subject_is_what_prompts_of_a_fact_share(self):
    names = ('France', 'New Zealand', "Côte d'Ivoire", 'Guinea-Bissau')
    self.assertEqual(
        _subjects(_asked(_CAPITAL, *names)), {name: name for name in names})

  @parameterized.parameters(*_CAPITAL)
  def test_other_facts_separate_subject_from_a_single_phrasing(self, form):
    names = ('France', 'New Zealand', 'Peru')
    self.assertEqual(
        _subjects(_asked([form], *names)), {name: name for name in names})

  def test_a_reverse_question_is_about_what_it_names(self):
    questions = questions_lib.read_questions('shipped:capitals_europe')
    forward = [q for q in questions if q.form in ('train_0', 'train_1')]
    reverse = [dataclasses.replace(
        q, prompt=f'{q.answer} is the capital of', reading='reverse')
               for q in forward[::2]]
    self.assertEqual(
        subjects_lib.of_questions(forward + reverse),
        subjects_lib.of_questions(forward) + [q.answer for q in forward[::2]])

  def test_the_longest_shared_words_win(self):
    texts = {'a': ['In South Korea the king', 'South Korea, far South'],
             'b': ['In Peru the king', 'Peru, far away']}
    self.assertEqual(_subjects(texts), {'a': 'South Korea', 'b': 'Peru'})

  def test_a_subject_may_hold_but_not_end_with_words_of_the_phrasing(self):
    names = ('The Grapes of Wrath', 'The Call of the Wild', 'Dracula')
    self.assertEqual(
        list(_subjects(_asked(
            ['The author of {} is', 'Of {} the writer is'], *names)).values()),
        ['Grapes of Wrath', 'Call of the Wild', 'Dracula'])

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

  def test_no_subject_if_a_single_phrasing_is_unshared(self):
    texts = {'a': ['When was Ada Lovelace born?'],
             'b': ['Which novel did Borges publish in 1941?']}
    self.assertEqual(_subjects(texts), {'a': None, 'b': None})

  def test_one_fact_whose_phrasings_share_several_words(self):
    texts = {'a': ['The capital of France is', "France's capital is called"]}
    self.assertEqual(_subjects(texts), {'a': None})

  def test_a_part_of_a_word_is_not_shared(self):
    texts = {'a': ['Chad lies', 'a chadian lies'], 'b': ['x y', 'y z'],
             'c': ['x lies', 'lies z']}
    self.assertEqual(_subjects(texts)['a'], 'lies')

  def test_no_shared_word_no_subject(self):
    self.assertEqual(
        _subjects({'a': ['one two', 'three'], 'b': ['four']})['a'], None)


class CrossTest(parameterized.TestCase):

  def test_phrasings_are_listed_once(self):
    prompts = ['The king of Peru is', 'the king of peru is', 'Peru: king',
               'of nobody', 'Peru and peru, not Peruvians', 'nowhere']
    own = ['Peru', 'peru', 'Peru', None, 'Peru', 'Peru']
    self.assertEqual(subjects_lib.templates(prompts, own), [
        ('The king of ', ' is'), ('the king of ', ' is'), ('', ': king'),
        ('', ' and ', ', not Peruvians')])

  def test_phrasings_that_subjects_share_are_preferred(self):
    prompts = ['The idea of Darwin is', 'The idea of Newton is',
               'The idea of Copernicus the sun is']
    self.assertEqual(
        subjects_lib.templates(prompts, ['Darwin', 'Newton', 'Copernicus']),
        [('The idea of ', ' is')])

  def test_templates_do_not_cut_words(self):
    self.assertEqual(
        subjects_lib.templates(['hot photo'], ['hot']), [('', ' photo')])

  @parameterized.parameters(
      ('Tell us the king of the US', 'US', ('Tell us the king of the ', '')),
      ('the symbol of gold is', 'GOLD', ('the symbol of ', ' is')),
      ('the symbol of gold is', 'Gold', ('the symbol of ', ' is')),
      ('In Guinea Bissau,', 'Guinea-Bissau', ('In ', ',')),
      ('C++ was made by', 'c', ('', '++ was made by')))
  def test_templates_use_case_to_find_the_subject(self, prompt, own, want):
    self.assertEqual(subjects_lib.templates([prompt], [own]), [want])

  def test_a_phrasing_with_a_subject(self):
    for parts, subject, want in (
        (('The king of ', ' is'), 'Japan', 'The king of Japan is'),
        (('', ' and ', '?'), 'Fiji', 'Fiji and Fiji?')):
      got = subjects_lib.ask(parts, subject)
      self.assertEqual(got.text, want)
      self.assertStartsWith(got.text[got.start:], subject)


if __name__ == '__main__':
  absltest.main()
