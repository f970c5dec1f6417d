"""The deployment check on a tiny model, and its parts without any engine."""

import collections
import contextlib
import importlib.util
import io
import json
import pathlib
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from scipy import special

from experiments import deployment_check
from experiments.deployment import bnb
from experiments.deployment import check
from experiments.deployment import compare
from experiments.deployment import items
from experiments.deployment import llamacpp
from experiments.deployment import simulator
from experiments.deployment import tables
from mansu_jax import quant
from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import accuracy
from mansu_jax.models import hf_io
from mansu_jax.models import layout
from mansu_jax.models import loading
from tests import tiny_job
from tests.models import tiny

_QUESTIONS = 3  # Of each split.


def _lacks(*names):
  return [n for n in names if importlib.util.find_spec(n) is None]


_NO_BNB = _lacks('torch', 'bitsandbytes', 'accelerate')
_NO_LLAMA = _lacks('llama_cpp')
needs_bnb = absltest.skipIf(_NO_BNB, f'not installed: {_NO_BNB}')
needs_llama = absltest.skipIf(_NO_LLAMA, f'not installed: {_NO_LLAMA}')


def _question(i, choices, prompt='a b', answer=None):
  return questions_lib.Question(
      id=f'q{i}', fact=f'fact{i}', relation='r', prompt=prompt, use='far',
      answer=answer or choices[0], choices=tuple(choices))


class _Letters:
  """A tokenizer of single characters."""

  def __call__(self, texts, add_special_tokens=False):
    del add_special_tokens
    return {'input_ids': [[ord(c) - 32 for c in text] for text in texts]}


class _Bigrams:
  """An engine that knows pairs of tokens only."""

  def __init__(self):
    logits = np.random.default_rng(0).normal(size=(96, 96))
    self.logprob = special.log_softmax(logits, axis=-1)

  def __call__(self, requests):
    return [np.array([self.logprob[r.tokens[p], t]
                      for p, t in zip(r.places, r.targets)])
            for r in requests]

  def sequence(self, text):
    ids = [ord(c) - 32 for c in text]
    return sum(self.logprob[a, b] for a, b in zip(ids, ids[1:]))


class PlanTest(absltest.TestCase):

  def test_scores_are_those_of_whole_sequences(self):
    asked = [_question(0, ['x', 'y', 'xyz', 'xy']), _question(1, ['uv', 'w'])]
    engine = _Bigrams()
    got = items.Plan(asked, _Letters()).score(engine)
    for question, row in zip(asked, got.logprob):
      want = [engine.sequence(f'{question.prompt} {choice}')
              - engine.sequence(question.prompt)
              for choice in question.choices]
      np.testing.assert_allclose(row[:len(want)], want, rtol=1e-12)
      self.assertTrue(np.isneginf(row[len(want):]).all())

  def test_choices_share_sequences(self):
    # Continuations ' x', ' y' and ' xy': inputs 'a b ' (twice) and 'a b x'.
    plan = items.Plan([_question(0, ['x', 'y', 'xy'])], _Letters())
    self.assertLen(plan.requests, 2)
    self.assertEqual([len(r.tokens) for r in plan.requests], [4, 5])
    self.assertEqual([len(r.targets) for r in plan.requests], [3, 3])

  def test_scores_that_are_not_finite_are_refused(self):
    plan = items.Plan([_question(0, ['x', 'y'])], _Letters())
    broken = lambda requests: [np.full(len(r.places), np.nan)
                               for r in requests]
    with self.assertRaisesRegex(ValueError, "'q0' score .* wanted finite"):
      plan.score(broken)

  def test_batches_hold_each_request_once_within_limits(self):
    rng = np.random.default_rng(0)
    requests = [items.Request((0,) * n, np.arange(1), np.arange(1))
                for n in rng.integers(1, 40, 200).tolist() + [300]]
    got = items.batches(requests, 128, 8)
    self.assertEqual(sorted(sum(got, [])), list(range(201)))
    self.assertEqual(got[0], [200])  # Longer than a batch: alone.
    for batch in got[1:]:
      widest = max(len(requests[i].tokens) for i in batch)
      self.assertLessEqual(widest * len(batch), 128)
      self.assertLessEqual(len(batch), 8)


class AnswersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = tiny.temp_dir(self) / 'answers.jsonl'

  def _line(self, i, split='retain', **changes):
    entry = {'choice': 'y', 'correct': False, 'margin': -0.5 - i}
    return {'split': split, 'id': f'q{i}', 'fact': f'f{i // 2}',
            'relation': 'r', 'prompt': 'a', 'answer': 'x',
            'choices': ['x', 'y'],
            'models': {'unlearned': {'fp': entry}}} | changes

  def _read(self, *lines):
    tiny_job.write_jsonl(self.path, lines)
    return items.read_answers(self.path)

  def test_reads_and_thins(self):
    got = self._read(*(self._line(i) for i in range(6)),
                     self._line(6, 'forget'))
    self.assertEqual(got.splits, ('retain',) * 6 + ('forget',))
    np.testing.assert_array_equal(
        got.recorded['fp'].margin, -0.5 - np.arange(7))
    np.testing.assert_array_equal(got.recorded['fp'].choice, [1] * 7)
    few = got.thin(3)
    self.assertEqual(few.splits, ('retain',) * 3 + ('forget',))
    self.assertLen({q.fact for q in few.questions}, 4)
    for question, margin in zip(few.questions, few.recorded['fp'].margin):
      self.assertEqual(margin, -0.5 - int(question.id[1:]))
    self.assertEqual(got.thin(0).questions, got.questions)

  @parameterized.parameters(
      ({'prompt': None}, 'wanted a string'),
      ({'models': {'unlearned': {'fp': {
          'choice': 'z', 'correct': True, 'margin': 1.0}}}},
       "choice 'z' of fp is none of"),
      ({'models': {'unlearned': {}}}, "lacks the field 'fp'"))
  def test_a_bad_line_is_named(self, changes, message):
    with self.assertRaisesRegex(ValueError, f'answers.jsonl:2.*{message}'):
      self._read(self._line(0), self._line(1, **changes))

  def test_answers_of_older_runs_are_refused(self):
    old = {k: v for k, v in self._line(0).items() if k != 'prompt'}
    with self.assertRaisesRegex(ValueError, 'Repeat the run, or give --model'):
      self._read(old)


class CompareTest(absltest.TestCase):

  def _compare(self, real, simulated_choice, margin):
    """Sides by side of questions whose answer is the first of two choices."""
    asked = [_question(i, ['x', 'y']) for i in range(len(real))]
    scores = accuracy.judge(asked, np.array(real))
    choice = np.array(simulated_choice)
    simulated = items.Answers(choice, choice == 0, np.array(margin))
    whole = items.Items(
        questions=tuple(asked), recorded={},
        splits=tuple('ab'[i % 2] for i in range(len(real))))
    return compare.side_by_side(whole, simulated, scores)

  def test_by_hand(self):
    got = self._compare(
        [[-1.0, -2.0], [-1.0, -3.0], [-2.0, -1.0]], [0, 1, 1],
        [1.25, -2.0, -1.0])
    self.assertEqual(got['accuracy'], {
        'a': {'n': 2, 'simulated': 0.5, 'real': 0.5},
        'b': {'n': 1, 'simulated': 0.0, 'real': 1.0}})
    self.assertEqual(got['max_margin_difference'], 4.0)
    (item,) = got['differing']
    self.assertEqual(
        (item['id'], item['simulated'], item['real'], item['gap']),
        ('q1', 'y', 'x', 2.0))
    self.assertFalse(item['tie'] or got['same_answers'])
    self.assertAlmostEqual(got['difference']['value'], 1 / 3)
    self.assertTrue(got['zero_inside'])

  def test_ties_are_the_same_answer(self):
    got = self._compare([[-1.0, -1.0001]], [1], [-1e-4])
    self.assertTrue(got['same_answers'])
    self.assertTrue(got['differing'][0]['tie'])
    got = self._compare([[-1.0, -1.0001]], [1], [-0.5])
    self.assertFalse(got['same_answers'])  # Near in one engine only.

  def test_a_difference_in_all_facts_excludes_zero(self):
    got = self._compare([[-1.0, -2.0]] * 40, [1] * 40, [-1.0] * 40)
    self.assertFalse(got['zero_inside'])
    self.assertEqual(got['difference']['value'], 1.0)


