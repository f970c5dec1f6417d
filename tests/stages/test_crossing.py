"""Crossed prompts in a run: which there are, what is kept, what is refused."""

import collections
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.models import decoder
from mansu_jax.models import loading
from mansu_jax.stages import crossing
from mansu_jax.stages import inputs as inputs_lib
from mansu_jax.unlearn import objective
from tests import runs
from tests import tiny_job


class CrossingTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    made = tempfile.TemporaryDirectory()
    cls.addClassCleanup(made.cleanup)
    cls.folder = pathlib.Path(made.name)
    cls.flags = tiny_job.make(cls.folder / 'job')
    cls.model = loading.load(cls.folder / 'job' / 'model')
    run = jax.jit(lambda params, *packed: decoder.forward(
        cls.model.config, params, packed[0], positions=packed[1],
        attention_mask=objective.packed_mask(objective.Packed(*packed))))
    cls.hidden = lambda self, *packed: run(self.model.params, *packed)
    cls.say = lambda self, states: np.asarray(jax.nn.softmax(
        decoder.unembed(self.model.params, states)))

  def _config(self, *flags):
    return runs.parse(*self.flags, '--unlearn_crossed_batch=4', *flags)

  def _spans(self, *flags):
    config = self._config(*flags)
    return crossing.spans(
        config, inputs_lib.read(config).splits, self.model.tokenizer,
        self.hidden, self.say)

  def _texts(self, spans):
    return [self.model.tokenizer.decode(row[:size])
            for row, size in zip(spans.tokens, spans.length)]

  def test_off_by_default(self):
    config = runs.parse(*self.flags)
    splits = inputs_lib.read(config).splits
    self.assertEmpty(crossing.prompts(config, splits))
    self.assertIsNone(
        crossing.spans(config, splits, self.model.tokenizer,
                       self.hidden, self.say))

  def test_each_relation_gives_as_many(self):
    config = self._config('--unlearn_crossed_pool=40')
    splits = inputs_lib.read(config).splits
    got = crossing.prompts(config, splits)
    self.assertLen(set(got), 40)
    # Five train phrasings of two relations; capitals are forgotten of the
    # first twelve countries, and retained of the others.
    forms = {relation: [
        form for name, form in tiny_job._FORMS[relation].items()
        if name.startswith('train')] for relation in ('capital', 'crop')}
    count = collections.Counter(
        relation for prompt in got for relation, those in forms.items()
        if prompt.text in [f.format(prompt.subject) for f in those])
    self.assertEqual(count, {'capital': 20, 'crop': 20})
    self.assertContainsSubset(
        {p.subject for p in got}, tiny_job.COUNTRIES[:12])
    self.assertEqual(got, crossing.prompts(config, splits))
    other = self._config('--unlearn_crossed_pool=40', '--seed=1')
    self.assertNotEqual(got, crossing.prompts(other, splits))

  def test_what_leads_to_a_forgotten_answer_is_left_out(self):
    texts = self._texts(self._spans())
    self.assertNotEmpty(texts)
    crops = {form.format(name)
             for key, form in tiny_job._FORMS['crop'].items()
             if key.startswith('train') for name in tiny_job.COUNTRIES[:12]}
    self.assertContainsSubset(texts, crops)  # None of the capital's.
    self.assertGreater(len(texts), 50)  # Of 60.

  def test_states_are_the_bases_from_the_subject_on(self):
    spans = self._spans('--unlearn_crossed_pool=30')
    config, params = self.model.config, self.model.params
    for row, text in enumerate(self._texts(spans)):
      size, count = spans.length[row], int(spans.weight[row].sum())
      subject = next(c for c in tiny_job.COUNTRIES if c in text)
      before = self.model.tokenizer(text[:text.index(subject)].rstrip())
      self.assertEqual(
          spans.where[row, :count].tolist(),
          list(range(len(before['input_ids']), size)))
      want = decoder.forward(config, params, spans.tokens[row:row + 1, :size])
      np.testing.assert_allclose(
          spans.reference[row, :count], want[0, size - count:], rtol=1e-3,
          atol=1e-3)
      if row == 3:
        break

  def test_refuses_facts_without_a_subject(self):
    questions = [
        dict(q, fact='capital/x', prompt=f'{i}') for i, q in enumerate(
            tiny_job.questions()['forget'])]
    path = self.folder / 'no_subject.jsonl'
    tiny_job.write_jsonl(path, questions)
    flags = [f for f in self.flags if not f.startswith('--data_forget')]
    config = runs.parse(
        *flags, f'--data_forget={path}', '--unlearn_crossed_batch=4')
    with self.assertRaisesRegex(ValueError, 'share no word'):
      crossing.prompts(config, inputs_lib.read(config).splits)

  def test_refuses_when_each_prompt_leaks(self):
    retain = [q for q in tiny_job.questions()['retain']
              if q['relation'] == 'capital']
    path = self.folder / 'capitals_only.jsonl'
    tiny_job.write_jsonl(path, retain)
    flags = [f for f in self.flags if not f.startswith('--data_retain')]
    config = runs.parse(
        *flags, f'--data_retain={path}', '--unlearn_crossed_batch=4')
    with self.assertRaisesRegex(ValueError, 'leads the base to what is'):
      crossing.spans(
          config, inputs_lib.read(config).splits, self.model.tokenizer,
          self.hidden, self.say)


if __name__ == '__main__':
  absltest.main()
