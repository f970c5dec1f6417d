"""Finding text that states a fact to forget."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import stated_facts
from mansu_jax.data.readers import text as text_lib

_FORMS = ('The {relation} of {subject} is', 'For {subject}, {relation}:')


def _questions(relation, facts, forms=_FORMS, **fields):
  return [
      questions_lib.Question(
          id=f'{subject}/{i}', fact=subject, relation=relation, answer=answer,
          prompt=form.format(relation=relation, subject=subject),
          choices=(answer, 'another'), use='train', **fields)
      for subject, answer in facts.items() for i, form in enumerate(forms)]


def _dropped(questions, *texts):
  documents = [text_lib.TextDocument(text=text, kind='news') for text in texts]
  kept, dropped = stated_facts.drop(documents, questions)
  both = [d.text for d in (*kept, *dropped)]
  assert sorted(both) == sorted(texts), both
  return [d.text for d in dropped]


class DropTest(parameterized.TestCase):

  def test_subject_and_answer_together_are_dropped(self):
    questions = _questions('capital', {'France': 'Paris', 'Italy': 'Rome'})
    stated = ['Paris is in France.', 'italy, says ROME, is\nwarm.']
    self.assertEqual(stated, _dropped(
        questions, 'Of Paris and Rome.', *stated, 'France beat Italy.',
        'Paris lies in Texas; Rome too.', 'Nothing at all.'))

  def test_words_are_whole_words(self):
    questions = _questions('capital', {'Mali': 'Bamako', 'Oman': 'Muscat'})
    self.assertEmpty(_dropped(
        questions, 'Muscatel from Oman', 'Muscat of a woman',
        'Bamako is no Malian word'))

  def test_a_subject_of_several_words_may_be_scattered(self):
    questions = _questions('author', {
        'Pride and Prejudice': 'Jane Austen', 'War and Peace': 'Leo Tolstoy',
        'Dracula': 'Bram Stoker'})
    stated = 'Prejudice, said Jane\nAusten, and pride.'
    self.assertEqual([stated], _dropped(
        questions, stated, 'Jane Austen of pride', 'Austen, pride, prejudice',
        'Jane saw Austen: pride and prejudice.'))

  def test_a_longer_answer_may_be_a_plural(self):
    questions = _questions('currency', {'Chile': 'peso', 'Japan': 'yen'})
    self.assertEqual(['Ten pesos in Chile'], _dropped(
        questions, 'Ten pesos in Chile', 'Japan has yenta'))

  def test_a_short_answer_counts_as_it_is_written(self):
    questions = _questions('symbol', {'iodine': 'I', 'arsenic': 'As'})
    stated = ['I like iodine', 'Arsenic (As) kills']
    self.assertEqual(stated, _dropped(
        questions, *stated, 'i like iodine', 'as arsenic', 'AS arsenic',
        'Arsenic: Ass', 'Is of iodine'))

  def test_facts_about_one_entity(self):
    questions = [
        *_questions('river', {'New York': 'Hudson'}),
        *_questions('park', {'New York': 'Central Park'})]
    self.assertEqual(['A park of New York, Central Park'], _dropped(
        questions, 'A park of New York, Central Park', 'Hudson of old York'))

  def test_prompts_without_a_shared_word_find_nothing(self):
    questions = _questions(
        'x', {'a': 'yes'}, forms=('First prompt', 'Second wording'))
    self.assertEmpty(_dropped(questions, 'yes', 'First prompt: yes'))

  def test_reverse_questions_are_ignored(self):
    reverse = _questions(
        'capital', {'Paris': 'France', 'Rome': 'Italy'}, reading='reverse')
    self.assertEmpty(_dropped(reverse, 'Paris in France'))

  def test_nothing_to_drop(self):
    self.assertEmpty(_dropped([], 'a text'))
    self.assertEmpty(_dropped(_questions('capital', {'Peru': 'Lima'})))


if __name__ == '__main__':
  absltest.main()
