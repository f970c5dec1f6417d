"""Reading the data of a run: wildcards, thinning, refusals, the record."""

import dataclasses
import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.stages.prepare import inputs


def _question(number, fact, use='train', **changes):
  fields = {
      'id': f'{fact}/{number}', 'fact': fact, 'relation': 'capital',
      'prompt': f'{fact} asked {number} {use}', 'answer': 'a',
      'choices': ('a', 'b'), 'use': use} | changes
  return questions_lib.Question(**fields)


class ExpandTest(parameterized.TestCase):

  def test_wildcards_stand_for_shipped_files_in_order(self):
    got = inputs.expand(['shipped:capitals_*.jsonl'])
    self.assertContainsSubset(
        ['shipped:capitals_europe.jsonl', 'shipped:capitals_other.jsonl'], got)
    self.assertEqual(list(got), sorted(got))

  def test_other_paths_stay(self):
    paths = ('a/*.jsonl', 'b.jsonl', 'shipped:capitals_europe')
    self.assertEqual(inputs.expand(paths), paths)

  @parameterized.parameters('shipped:nothing_*', 'shipped:[!a-z]*.jsonl')
  def test_a_wildcard_without_a_file_is_refused(self, path):
    with self.assertRaisesRegex(ValueError, 'matches no shipped file.*cap'):
      inputs.expand([path])


class ThinTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    sizes = {'a': 1, 'b': 3, 'c': 12, 'd': 5}
    self.questions = [_question(i, fact) for fact, size in sizes.items()
                      for i in range(size)]

  def _counts(self, limit, seed=0):
    kept = inputs.thin(self.questions, limit, seed)
    return {f: sum(q.fact == f for q in kept) for f in 'abcd'}

  @parameterized.parameters(
      (4, dict(a=1, b=1, c=1, d=1)), (7, dict(a=1, b=2, c=2, d=2)),
      (10, dict(a=1, b=3, c=3, d=3)), (12, dict(a=1, b=3, c=4, d=4)),
      (15, dict(a=1, b=3, c=6, d=5)))
  def test_thin_draws_facts_evenly(self, limit, want):
    for seed in range(3):
      self.assertEqual(self._counts(limit, seed), want)

  def test_thin_below_the_number_of_facts_draws_one_each(self):
    counts = self._counts(3)
    self.assertEqual(sum(counts.values()), 3)
    self.assertLessEqual(max(counts.values()), 1)

  @parameterized.parameters(0, 21, 100)
  def test_nothing_to_drop_keeps_all(self, limit):
    got = inputs.thin(self.questions, limit, 0)
    self.assertEqual(got, self.questions)
    self.assertIsNot(got, self.questions)

  def test_order_is_kept_and_the_seed_draws_the_phrasings(self):
    kept = inputs.thin(self.questions, 8, 1)
    places = [self.questions.index(q) for q in kept]
    self.assertEqual(places, sorted(places))
    self.assertEqual(kept, inputs.thin(self.questions, 8, 1))
    first = {inputs.thin(self.questions, 4, seed)[2].id for seed in range(40)}
    self.assertGreater(len(first), 6)  # Of the 12 phrasings of fact c.


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    made = tempfile.TemporaryDirectory()
    self.addCleanup(made.cleanup)
    self.root = pathlib.Path(made.name)

  def _write(self, name, questions):
    path = self.root / name
    path.write_text(''.join(json.dumps({
        k: getattr(q, k) for k in (
            'id', 'fact', 'relation', 'prompt', 'answer', 'choices', 'use',
            'reading')}) + '\n' for q in questions))
    return str(path)

  def _config(self, kept=0, **data):
    forget = [_question(i, f, use) for f in ('fr', 'de') for i, use in
              enumerate(('train', 'train', 'near', 'far', 'far'))]
    retain = [_question(i, f, use) for f in ('po', 'rhone') for i, use in
              enumerate(('train', 'near'))]
    text, other = self.root / 'text.txt', self.root / 'other.txt'
    text.write_text('Some text.')
    other.write_text('Other text.')
    files = {
        'forget': (self._write('f.jsonl', forget),),
        'retain': (self._write('r.jsonl', retain),),
        'text': (str(text),), 'heldout_text': (str(other),)} | data
    return run_config.RunConfig(
        data=run_config.DataConfig(**files),
        eval=run_config.EvalConfig(questions=3, kept_questions=kept))

  def test_roles_and_uses_become_splits_and_are_thinned(self):
    got = inputs.read(self._config())
    self.assertEqual({k: len(v) for k, v in got.evaluation.items()}, {
        'forget': 3, 'forget_paraphrase': 2, 'forget_far': 3, 'retain': 2,
        'retain_heldout': 0})
    fewer = inputs.read(self._config(kept=1)).evaluation
    self.assertEqual((len(fewer['retain']), len(fewer['forget_far'])), (1, 3))
    self.assertLen(got.splits.forget_train, 4)  # Training is not thinned.
    self.assertLen(got.splits.text, 1)
    self.assertIn('Other', got.heldout_text[0].text)

  def test_prompts_are_thinned_with_all_their_sets_of_choices(self):
    questions = []
    for fact in ('fr', 'de'):
      questions += [_question(i, fact, use) for i, use in enumerate(
          ('train', 'far', 'far', 'far'))]
      for reading, sets in (('choice_unseen', 3), ('reverse', 2)):
        questions += [
            _question(i, fact, 'far', id=f'{fact}/{reading}{i}_{k}',
                      reading=reading, choices=('a', f'c{k}'))
            for i in (1, 2, 3) for k in range(sets)]
    path = self._write('g.jsonl', questions)
    got = inputs.read(self._config(forget=(path,))).evaluation
    far = {(q.fact, q.prompt) for q in got['forget_far']}
    self.assertLen(far, 3)
    for split, size in (('forget_unseen', 9), ('forget_reverse', 6)):
      self.assertLen(got[split], size)
      self.assertLen({(q.fact, q.prompt) for q in got[split]}, 3)
    self.assertEqual({(q.fact, q.prompt) for q in got['forget_unseen']}, far)

  def test_the_report_names_files_counts_and_missing_data(self):
    config = self._config()
    pairs = self._write('pairs.jsonl', [])
    with_pairs = dataclasses.replace(
        config, attribution=run_config.AttributionConfig(pairs_file=pairs))
    self.assertIn(pairs, inputs.read(with_pairs).hashes)
    got = inputs.describe(inputs.read(config))
    self.assertEqual(set(got['sha256']), {
        *config.data.forget, *config.data.retain, *config.data.text,
        *config.data.heldout_text})
    self.assertTrue(all(len(h) == 64 for h in got['sha256'].values()))
    self.assertEqual(got['questions']['forget_far'], 3)
    self.assertEqual(got['facts']['forget_far'], 2)
    self.assertEqual(got['missing_splits'], ['retain_heldout'])
    self.assertEqual(got['trained_readings'], ['choice'])
    self.assertEqual(got['reversed_facts'], [])
    json.dumps(got)

  def test_text_that_states_a_fact_to_forget_is_left_out(self):
    text = self.root / 'stating.jsonl'
    write = lambda *texts: text.write_text('\n'.join(
        json.dumps({'text': t, 'kind': 'news'}) for t in texts))
    config = self._config(text=(str(text),))
    (stated,) = {q.prompt + ' ' + q.answer
                 for q in inputs.read(self._config()).splits.forget_train[:1]}
    write('Some text.', stated, 'More text.')
    with self.assertLogs(level='INFO') as logs:
      got = inputs.read(config)
    self.assertEqual(
        [d.text for d in got.splits.text], ['Some text.', 'More text.'])
    self.assertEqual(inputs.describe(got)['dropped_texts'], 1)
    self.assertIn('Left out 1 of 3 documents of --data_text', logs.output[0])
    self.assertEqual(
        inputs.describe(inputs.read(self._config()))['dropped_texts'], 0)
    write(stated)
    with self.assertRaisesRegex(ValueError, 'Each of the 1 documents of'):
      inputs.read(config)

  def test_bad_input_is_refused_with_its_place(self):
    with self.assertRaisesRegex(ValueError, '--data_forget=FILE'):
      inputs.read(self._config(forget=()))
    config = self._config()
    for name in ('text.txt', 'f.jsonl'):
      shutil.copy(self.root / name, self.root / f'copy_{name}')
    with self.assertRaisesRegex(ValueError, "'Some text.*--data_heldout_text"):
      inputs.read(self._config(
          heldout_text=(str(self.root / 'copy_text.txt'),)))
    with self.assertRaisesRegex(
        ValueError, 'retain set is also in the forget set'):
      inputs.read(self._config(retain=(str(self.root / 'copy_f.jsonl'),)))
    for other in ({'retain': config.data.forget},
                  {'retain': config.data.retain * 2}):
      with self.assertRaisesRegex(ValueError, '--data_retain=.* is named'):
        inputs.read(self._config(**other))
    twice = self._write('again.jsonl', [_question(9, 'fr')])
    with self.assertRaisesRegex(ValueError, r"r?again.jsonl:1: fact 'fr'"):
      inputs.read(self._config(retain=(twice,)))


if __name__ == '__main__':
  absltest.main()
