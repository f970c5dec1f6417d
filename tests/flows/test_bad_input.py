"""Every bad input is refused early, with one message and a remedy.

Most cases call `main.main`; a few start a process.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from tests import bad_input
from tests import tiny_job

_ROOT = pathlib.Path(__file__).parents[2]


class DataTest(bad_input.Refusals):

  @parameterized.parameters('forget', 'retain', 'heldout', 'text')
  def test_missing_file(self, role):
    self.refused(f'--data_{role}=no/such.jsonl', message=(
        "'no/such.jsonl' does not exist", 'wanted', 'Correct the path'))

  def test_files_that_are_not_regular(self):
    self.without('--attribution_pairs')
    pipe, link = self.folder / 'pipe', self.folder / 'link'
    os.mkfifo(pipe)
    link.symlink_to(link)
    for path, what in (
        ('/dev/null', 'is a device, which cannot be read again'),
        (pipe, 'is a pipe or socket, which cannot be read again'),
        (link, 'cannot be read .Too many levels'), (self.folder, 'a folder')):
      for flag in ('--data_forget', '--data_text', '--attribution_pairs_file'):
        self.refused(f'{flag}={path}', message=(
            f"'{path}' .*{what}", 'wanted a readable file', 'Correct the path'))
    for path in '/dev/null', pipe:
      self.refused(f'--model={path}', message=(
          f"'{path}' is a pipe, socket or device; wanted", 'Write it to a'))

  @parameterized.parameters('forget', 'retain')
  def test_no_file(self, role):
    self.without(f'--data_{role}')
    self.refused(message=(f'No file .* {role} set', f'Give --data_{role}='))

  @parameterized.parameters('forget', 'retain', 'heldout', 'text')
  def test_empty_file(self, role):
    self.refused(self.data(role, []), message=(
        f'{role}.jsonl: is empty', 'wanted', 'Fill the file'))

  def test_malformed_line_with_file_and_line_number(self):
    lines = [*tiny_job.questions()['forget'][:3], '{"id": "x", ']
    self.refused(self.data('forget', lines), message=(
        'forget.jsonl:4: is not JSON', 'got', 'wanted', 'Correct the line'))

  @parameterized.parameters(
      ('{"id": ' + '7' * 5000 + '}', 'is not JSON', 'digits'),
      ('[' * 100_000, 'is not JSON', 'nested too deeply'),
      (r'{"id": "\ud800"}', 'half a surrogate pair', r'\\ud800', 'wanted'))
  def test_a_line_that_json_or_unicode_does_not_take(self, line, *message):
    lines = [*tiny_job.questions()['forget'][:3], line]
    self.refused(self.data('forget', lines), message=(
        'forget.jsonl:4: ', *message))

  @parameterized.parameters(
      (dict(answer=None), "lacks the field 'answer'"),
      (dict(answer='  '), "'answer' is blank"),
      (dict(use='test'), "'use' is 'test'"),
      (dict(choices=['Brask', 'Hollin']), 'not among the choices'),
      (dict(choices=['Abelton']), 'has 1 entries'),
      (dict(choices='Abelton'), "'choices' is"))
  def test_malformed_question(self, changes, message):
    question = tiny_job.questions()['forget'][0] | changes
    question = {k: v for k, v in question.items() if v is not None}
    self.refused(self.data('forget', [question]), message=(
        'forget.jsonl:1: ', message))

  @parameterized.parameters('forget', 'retain')
  def test_answer_without_tokens(self, role):
    model = self.folder / 'model'
    shutil.copytree(self.job / 'model', model)
    fields = json.loads((model / 'tokenizer.json').read_text())
    fields['normalizer'] = {  # Drops digits.
        'type': 'Replace', 'pattern': {'Regex': r'\s*[0-9]'}, 'content': ''}
    (model / 'tokenizer.json').write_text(json.dumps(fields))
    lines = tiny_job.questions()[role]
    lines[4] |= {'answer': '7', 'choices': ['7', 'Brask']}
    self.refused(
        self.data(role, lines), f'--model={model}', message=(
            f"{role}.jsonl:5: answer '7' has no tokens", 'wanted', 'Reword'))

  @parameterized.parameters('retain', 'heldout')
  def test_forget_overlaps_with(self, role):
    lines = tiny_job.questions()[role]
    lines[2] |= {'fact': 'capital/alvaria'}
    self.refused(self.data(role, lines), message=(
        f"{role}.jsonl:3: fact 'capital/alvaria' of the {role} set is also in"
        ' the forget set at', 'forget.jsonl:1', 'Remove it'))

  def test_a_file_named_twice(self):
    (path,) = (f.split('=')[1] for f in self.flags
               if f.startswith('--data_forget='))
    self.refused(f'--data_forget={path}', message=(
        '--data_forget=.* is named twice', 'each file once', 'leave out one'))
    self.refused(f'--data_heldout={path}', message=(
        '--data_heldout=.* is named in --data_forget too',))

  def test_nothing_to_train_on(self):
    lines = [q for q in tiny_job.questions()['forget'] if q['use'] != 'train']
    self.refused(self.data('forget', lines), message=(
        'forget set', "no question of use 'train'", 'wanted'))

  @parameterized.parameters(
      ('forget', 1, 'pairs of the forget set have 1 fact'),
      ('retain', 1, 'None of the'))
  def test_a_set_that_makes_no_pairs(self, role, facts, message):
    lines = tiny_job.questions()[role][:9 * facts]
    self.refused(self.data(role, lines), message=(message, '[Aa]dd facts'))

  @parameterized.parameters(
      ('answer_swap', 'needs two facts'), ('group_marginal', 'averages over the facts'))
  def test_a_loss_that_needs_other_facts(self, loss, message):
    lines = tiny_job.questions()['forget']
    lines[0] |= {'relation': 'lone'}
    self.refused(f'--unlearn_loss={loss}', self.data('forget', lines),
                  message=(message, 'lone', 'add facts'))

  def test_wrong_choices_that_all_start_with_the_answer(self):
    lines = tiny_job.questions()['forget']
    for line in lines:
      if line['fact'] == lines[0]['fact']:
        line['choices'] = [line['answer'], line['answer'] + ' Brask']
    self.refused(
        '--unlearn_choice_kl_weight=1', self.data('forget', lines),
        message=('needs wrong choices', lines[0]['fact'], 'Set it to 0'))

  def test_a_pairs_file_with_a_bad_line(self):
    path = self.folder / 'pairs.jsonl'
    path.write_text(json.dumps({
        'clean': 'The capital of Alvaria is', 'answer': 'Abelton',
        'corrupt': 'The capital is', 'corrupt_answer': 'Brask'}))
    self.without('--attribution_pairs')
    self.refused(f'--attribution_pairs_file={path}', message=(
        'pairs.jsonl: 1 of 1 pairs', 'wanted equal', 'line 1 has 5 and'))

  def test_a_prompt_beyond_the_model(self):
    lines = tiny_job.questions()['retain']
    lines[0] |= {'prompt': 'Alvaria ' * 200}
    self.refused(self.data('retain', lines), message=(
        'retain.jsonl:1: has 20. tokens', 'at most 128, the pos', 'Shorten'))


class FlagsTest(bad_input.Refusals):

  @parameterized.parameters('0', '-0.5', '1.01')
  def test_budget_outside(self, value):
    self.refused(f'--circuit_budget={value}', message=(
        '--circuit_budget=', r'outside \(0, 1\]', 'share of all'))

  def test_budget_under_one_node(self):
    self.refused('--circuit_budget=0.0001', message=(
        '--circuit_budget=0.0001', 'less than one node', 'Raise the budget'))

  @parameterized.parameters(
      (('--circuit_selection=all',), '--circuit_selection=all'),
      (('--method=graddiff', '--edit_floor=hold'), '--edit_floor=none'),
      (('--edit_floor=none', '--edit_landing=boundary'), 'contradicts'),
      (('--unlearn_fp_steps=30', '--unlearn_steps=30'),
       '--unlearn_fp_steps=30 of --unlearn_steps=30 leaves no step'),
      (('--base=other',), 'it applies to --mode=audit'))
  def test_flags_that_contradict(self, args, message):
    self.refused(*args, message=(message,))

  @parameterized.parameters(
      '--circuit_random_circuits=0', '--circuit_pairs=0', '--eval_questions=-1',
      '--eval_cad_pairs=1', '--unlearn_text_pool=0', '--unlearn_kl_weight=-1',
      '--unlearn_npo_beta=0', '--unlearn_nearest_share=1',
      '--unlearn_fp_steps=0', '--unlearn_swapped_batch=-1',
      '--unlearn_swapped_pool=0', '--unlearn_swapped_open_share=1.5',
      '--unlearn_choice_kl_weight=-1', '--unlearn_learning_rate=inf',
      '--circuit_contrast=nan', '--seed=-1')
  def test_numbers_out_of_range(self, flag):
    self.refused(flag, message=(flag.split('=')[0], 'must be|wanted'))

  @parameterized.parameters(
      ('nf5', '--quant_schemes=nf5', 'wanted one of', 'nf4', 'Correct'),
      ('nf4_b63', 'a block of 63', r'wanted one of \(32, 64', 'Correct'),
      ('nf4,nf4', 'repeats a quantizer', 'wanted each'),
      ('nf4,int4,int4_g128', r'repeats .*\(int4_g128 is int4\)', 'wanted each'),
      ('q4_k', 'starts with q4_k', 'fixed grid first', 'nf4, fp4'),
      ('gptq_g128,nf4', 'starts with gptq_g128', 'fixed grid first'))
  def test_quantizers(self, value, *message):
    self.refused(f'--quant_schemes={value}', message=message)

  def test_calibration_text_for_no_quantizer(self):
    self.refused('--data_calibration=shipped:text_retain.jsonl', message=(
        '--data_calibration=shipped', 'has none', 'gptq_g128', 'Leave'))

  def test_layers_that_the_model_lacks(self):
    self.refused('--circuit_first_layer=2', '--circuit_last_layer=7', message=(
        '--circuit_last_layer=7', "model's 3", 'wanted 0 <= first'))

  def test_positional_argument(self):
    self.refused('stray', message=(
        r"Positional arguments \['stray'\]", '--name=value'))


class WorkdirTest(bad_input.Refusals):

  def test_a_device_or_broken_link_as_workdir(self):
    (self.folder / 'loop').symlink_to(self.folder / 'loop')
    for path in '/dev/null', self.folder / 'loop':
      self.refused(f'--workdir={path}', message=(
          'it is a file or a broken link', 'Give a folder'))

  def test_no_workdir(self):
    self.refused('--workdir=', message=('No workdir', 'give --workdir=DIR'))

  def test_a_workdir_under_a_file(self):
    (self.folder / 'file').write_text('')
    self.refused(f'--workdir={self.folder}/file/run', message=(
        'cannot be written', 'Give a folder'))

  def test_the_workdir_of_another_run(self):
    other = self.folder / 'other'
    other.mkdir()
    (other / 'flags.txt').write_text('--seed=7\n')
    (other / 'record.json').write_text('{}')
    self.refused(f'--workdir={other}', message=(
        'holds another run', 'it has --seed=7', 'Give a new folder'))
    self.assertEqual((other / 'flags.txt').read_text(), '--seed=7\n')

  def test_a_workdir_with_foreign_files(self):
    other = self.folder / 'other'
    other.mkdir()
    (other / 'thesis.tex').write_text('')
    self.refused(f'--workdir={other}', message=(
        "'thesis.tex'", 'give a new or empty folder'))
    self.assertEqual([p.name for p in other.iterdir()], ['thesis.tex'])


class ProcessTest(parameterized.TestCase):
  """The program in a process of its own."""

  def _run(self, *args):
    env = os.environ | {'PYTHONPATH': str(_ROOT)}
    return subprocess.run(
        [sys.executable, '-m', 'mansu_jax.main', *args], env=env,
        capture_output=True, text=True, check=False, timeout=300)

  @parameterized.parameters(
      (('--circuit_budget=2',), '--circuit_budget=2.0 is outside'),
      (('--circuit_budget=much',), '--circuit_budget=much'),
      (('--unlearn_loss=x',), 'value should be one of'),
      (('--no_such_flag=1',), 'no_such_flag'),
      (('--flagfile=no/such.flags',), 'no/such.flags'),
      (('--seed=1', 'stray'), 'Positional arguments'),
      (('--data_forget=a.jsonl', '--data_retain=b.jsonl'), 'a.jsonl'))
  def test_one_message_and_status_2(self, args, message):
    done = self._run(*args)
    self.assertEqual(done.returncode, 2, done.stderr)
    lines = [line for line in done.stderr.splitlines()
             if line.startswith('mansu_jax: ')]
    self.assertLen(lines, 1)
    self.assertIn(message, lines[0])
    self.assertNotIn('Traceback', done.stderr)

  def test_debug_shows_the_traceback(self):
    done = self._run('--data_forget=a.jsonl', '--data_retain=b.jsonl',
                     '--debug')
    self.assertNotEqual(done.returncode, 0)
    self.assertRegex(done.stderr, 'Traceback(.|\n)*ValueError: .*a.jsonl')


if __name__ == '__main__':
  absltest.main()
