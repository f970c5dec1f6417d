"""`--data_chat`: every mode asks facts through the chat template."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import pytest

from mansu_jax.data import subjects
from mansu_jax.data import tokenization
from mansu_jax.flows import plan
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.stages.prepare import swapped_subjects
from tests import bad_input
from tests import runs
from tests import tiny_job

_QUICK = (  # Each asks for something in a way of its own.
    '--unlearn_steps=2', '--unlearn_swapped_batch=2',
    '--quant_schemes=nf4,int8',
    '--unlearn_choice_kl_weight=1', '--unlearn_prompt_weight=1',
    '--eval_questions=24', '--eval_cad_pairs=4', '--eval_lens_questions=16',
    '--circuit_contrast=0.1', '--circuit_resamples=4', '--circuit_pairs=4',
    '--fisher_sequences=8')


class _Asked:
  """Notes in which form prompts are asked."""

  def __init__(self, test):
    self.forms = set()
    asked = tokenization._format_prompt

    def note(prompt, tokenizer, chat, *rest):
      self.forms.add(chat)
      return asked(prompt, tokenizer, chat, *rest)

    test.enterContext(mock.patch.object(tokenization, '_format_prompt', note))


@pytest.mark.slow
class EverywhereTest(absltest.TestCase):
  """A run that unlearns, its audit, attribution and a plan, all in chat form."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.flags = [*tiny_job.make(cls.folder / 'job', chat=True), *_QUICK]

  def setUp(self):
    super().setUp()
    self.asked = _Asked(self)

  def _check(self, record, root):
    self.assertEqual(self.asked.forms, {True})
    record = report.as_json(record)
    self.assertTrue(record['tokenization']['chat'])
    self.assertEqual(record['tokenization']['asked_as_written'], 0)
    self.assertIn('asked in chat form (--data_chat)',
                  (self.folder / root / 'report.md').read_text())
    return record

  def test_a_run_and_its_audit(self):
    record = self._check(
        runs.run(self.folder / 'run', *self.flags), 'run')
    # The base was trained only in chat form.
    for split in ('forget', 'forget_far', 'retain', 'retain_heldout'):
      self.assertGreater(record['accuracy'][split]['base']['fp']['value'], 0.9)
    self.assertGreater(record['swapped_prompts']['kept'], 0)
    self.assertNotEmpty(record['cad'])
    self.assertNotEmpty(record['readability'])
    self.assertIn('--data_chat\n',
                  (self.folder / 'run' / 'flags.txt').read_text())
    exported = loading.find(f'{self.folder}/run/model').tokenizer
    self.assertEqual(exported.chat_template, tiny_job.CHAT_TEMPLATE)

    self.asked.forms.clear()
    audited = self._check(runs.audit(self.folder / 'audit', *runs.audit_flags(
        self.flags, self.folder / 'job/model', self.folder / 'run/model')),
                          'audit')
    self.assertEqual(audited['accuracy'], record['accuracy'])
    self.assertEqual(audited['pair']['tokenizers'], 'the same')

  def test_attribution_and_a_plan(self):
    kept = [f for f in self.flags if f.startswith((
        '--model', '--data_forget', '--data_retain', '--data_chat',
        '--attribution', '--circuit'))]
    record = self._check(runs.attribute(
        self.folder / 'attribute', *kept, '--circuit_curve_circuits=0'),
                         'attribute')
    self.assertIn('phrasings', record['circuit']['stability'])
    self.assertGreater(record['metric']['answered'], 20)

    self.asked.forms.clear()
    plan.run(runs.parse('--mode=plan', '--plan_topology=this', *self.flags))
    self.assertEqual(self.asked.forms, {True})


class CrossedTest(absltest.TestCase):

  def test_swapped_prompts_are_retained_from_the_subject_on(self):
    *_, tokenizer = tiny_job.base(train=False, chat=True)
    chosen = [subjects.ask(('The king of ', ' lives in'), 'Alvaria'),
              subjects.ask(('', ': its king lives in'), 'Borvia')]
    encoded, start = swapped_subjects._encode(chosen, tokenizer, True)
    self.assertEqual(
        [tokenizer.decode(ids[at:]) for ids, at in zip(encoded, start)],
        [' Alvaria lives in\nreply\n', 'Borvia: its king lives in\nreply\n'])
    for ids, at in zip(encoded, start):
      self.assertStartsWith(tokenizer.decode(ids[:at]), '<|end|>user\n')
      self.assertEqual(ids.count(tokenizer.bos_token_id), 1)


class RefusalTest(bad_input.Refusals):

  def test_a_model_without_a_template(self):
    self.refused('--chat', message=(
        '/model: The tokenizer has no chat template, but --data_chat',
        'wanted a chat_template in', 'Leave the flag out'))

  def test_pairs_as_ids_without_a_tokenizer(self):
    config, params, _ = tiny_job.base(train=False)
    hf_io.write(self.folder / 'bare', config, params, None)
    path = self.folder / 'pairs.jsonl'
    path.write_text(json.dumps({
        'clean_ids': [1, 2], 'corrupt_ids': [1, 3], 'answer_id': 4,
        'corrupt_answer_id': 5}))
    self.flags = ['--mode=attribute', f'--model={self.folder}/bare',
                  f'--attribution_pairs_file={path}', '--data_chat']
    self.refused(message=('bare has no tokenizer, but --data_chat',))

  def test_chat_with_token_ids_only_is_refused(self):
    path = self.folder / 'pairs.jsonl'
    path.write_text(json.dumps({
        'clean_ids': [1, 2], 'corrupt_ids': [1, 3], 'answer_id': 4,
        'corrupt_answer_id': 5}))
    hf_io.write(self.folder / 'chat', *tiny_job.base(train=False, chat=True))
    self.flags = ['--mode=attribute', f'--model={self.folder}/chat',
                  f'--attribution_pairs_file={path}', '--data_chat']
    self.refused(message=('--data_chat changes nothing', 'are token ids'))

  def test_an_audit_without_questions(self):
    self.flags = ['--mode=audit', f'--base={self.job}/model',
                  f'--model={self.folder}/copy', '--data_chat']
    hf_io.write(self.folder / 'copy', *tiny_job.base(train=False))
    self.refused(message=('--data_chat has no effect in an audit without',))


if __name__ == '__main__':
  absltest.main()
