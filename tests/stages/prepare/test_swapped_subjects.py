"""Swapped-subject prompts: which are drawn, dropped and refused."""

import collections
import functools

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.data import packing
from mansu_jax.data import tokenization
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import swapped_subjects
from mansu_jax.stages.train import pools
from mansu_jax.unlearn import batches
from tests import runs
from tests import tiny_job
from tests.models import tiny

_MARK = 'Tell me. '
_PROMPTS_ALONE = (  # About forget subjects, as they are.
    '--unlearn_swapped_batch=4', '--unlearn_swapped_continuation=0',
    '--unlearn_swapped_other_share=0', '--nounlearn_forget_leaks')
_SUBJECTS = tiny_job.COUNTRIES[:12]  # Of the forget set.
_OPEN = {before + name + after for name in _SUBJECTS
         for before, after in swapped_subjects._OPEN_TEMPLATES}


class SwappedSubjectsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tiny.class_dir(cls)
    cls.flags = tiny_job.make(cls.folder / 'job')
    cls.model = loading.load(cls.folder / 'job' / 'model')
    run = jax.jit(lambda params, tokens, positions, segments: decoder.forward(
        cls.model.config, params, tokens, positions=positions,
        segments=segments))
    cls.refer = lambda self, spans: batches.add_reference(
        spans, functools.partial(run, self.model.params), packing.fill_rows)
    cls.next_token = lambda self, states: np.asarray(jax.nn.softmax(
        decoder.unembed(self.model.config, self.model.params, states)))

    cls.write = staticmethod(pools.reference_of(cls.model).write)

  def _config(self, *flags):
    return runs.parse(*self.flags, *_PROMPTS_ALONE, *flags)

  def _spans(self, config):
    return swapped_subjects.spans(
        config.unlearn, config.data, inputs_lib.read(config).splits,
        self.model.tokenizer, self.refer, self.next_token, self.write,
        seed=config.seed)

  def _prompts(self, config):
    return swapped_subjects.prompts(
        config.unlearn, inputs_lib.read(config).splits, config.seed)

  def _texts(self, spans):
    return [self.model.tokenizer.decode(row[:size])
            for row, size in zip(spans.tokens, spans.length)]

  def test_can_be_off(self):
    self.assertEqual(
        self._prompts(self._config('--unlearn_swapped_batch=0')), ([], {}))

  def _reworded(self, relations=('capital', 'crop')):
    """Flags of a retain set with its own phrasings for capitals."""
    retain = []
    for q in tiny_job.questions()['retain']:
      if q['relation'] not in relations:
        continue
      if q['relation'] == 'capital':
        if q['id'].endswith('train_0'):  # Reworded, the base does not know it.
          continue
        q = dict(q, prompt=_MARK + q['prompt'])
      retain.append(q)
    path = self.folder / f'reworded_{len(relations)}.jsonl'
    tiny_job.write_jsonl(path, retain)
    return [*(f for f in self.flags if not f.startswith('--data_retain')),
            f'--data_retain={path}', *_PROMPTS_ALONE]

  def test_half_are_open_and_relations_share_the_rest(self):
    flags = [*self._reworded(), '--unlearn_swapped_pool=40']
    config = runs.parse(*flags)
    got, report = self._prompts(config)
    self.assertLen({prompt.text for prompt in got}, 40)
    self.assertEqual(
        collections.Counter(
            'open' if p.text in _OPEN else p.text.startswith(_MARK)
            for p in got),
        {'open': 20, True: 10, False: 10})
    forms = [form for forms in tiny_job._FORMS.values()
             for name, form in forms.items() if name.startswith('train')]
    for prompt in got:
      self.assertEqual(prompt.text.find(prompt.subject), prompt.start)
      if prompt.text not in _OPEN:
        self.assertIn(prompt.text.removeprefix(_MARK),
                      [form.format(prompt.subject) for form in forms])
    self.assertContainsSubset({p.subject for p in got}, _SUBJECTS)
    self.assertEqual(report, {
        'subjects': 12, 'asked_elsewhere': 0, 'facts_without_subject': 0})
    self.assertEqual(got, self._prompts(config)[0])
    other = runs.parse(*flags, '--seed=1')
    self.assertNotEqual(got, self._prompts(other)[0])

  def test_prompts_of_forget_and_evaluation_questions_are_skipped(self):
    questions = tiny_job.questions()
    heldout = [
        dict(q, id=f'other/{i}', fact=f'other/{i}', use='far',
             prompt=q['prompt'].upper(), answer=next(
                 c for c in q['choices'] if c != q['answer']))
        for i, q in enumerate(questions['retain'])
        if q['relation'] == 'crop' and q['id'].endswith('/train_2')]
    path = self.folder / 'asked_heldout.jsonl'
    tiny_job.write_jsonl(path, heldout)
    config = self._config(f'--data_heldout={path}')
    got, report = self._prompts(config)
    self.assertEqual({p.text for p in got}, _OPEN | {
        form.format(country) for country in _SUBJECTS
        for name, form in tiny_job._FORMS['crop'].items()
        if name.startswith('train') and name != 'train_2'})
    self.assertEqual(report['asked_elsewhere'], 60 + 12)

  def test_retained_subjects_and_answers_in_forget_phrasings(self):
    config = self._config('--unlearn_swapped_other_share=0.5',
                          '--unlearn_swapped_pool=80')
    splits = inputs_lib.read(config).splits
    got = self._prompts(config)[0]
    self.assertLen(got, 160)
    about = collections.Counter()
    answers = {q.answer for q in splits.retain_train}
    asked = {q.prompt for q in splits.forget_train}
    for prompt in got[80:]:
      self.assertNotIn(prompt.subject, _SUBJECTS)
      about['answer' if prompt.subject in answers else 'subject'] += 1
      likeness = prompt.text.replace(prompt.subject, _SUBJECTS[0])
      about['forget'] += likeness in asked
      about['open'] += likeness in _OPEN
    self.assertEqual(about['forget'] + about['open'], 80)
    self.assertGreater(min(about.values()), 5)

    def next_token(states):  # Says a forget answer after every other prompt.
      said = np.zeros((states.shape[0], self.model.config.vocab_size))
      said[::2] = 0.5
      return said

    self.next_token = next_token
    spans, _, report = self._spans(config)
    self.assertEqual(report['about_retained'], 40)
    texts = self._texts(spans)
    self.assertEqual(
        texts[-40:], [prompt.text for prompt in got[80::2]])

  def test_prompts_that_leak_a_forgotten_answer_ask_for_it(self):
    dropped = self._spans(runs.parse(*self._reworded()))
    self.assertEmpty(dropped[1])
    config = runs.parse(*self._reworded(), '--unlearn_forget_leaks')
    spans, leaking, report = self._spans(config)
    self.assertEqual({**dropped[2], 'forgotten': len(leaking)}, report)
    texts = self._texts(spans)
    crops = {form.format(name)
             for key, form in tiny_job._FORMS['crop'].items()
             if key.startswith('train') for name in _SUBJECTS}
    about_retained = set(texts) - _OPEN
    self.assertContainsSubset(about_retained, crops)  # None about capitals.
    self.assertGreater(len(about_retained), 50)  # Of 60.
    self.assertEqual(report['kept'], len(texts))
    self.assertEqual(report['leaking'], 108 + len(_OPEN) - len(texts))
    self.assertLen(leaking, report['leaking'])
    facts = {q.fact: q for q in inputs_lib.read(config).splits.forget_train}
    for question in leaking:
      self.assertEqual(question.answer, facts[question.fact].answer)
      self.assertNotIn(question.prompt, texts)
    forms = {}  # One phrasing each, about several subjects.
    for question in leaking:
      forms.setdefault(question.form, []).append(question)
    self.assertLess(len(forms), len(leaking))
    for form, some in forms.items():
      self.assertLen({q.prompt for q in some}, len(some), form)
      self.assertLen({len(q.prompt.split()) for q in some}, 1, form)

  def test_references_are_base_states_from_the_subject_on(self):
    spans = self._spans(self._config('--unlearn_swapped_pool=30'))[0]
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

  def test_the_base_continues_open_prompts_about_forget_subjects(self):
    flags = '--unlearn_swapped_pool=40', '--unlearn_swapped_other_share=0.25'
    alone, _, before = self._spans(self._config(*flags))
    spans, _, report = self._spans(
        self._config(*flags, '--unlearn_swapped_continuation=3'))
    self.assertEqual(before | {'written': report['written']}, report)
    self.assertGreater(report['written'], 20)
    states = jax.jit(functools.partial(
        decoder.forward, self.model.config, self.model.params))
    for row, prompt in enumerate(self._texts(alone)):
      size = alone.length[row]
      tokens = spans.tokens[row, :spans.length[row]]
      np.testing.assert_array_equal(tokens[:size], alone.tokens[row, :size])
      if prompt not in _OPEN:
        self.assertLen(tokens, size)
        continue
      want = list(tokens[:size])
      for _ in range(3):
        padded = want + [0] * (40 - len(want))
        last = states(np.array([padded]))[:, len(want) - 1]
        want.append(int(np.argmax(self.next_token(last))))
      self.assertEqual(list(tokens), want[:tokens.size])

  def test_a_continuation_ends_before_an_answer_of_its_subject(self):
    config = self._config('--unlearn_swapped_continuation=3',
                          '--unlearn_swapped_pool=40')
    asked = inputs_lib.read(config).splits.forget_train
    first = {  # First tokens of the capitals.
        q.fact.split('/')[1].capitalize(): encoded.choices[q.answer_index][0]
        for q, encoded in zip(asked, tokenization.encode_questions(
            asked, self.model.tokenizer))}
    filler = max(first.values()) + 1

    def write(prompts, most):
      self.assertEqual(most, 3)
      subjects = [next(c for c in first if c in text)
                  for text in map(self.model.tokenizer.decode, prompts)]
      other = {c: first[_SUBJECTS[_SUBJECTS.index(c) - 1]] for c in first}
      return [[filler, other[c], first[c]] for c in subjects]

    self.write = write
    lengths = [self._spans(config)[0].length]
    self.write = lambda prompts, most: [[]] * len(prompts)
    lengths.append(self._spans(config)[0].length)
    self.assertEqual(set(lengths[0] - lengths[1]), {0, 2})  # Others, open ones.

  def test_nothing_is_preserved_where_the_base_would_say_the_answer(self):
    config = self._config('--unlearn_swapped_continuation=3',
                          '--unlearn_swapped_pool=40')
    self.next_token = lambda states: np.zeros((
        states.shape[0], self.model.config.vocab_size))
    every, _, before = self._spans(config)
    left = before['written']

    def next_token(states):  # Says any answer in each second written state.
      nonlocal left
      said = np.zeros((states.shape[0], self.model.config.vocab_size))
      said[:max(0, left):2] = 0.5
      left -= states.shape[0]
      return said

    self.next_token = next_token
    spans, _, report = self._spans(config)
    self.assertEqual(report['written'], before['written'] // 2)
    self.assertEqual(
        spans.weight.sum(), every.weight.sum() - -(-before['written'] // 2))

  def _has_none(self, config, message):
    """Checks that a run warns and trains without such prompts."""
    splits = inputs_lib.read(config).splits
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as logs:
      swapped_subjects.check(
          config.unlearn, splits, self.model.tokenizer, 128, seed=config.seed,
          chat=False)
    self.assertRegex(logs.output[0], message)
    batches = pools.make_batches(
        config.unlearn, config.data, splits, self.model, seed=config.seed)
    self.assertIsNone(batches(0).swapped)
    self.assertEqual(batches.swapped_report['kept'], 0)

  def test_reverse_lines_leave_the_subjects_of_the_others(self):
    reverse = [
        q | {'id': q['id'] + '_reverse', 'reading': 'reverse',
             'prompt': f'{q["answer"]} is the seat of', 'choices': [
                 name, 'Vexham'], 'answer': name}
        for q in tiny_job.questions()['forget'] if q['id'].endswith('train_0')
        for name in tiny_job.COUNTRIES if name.lower() in q['fact']]
    path = self.folder / 'reverse.jsonl'
    tiny_job.write_jsonl(path, reverse)
    got, report = self._prompts(self._config(f'--data_forget={path}'))
    self.assertEqual(report['facts_without_subject'], 0)
    self.assertEqual(
        {p.subject for p in got},
        {*_SUBJECTS, *tiny_job.CAPITALS[:12]})
    both = inputs_lib.read(
        self._config(f'--data_forget={path}')).splits.forget_train
    _, relations, _ = pools.grouping(both, both)
    self.assertEqual({*relations}, {'capital', 'capital, reversed'})

  def test_facts_without_a_subject_give_none(self):
    questions = [
        dict(q, fact='capital/x', prompt=f'{i}') for i, q in enumerate(
            tiny_job.questions()['forget'])]
    path = self.folder / 'no_subject.jsonl'
    tiny_job.write_jsonl(path, questions)
    flags = [f for f in self.flags if not f.startswith('--data_forget')]
    config = runs.parse(
        *flags, f'--data_forget={path}', '--unlearn_swapped_batch=4',
        '--unlearn_swapped_other_share=1')
    self._has_none(config, 'of a forget fact share no word')

  @parameterized.parameters((0.5, True), (0, False))
  def test_questions_elsewhere_leave_open_phrasings(self, share, left):
    retain = [q for q in tiny_job.questions()['retain']
              if q['relation'] == 'capital']
    path = self.folder / 'capitals_only.jsonl'
    tiny_job.write_jsonl(path, retain)
    flags = [f for f in self.flags if not f.startswith('--data_retain')]
    config = runs.parse(
        *flags, f'--data_retain={path}', *_PROMPTS_ALONE,
        f'--unlearn_swapped_open_share={share}')
    got, report = self._prompts(config)
    self.assertEqual({p.text for p in got}, _OPEN if left else set())
    self.assertGreater(report['asked_elsewhere'], 0)
    if not left:
      self._has_none(config, 'is a question of the forget set')

  def test_none_are_left_when_each_leaks(self):
    self.next_token = lambda states: np.ones((
        states.shape[0], self.model.config.vocab_size))
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as logs:
      spans, _, report = self._spans(self._config())
    self.assertIsNone(spans)
    self.assertRegex(logs.output[-1], 'with a forget answer; add')
    self.assertGreater(report['leaking'], 0)
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as logs:
      spans, _, report = self._spans(
          self._config('--unlearn_swapped_other_share=0.1'))
    self.assertRegex(logs.output[-1], 'about forgotten subjects, so ')
    self.assertLen(spans.length, report['about_retained'])
    self.assertGreater(report['about_retained'], 0)

  def test_refuses_prompts_that_are_too_long(self):
    config = self._config()
    splits = inputs_lib.read(config).splits
    check = lambda max_position: swapped_subjects.check(
        config.unlearn, splits, self.model.tokenizer, max_position,
        seed=config.seed, chat=False)
    longest = max(len(self.model.tokenizer(p.text)['input_ids'])
                  for p in self._prompts(config)[0])
    check(longest)
    config = self._config('--unlearn_swapped_continuation=128')
    with self.assertRaisesRegex(
        ValueError, 'tokens and --unlearn_swapped_continuation=128 more; want'):
      check(longest + 8)
    config = self._config()
    with self.assertRaisesRegex(
        ValueError, r'has \d+ tokens; wanted at most 4'):
      check(4)


if __name__ == '__main__':
  absltest.main()
