"""The sections of an unlearning run show the record's figures."""

import dataclasses

from absl.testing import absltest

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.report import write
from mansu_jax.report.sections import accuracy
from mansu_jax.report.sections import provenance
from mansu_jax.report.sections import training
from tests.report import cases
from tests.report import records


class SectionsTest(cases.ReportTest):

  def test_accuracies_are_the_records(self):
    record = records.make()
    rows = self.page(record).table('split', 'model', 'precision')
    for split, model, precision, value, interval, norm, n in rows:
      entry = record['accuracy'][split.split()[0]][model][precision]
      low, high = entry['interval']
      self.assertEqual(value, f'{entry["value"]:.3f}')
      self.assertEqual(interval, f'[{low:.3f}, {high:.3f}]')
      self.assertEqual(norm, f'{entry["acc_norm"]:.3f}')
      self.assertEqual(n, str(entry['n']))
    self.assertLen(rows, 4 * 2 * 3)

  def test_what_became_of_swapped_prompts(self):
    record = records.make()
    text = lambda: training.section(record).blocks[-1].text
    self.assertIn('703 prompts were used. 97 were dropped because', text())
    self.assertNotIn('forgets there', text())
    record['swapped_prompts'] |= {'forgotten': 97, 'about_retained': 40}
    self.assertIn('used. 40 of them ask about retained subjects. 97', text())
    self.assertIn('a forget answer, which training forgets there, and', text())
    record['swapped_prompts']['written'] = 512
    self.assertIn('forgotten subjects by 512 tokens, which', text())

  def test_an_early_end_is_said_with_its_reason(self):
    said = lambda: [x.text for x in training.section(record).blocks
                    if 'Training ended' in getattr(x, 'text', '')]
    record = records.make()
    done = len(record['history']['step'])
    options = record['config']['unlearn']
    options |= {'patience': 20, 'stop_forget': 0.0}
    record['trained'] = {'most_steps': done}
    self.assertEqual(said(), [])
    record['trained']['most_steps'] += 30
    record['history']['probe'] = [None] * (done - 1) + [0.25]
    ended = f'Training ended after {done} of at most {done + 30} steps, since '
    self.assertEqual(
        said(), [ended + 'the probe no longer fell (--unlearn_patience=20).'])
    options['stop_forget'] = 0.25
    self.assertEqual(
        said(), [ended + 'the probe reached --unlearn_stop_forget=0.25.'])

  def test_gaps_are_the_records(self):
    record = records.make()
    page = self.page(record)
    rows = page.table('quantizer', 'PTQ gap')
    self.assertEqual([row[0] for row in rows], list(records.SCHEMES))
    for row in rows:
      for cell, key in zip(
          row[1:4], ('ptq_gap', 'ptq_gap_base', 'ptq_gap_adjusted')):
        entry = record[key][row[0]]
        low, high = entry['interval']
        self.assertEqual(
            cell, f'{entry["value"]:+.3f} [{low:+.3f}, {high:+.3f}]')
    for scheme, upper, smallest, discordant, p, n in page.table(
        'quantizer', 'upper bound of the gap'):
      gap = record['ptq_gap'][scheme]
      self.assertEqual(upper, f'{gap["upper"]:+.3f}')
      self.assertEqual(smallest, f'{gap["smallest_detectable"]:.3f}')
      self.assertEqual(discordant, f'{gap["discordant"]:.3f}')
      self.assertEqual(float(p), round(gap['mcnemar_p'], 3))
      self.assertEqual(n, str(gap['n']))

  def test_perplexities_and_ratios_are_the_records(self):
    record = records.make()
    rows = self.page(record).table('text', 'precision', 'base')
    every = {'all kinds': record['perplexity'], **record['perplexity_by_text']}
    self.assertLen(rows, 3 * len(every))
    for kind, precision, base, after, ratio in rows:
      before, now = (every[kind][m][precision] for m in ('base', 'unlearned'))
      self.assertEqual(base, f'{before:.2f}')
      if now is None:
        self.assertEqual((after, ratio), ('not measured', 'not measured'))
      else:
        self.assertEqual(after, f'{now:.2f}')
        self.assertEqual(ratio, f'{now / before:.4f}')

  def test_damage_is_sorted_by_loss(self):
    rows = self.page(records.make()).table('split', 'relation')
    self.assertEqual([row[1] for row in rows[:3]],
                     ['landmark', 'continent', 'element'])
    self.assertEqual(rows[0][2:4], ['0.830 → 0.710', '-0.120'])

  def test_long_tables_say_what_they_leave_out(self):
    self.assertIn('3 more groups are in record.json.',
                  self.page(records.make()).text)

  def test_survival_is_the_records(self):
    record = records.make()
    rows = self.page(record).table('quantizer', 'moved')
    for scheme, *cells in rows:
      found = record['survival'][scheme]
      for cell, key in zip(cells, (
          'moved', 'changed_codes', 'moved_unchanged')):
        self.assertAlmostEqual(float(cell.removesuffix(' %')) / 100,
                               found[key], delta=1e-5)
      self.assertEqual(
          cells[4:], [f'{found[k]:.4f}' for k in ('carried', 'cosine')])

  def test_page_shows_all_nulls(self):
    record = records.make()
    text = self.page(record).text
    for key in ('cad', 'as_nc'):
      for null in record[key]['nulls'].values():
        self.assertIn(f'{null.get("mean", null.get("value")):.3f}', text)
    self.assertIn('(33.4 % against 33.2 %, judged by first tokens)', text)
    record['suppression_control']['matched'] = False
    self.assertIn('does not reach that share (33.4 % against 33.2 %',
                  self.page(record).text)
    del record['suppression_control']  # As of records before 0.2.
    self.assertIn('This run has no output-suppression control',
                  self.page(record).text)

  def test_hidden_shares_are_the_records_with_the_intervals_that_decide(self):
    found = records.make()['structure']['hidden_share']
    page = self.page(records.make())
    rows = page.table('precision', 'hidden share [95 % interval]')
    self.assertEqual([row[0] for row in rows], list(found))
    for row in rows:
      entry = found[row[0]]
      low, high = entry['interval']
      self.assertEqual(row[1], f'{entry["value"]:.3f} [{low:.3f}, {high:.3f}]')
      self.assertEqual(row[4:], [f'{entry[k]:.3f}' for k in (
          'own', 'block', 'early', 'looks', 'values', 'last_state')])
      left, (low, high) = entry['left']['value'], entry['left']['interval']
      self.assertEqual(row[3], f'{left:.3f} [{low:.3f}, {high:.3f}]')
      low, high = entry['interval_of_all']
      self.assertIn(f'{row[0]} [{low:.3f}, {high:.3f}]', page.text)

  def test_cad_and_as_nc_share_a_reason(self):
    record = records.bare()
    record['unmeasured'] = dict.fromkeys(('cad', 'as_nc'), 'of reasons.')
    self.assertIn('CAD and AS-NC were not measured: of reasons.',
                  self.page(record).text)

  def test_accuracy_shows_the_level_of_an_ignorant_model(self):
    record = records.make()
    self.assertIn('ignorant 0.32', self.page(record).text)
    self.assertEqual(accuracy.chance(record), 0.317)
    del record['forgetting']['choice']
    self.assertIsNone(accuracy.chance(record))
    self.assertNotIn('ignorant 0.32', self.page(record).text)

  def test_readability_is_the_records(self):
    record = records.make()
    rows = self.page(record).table('readability of')
    self.assertEqual(rows[0][1:], ['0.064 [-0.020, 0.151]', '358 questions'])
    self.assertEqual(rows[1][0], 'unlearned, nf4')
    self.assertLen(rows, 6)  # With four nulls.
    self.assertEqual(rows[2][2], '95 % level 0.058 (500 draws)')
    self.assertEqual(rows[3][2], '5 % level 0.967 (500 draws)')
    text = self.page(record).text
    self.assertIn(
        'full precision inconclusive (inconclusive checks: readability within'
        ' the guessing level), nf4 inconclusive', text)
    self.assertIn('fewest right answers (4) answers 0.187 [0.140, 0.230]'
                  ' of the questions; guessing answers at least 0.192', text)
    record['readability'] = {'reason': 'there are 3 retain questions'}
    self.assertIn('Readability was not measured: there are 3 retain questions.',
                  self.page(record).text)

  def test_copy_back_is_the_records(self):
    record = records.make()
    rows = self.page(record).table('precision', 'restored part')
    self.assertEqual(rows[1], [
        'fp', 'everything outside the circuit', '0.364',
        '0.107 [0.007, 0.207]'])
    self.assertEqual(rows[4], [
        'fp', 'a random half of the circuit', '0.488', '0.314 [0.214, 0.414]'])
    self.assertLen(rows, 5)
    record['copy_back'] = records.copy_back(confined=True)
    page = self.page(record)
    self.assertIn('Restoring the circuit gives the base', page.text)
    self.assertIn('each layer: fp +0.209 [+0.043, +0.371].', page.text)
    self.assertEqual(
        [row[1] for row in page.table('precision', 'restored part')],
        ['a random circuit',
         'the half of the circuit with the highest scores',
         'a random half of the circuit'])
    # As older records have it.
    del record['copy_back']['best_half_less_random']
    self.assertNotIn('each layer: fp', self.page(record).text)

  def test_missing_measurements_show_no_figures(self):
    page = self.page(records.bare())
    self.assertIn('no questions for forget, forget_paraphrase', page.text)
    self.assertIn('Not measured: the forget set has no near or far questions.',
                  page.text)
    self.assertIn('No weight moved', page.text)
    self.assertIn('The hidden share was not measured: there are too few forget'
                  ' questions.', page.text)
    self.assertIn('Attacks were not measured: the forget facts do not suffice.',
                  page.text)
    self.assertIn('CAD was not measured: there are no pairs.', page.text)
    self.assertIn('AS-NC was not measured: --eval_cad_pairs=0 skips it.',
                  page.text)
    self.assertIn('not judged', page.text)
    self.assertNotRegex(page.text, r'\b(nan|None|inf)\b')
    rows = page.table('split', 'questions asked')
    self.assertEqual({cell for row in rows for cell in row[1:2]}, {'none'})

  def test_a_missing_split_is_named(self):
    page = self.page(records.make())
    self.assertIn('The data have no questions for forget_far', page.text)

  def test_dequantised_weights_are_called_so(self):
    text = self.page(records.make()).text
    self.assertIn('float32 dequantised from Q4_1 GGUF', text)
    self.assertIn('decoded from a quantized file', text)
    record = records.make()
    record['model']['weights_note'] = 'float32 from safetensors'
    self.assertNotIn('decoded from a quantized', self.page(record).text)

  def test_a_base_in_the_quantizers_own_format_is_remarked(self):
    record = records.make()
    known = 'already decoded q4_1 values'
    self.assertNotIn(known, self.page(record).text)
    record['quantizers']['q4_1'] = record['quantizers']['nf4'] | {
        'name': 'q4_1'}
    self.assertIn(known, self.page(record).text)

  def test_samples_keep_their_markup_as_text(self):
    rows = self.page(records.make()).table('split', 'prompt')
    self.assertEqual(rows[0][1], records.PROMPT)
    self.assertEqual(rows[0][4], '(nothing)')
    self.assertEqual(rows[0][5], '<b>Lyon</b> | the')
    text = (self.written(records.make()) / 'report.md').read_text()
    self.assertNotIn('<script', text)
    self.assertNotIn('<b>', text)

  def test_flags_repeat_the_run(self):
    config = run_config.RunConfig(
        seed=3, debug=True, quant_schemes=('nf4', 'fp4'),
        data=run_config.DataConfig(forget=('a.jsonl', 'b.jsonl')))
    lines = list(provenance.flags(write.as_json(dataclasses.asdict(config))))
    self.assertCountEqual(lines, flags_lib.to_flagfile(config).splitlines())


if __name__ == '__main__':
  absltest.main()