class FlagsTest(parameterized.TestCase):

  def _fails(self, *args):
    values = flags.FlagValues()
    deployment_check.define(values)
    rest = values(['deployment_check', *args])
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
      status = deployment_check.main(rest, values)
    self.assertEqual(status, deployment_check.USER_ERROR)
    return said.getvalue()

  @parameterized.parameters(
      ([], 'Wanted either --workdir, or --model'),
      (['--workdir=a', '--model=b'], 'Wanted either --workdir, or --model'),
      (['--model=b'], 'wanted all three'),
      (['--workdir=/nowhere'], '/nowhere/model is no folder'),
      (['extra'], 'Positional arguments'))
  def test_bad_flags(self, args, message):
    self.assertIn(message, self._fails(*args))

  def test_unknown_schemes_and_missing_packages(self):
    folder = tiny.temp_dir(self)
    (folder / 'model').mkdir()
    said = self._fails(f'--workdir={folder}', '--schemes=nf4,q3_k')
    self.assertIn("--schemes has ['q3_k']; wanted some of", said)
    with mock.patch.object(importlib.util, 'find_spec', lambda name: None):
      said = self._fails(f'--workdir={folder}')
    self.assertIn("pip install -e '.[parity]'", said)
    self.assertIn("pip install -e '.[llamacpp]'", said)


class _Workdir:
  """An exported model, and what the simulator recorded of it."""

  def __init__(self, root, schemes):
    self.root = pathlib.Path(root)
    config, params, tokenizer = tiny_job.base()
    hf_io.write(self.root / 'model', config, params, tokenizer)
    self.lines = [
        q | {'split': split}
        for split, asked in tiny_job.questions().items()
        for q in asked[:27:27 // _QUESTIONS]]
    tiny_job.write_jsonl(self.root / 'questions.jsonl', self.lines)
    model = loading.load(str(self.root / 'model'))
    asked = questions_lib.read_questions(str(self.root / 'questions.jsonl'))
    simulate = simulator.Simulator(model, asked)
    views = {'fp': model.params} | {s: simulate.quantized(s) for s in schemes}
    self.found = {name: simulate(view) for name, view in views.items()}
    self.write(lambda scheme, i, entry: entry)

  def write(self, change):
    out = []
    for i, line in enumerate(self.lines):
      entries = {
          name: change(name, i, {
              'choice': line['choices'][int(s.logprob[i].argmax())],
              'correct': bool(s.correct[i]),
              'margin': round(float(s.margin[i]), 4)})
          for name, s in self.found.items()}
      out.append(line | {'models': {'unlearned': entries}})
    tiny_job.write_jsonl(self.root / 'answers.jsonl', out)

  def check(self, *args):
    values = flags.FlagValues()
    deployment_check.define(values)
    rest = values(['deployment_check', *args])
    with contextlib.redirect_stdout(io.StringIO()):
      status = deployment_check.main(rest, values)
    out = pathlib.Path(values.out or values.workdir)
    return (status, json.loads((out / 'deployment.json').read_text()),
            (out / 'deployment.md').read_text())


class EngineTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.work = _Workdir(cls.folder, ('nf4', 'fp4'))

  @needs_bnb
  def test_bitsandbytes_answers_as_the_simulator(self):
    status, result, page = self.work.check(
        f'--workdir={self.folder}', '--schemes=nf4,fp4')
    self.assertEqual(status, 0)
    for scheme in ('nf4', 'fp4'):
      found = result['schemes'][scheme]
      self.assertEqual(found['simulated_by'], 'answers.jsonl')
      self.assertEqual(found['weights']['differing'], 0)
      self.assertGreater(found['weights']['of'], 50_000)
      self.assertLess(found['max_margin_difference'], 1e-3)
      self.assertTrue(found['same_answers'])
    self.assertIn('Simulator and deployment agree.', page)
    self.assertIn(f'0 of {3 * _QUESTIONS}', page)

  @needs_bnb
  def test_another_answer_is_found(self):
    def change(scheme, i, entry):
      if (scheme, i) != ('nf4', 0):
        return entry
      other = next(c for c in self.work.lines[0]['choices']
                   if c != entry['choice'])
      return entry | {'choice': other}

    self.work.write(change)
    self.addCleanup(self.work.write, lambda scheme, i, entry: entry)
    status, result, page = self.work.check(
        f'--workdir={self.folder}', '--schemes=nf4')
    self.assertEqual(status, deployment_check.DISAGREES)
    self.assertLen(result['schemes']['nf4']['differing'], 1)
    self.assertIn('do not agree: nf4', page)
    self.assertIn('Answers that differ: nf4', page)

  @needs_llama
  def test_llama_cpp_answers_as_the_simulator(self):
    status, result, page = self.work.check(
        f'--workdir={self.folder}', '--schemes=f32,q8_0,q4_k', '--keep_gguf')
    plain = result['schemes']['f32']
    self.assertLess(plain['max_margin_difference'], 1e-3)
    self.assertEqual(plain['weights']['differing'], 0)
    self.assertEqual(plain['prompts_tokenized_differently'], 0)
    self.assertEqual(plain['word_rule'], 'gpt-2')
    self.assertEqual(list(result['schemes']['q8_0']['stored_types']), ['Q8_0'])
    # Rows of 64 and 128 do not fit blocks of 256.
    self.assertEqual(list(result['schemes']['q4_k']['stored_types']), ['Q5_0'])
    for found in result['schemes'].values():
      self.assertLess(found['same_weights']['mean_margin_difference'], 0.5)
    agrees = all(f['zero_inside'] for f in result['schemes'].values())
    self.assertEqual(status, 0 if agrees else deployment_check.DISAGREES)
    self.assertIn('the same weights in two engines', page)
    self.assertEqual(
        sorted(p.name for p in (self.work.root / 'gguf').iterdir()),
        ['f32.gguf', 'q4_k.gguf', 'q8_0.gguf'])

  @needs_llama
  def test_a_model_without_a_run(self):
    out = tiny.temp_dir(self)
    status, result, _ = self.work.check(
        f'--model={self.folder}/model', f'--out={out}', '--schemes=f32',
        f'--questions_file={self.folder}/questions.jsonl', '--questions=2')
    self.assertEqual(status, 0)
    found = result['schemes']['f32']
    self.assertEqual(found['simulated_by'], 'simulator')
    uses = collections.Counter(q['use'] for q in self.work.lines)
    self.assertEqual({k: v['n'] for k, v in found['accuracy'].items()},
                     {use: min(2, n) for use, n in uses.items()})
    self.assertEqual([p.name for p in out.iterdir() if p.is_dir()], [])

  @needs_llama
  def test_llama_cpp_says_what_is_wrong(self):
    path = tiny.temp_dir(self) / 'x.gguf'
    path.write_bytes(b'GGUF' + b'\0' * 64)
    with self.assertRaisesRegex(ValueError, 'cannot load .*x.gguf; it says'):
      llamacpp.Engine(path, 8)
    with self.assertRaisesRegex(ValueError, 'cannot quantize .* to q8_0'):
      llamacpp.quantize(path, path.with_name('y.gguf'), 'q8_0')


@needs_bnb
class MisreadTest(absltest.TestCase):
  """Rows of 96 are what bitsandbytes' AVX-512 dequantizer reads wrongly."""

  def test_matrices_that_bitsandbytes_misreads_are_multiplied_rightly(self):
    cfg = tiny.config(d_model=96, d_ff=160, d_head=24)
    folder = tiny.temp_dir(self)
    params = tiny.params(cfg, scale=0.1)
    hf_io.write(folder, cfg, params, None)
    model = bnb.load(folder, 'nf4')
    want = quant.fake_quantize(params, 'nf4', layout.block_layout(cfg))
    got = bnb.params(model, cfg)
    self.assertEqual(
        simulator.weights_differing(got, want, cfg)['differing'], 0)
    ids = tiny.tokens(cfg, batch=1)[0]
    request = items.Request(
        tuple(ids.tolist()), np.arange(len(ids) - 1), ids[1:].astype(np.int64))
    (got,) = bnb.Engine(model)([request])
    logits = np.asarray(tiny.logits(cfg, want, jnp.asarray(ids)[None])[0])
    logprob = special.log_softmax(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(
        got, logprob[request.places, request.targets], atol=1e-4)


class TablesTest(absltest.TestCase):

  def test_what_is_not_simulated_is_a_dash(self):
    found = {
        'accuracy': {'retain': {'n': 1, 'simulated': 1.0, 'real': 0.0}},
        'differing': [], 'n': 1, 'max_margin_difference': 0.25,
        'weights': None, 'agrees': False, 'exact': False, 'seconds': 1.0,
        'difference': {'value': -1.0, 'interval': [-1.0, 0.5]}}
    result = {'schemes': {'q4_k': found}, 'versions': {'jax': '1'},
              'questions': 1, 'agrees': False}
    page = tables.render(result)
    self.assertIn('do not agree: q4_k', page)
    self.assertIn('| 1.000 / 0.000 | 0 of 1 | 0.25 | – | -1.000', page)
    self.assertNotIn('## GGUF', page)
    self.assertIn('DOES NOT AGREE', tables.line('q4_k', found))


if __name__ == '__main__':
  absltest.main()
