"""The deployment check on a tiny model, in the engines that are installed."""

import collections
import contextlib
import importlib.util
import io
import json
import pathlib
import tempfile
import types
import unittest
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from scipy import special

from mansu_jax import quant
from mansu_jax.data import questions as questions_lib
from mansu_jax.deployment import activations
from mansu_jax.deployment import bnb
from mansu_jax.deployment import check
from mansu_jax.deployment import command_line
from mansu_jax.deployment import extras
from mansu_jax.deployment import llamacpp
from mansu_jax.deployment import runner
from mansu_jax.deployment import scoring_plan
from mansu_jax.deployment import simulator
from mansu_jax.models import decoder
from mansu_jax.models import families
from mansu_jax.models import layout
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_writer
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import results
from tests import tiny_job
from tests.models import tiny

_QUESTIONS = 3  # Per split.


def _missing(extra):
  return [name for name in extras.PACKAGES[extra]
          if importlib.util.find_spec(name) is None]


_NO_BNB, _NO_LLAMA = _missing('parity'), _missing('llamacpp')
needs_bnb = absltest.skipIf(_NO_BNB, f'not installed: {_NO_BNB}')
needs_llama = absltest.skipIf(_NO_LLAMA, f'not installed: {_NO_LLAMA}')


class FlagsTest(parameterized.TestCase):

  def _fails(self, *args):
    values = flags.FlagValues()
    check.define(values)
    rest = values(['check', *args])
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
      status = check.main(rest, values)
    self.assertEqual(status, command_line.USER_ERROR)
    return errors.getvalue()

  @parameterized.parameters(
      ([], 'Wanted either --workdir, or --model'),
      (['--workdir=a', '--model=b'], 'Wanted either --workdir, or --model'),
      (['--model=b'], 'wanted all three'),
      (['--workdir=/nowhere'], '/nowhere/model is not a folder'),
      (['extra'], 'Positional arguments'))
  def test_bad_flags(self, args, message):
    self.assertIn(message, self._fails(*args))

  def test_unknown_schemes_and_missing_packages(self):
    folder = tiny.temp_dir(self)
    (folder / 'model').mkdir()
    errors = self._fails(f'--workdir={folder}', '--schemes=nf4,q3_k')
    self.assertIn("--schemes has ['q3_k']; wanted some of", errors)
    with mock.patch.object(importlib.util, 'find_spec', lambda name: None):
      errors = self._fails(f'--workdir={folder}')
    self.assertIn("bitsandbytes, accelerate: run `pip install -e '.[parity]'`",
                  errors)
    self.assertIn("llama_cpp: run `pip install -e '.[llamacpp]'`", errors)
    self.assertIn('that need them from --schemes=nf4,', errors)

  def test_a_missing_file_is_named(self):
    folder = tiny.temp_dir(self)
    (folder / 'model').mkdir()
    with mock.patch.object(extras, 'require'):
      errors = self._fails(f'--workdir={folder}')
    self.assertIn('answers.jsonl', errors)
    self.assertStartsWith(errors, 'mansu_jax.deployment.check: ')

  def test_a_family_that_is_not_written_as_gguf_is_refused_at_once(self):
    folder = tiny.temp_dir(self)
    work = _Workdir(folder, (), 'qwen2')
    config = folder / 'model' / 'config.json'
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {'other': 1}))
    args = (f'--model={folder}/model', f'--out={folder}/out',
            f'--questions_file={work.root}/questions.jsonl')
    with mock.patch.object(extras, 'require'):
      self.assertIn('give --model_ignore_fields=other', self._fails(*args))
      errors = self._fails(
          *args, '--schemes=nf4,f32,q8_0', '--model_ignore_fields=other')
    self.assertIn("--schemes has ['f32', 'q8_0']", errors)
    self.assertIn('Give --schemes=nf4,fp4.', errors)
    self.assertFalse((folder / 'out').exists())

  def test_a_model_that_cannot_be_read_leaves_no_folder(self):
    folder = tiny.temp_dir(self)
    work = _Workdir(folder, (), 'qwen2')
    with mock.patch.object(extras, 'require'), mock.patch.object(
        runner, 'run', side_effect=ValueError('no weights')):
      errors = self._fails(
          f'--model={folder}/model', f'--out={folder}/out', '--schemes=nf4',
          f'--questions_file={work.root}/questions.jsonl')
    self.assertIn('no weights', errors)
    self.assertFalse((folder / 'out').exists())


class MissingPackagesTest(absltest.TestCase):

  def test_engines_name_the_extra(self):
    path = pathlib.Path('x')
    with mock.patch.object(importlib.util, 'find_spec', lambda name: None):
      with self.assertRaisesRegex(ValueError, r"torch.*'\.\[parity\]'"):
        bnb.load(path, 'nf4')
      if _NO_LLAMA:  # Otherwise another test may have loaded the library.
        for use in (lambda: llamacpp.Engine(path, 8),
                    lambda: llamacpp.quantize(path, path, 'q8_0')):
          with self.assertRaisesRegex(
              ValueError, r"llama_cpp.*'\.\[llamacpp\]'"):
            use()


class _Workdir:
  """A workdir with an exported model and the simulator's recorded answers."""

  def __init__(self, root, schemes, family='llama'):
    self.root = pathlib.Path(root)
    config, params, tokenizer = tiny_job.base(
        train=family == 'llama', family=family)
    hf_io.write(self.root / 'model', config, params, tokenizer)
    splits = {split: questions[:27:27 // _QUESTIONS]
              for split, questions in tiny_job.questions().items()}
    self.lines = sum(splits.values(), [])
    tiny_job.write_jsonl(self.root / 'questions.jsonl', self.lines)
    questions = questions_lib.read_questions(
        str(self.root / 'questions.jsonl'))
    simulate = simulator.Simulator(
        loading.load(str(self.root / 'model')), questions)
    views = {'fp': params} | {s: simulate.quantize(s) for s in schemes}
    starts = range(0, len(questions), _QUESTIONS)
    evaluator = types.SimpleNamespace(
        questions=questions,
        slices={split: slice(start, start + _QUESTIONS)
                for split, start in zip(splits, starts)})
    results.write_answers(evaluator, {
        ('unlearned', name): types.SimpleNamespace(
            ignorance=[0.25] * len(evaluator.questions), scores=simulate(view))
        for name, view in views.items()}, self.root)
    self.recorded = (self.root / 'answers.jsonl').read_text()

  def check(self, *args):
    values = flags.FlagValues()
    check.define(values)
    rest = values(['check', *args])
    with contextlib.redirect_stdout(io.StringIO()):
      status = check.main(rest, values)
    out = pathlib.Path(values.out or values.workdir)
    return (status, json.loads((out / 'deployment.json').read_text()),
            (out / 'deployment.md').read_text())


class EngineTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    if _NO_BNB and _NO_LLAMA:
      raise unittest.SkipTest(f'not installed: {_NO_BNB + _NO_LLAMA}')
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.work = _Workdir(cls.folder, ('nf4', 'fp4'))

  @needs_bnb
  def test_bitsandbytes_answers_as_the_simulator(self):
    status, result, page = self.work.check(
        f'--workdir={self.folder}', '--schemes=nf4,fp4,nf4_dq')
    self.assertEqual(status, 0)
    for scheme, source in (('nf4', 'answers.jsonl'), ('fp4', 'answers.jsonl'),
                           ('nf4_dq', 'simulator')):
      found = result['schemes'][scheme]
      self.assertEqual(found['simulated_by'], source)
      self.assertEqual(found['weights']['differing'], 0)
      self.assertGreater(found['weights']['of'], 50_000)
      self.assertLess(found['max_margin_difference'], 1e-3)
      self.assertTrue(found['same_answers'])
    self.assertIn('Simulator and deployment agree.', page)
    self.assertIn(f'0 of {3 * _QUESTIONS}', page)

  @needs_bnb
  def test_bitsandbytes_answers_as_the_simulator_in_other_families(self):
    for family in families.FAMILIES.keys() - {'llama'}:
      with self.subTest(family):
        folder = tiny.temp_dir(self) / family
        work = _Workdir(folder, ('nf4',), family)
        status, result, _ = work.check(f'--workdir={folder}', '--schemes=nf4')
        self.assertEqual(status, 0)
        found = result['schemes']['nf4']
        self.assertEqual(found['weights']['differing'], 0)
        self.assertLess(found['max_margin_difference'], 1e-3)

  @needs_bnb
  def test_a_differing_answer_is_reported(self):
    path = self.work.root / 'answers.jsonl'
    self.addCleanup(path.write_text, self.work.recorded)
    lines = list(map(json.loads, self.work.recorded.splitlines()))
    entry = lines[0]['models']['unlearned']['nf4']
    entry['choice'] = next(
        c for c in lines[0]['choices'] if c != entry['choice'])
    tiny_job.write_jsonl(path, lines)
    status, result, page = self.work.check(
        f'--workdir={self.folder}', '--schemes=nf4')
    self.assertEqual(status, check.DISAGREES)
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
    self.assertIsNone(plain['rounded_activations'])
    # Only activations differ. Another order of summation, which depends on the
    # CPU's code, flips a rounding in a question or two; the others agree.
    for name in ('q8_0', 'q4_k'):
      found = result['schemes'][name]
      self.assertGreater(found['same_weights']['max_margin_difference'], 1e-2)
      self.assertLess(
          found['rounded_activations']['mean_margin_difference'],
          0.05 * found['same_weights']['mean_margin_difference'])
    self.assertEqual(status, 0)
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
  def test_errors_quote_the_log_of_llama_cpp(self):
    path = tiny.temp_dir(self) / 'x.gguf'
    path.write_bytes(b'GGUF' + b'\0' * 64)
    with self.assertRaisesRegex(
        ValueError, 'cannot load .*x.gguf; its log says'):
      llamacpp.Engine(path, 8)
    with self.assertRaisesRegex(ValueError, 'cannot quantize .* to q8_0'):
      llamacpp.quantize(path, path.with_name('y.gguf'), 'q8_0')


@needs_llama
class ActivationsTest(parameterized.TestCase):
  """Rows of 256 and more, so that K types apply; they round inputs to Q8_K.

  Another order of sums may flip a rounding, and later values are then off by
  about 1e-2. So the test compares medians.
  """

  @parameterized.parameters('q4_k', 'q6_k', 'q4_0')
  def test_decoder_with_rounded_activations_equals_llama_cpp(self, scheme):
    cfg = tiny.config(d_model=256, d_ff=512, d_head=64, num_layers=1)
    folder = tiny.temp_dir(self)
    plain, path = folder / 'f32.gguf', folder / 'x.gguf'
    gguf_writer.write(plain, cfg, tiny.params(cfg, scale=0.1), None)
    llamacpp.quantize(plain, path, scheme)
    params = gguf_io.read_params(gguf_io.open_file(path), cfg, np.float32)
    ids = tiny.tokens(cfg, batch=1)[0]
    request = scoring_plan.Request(
        tuple(ids.tolist()), np.arange(len(ids) - 1), ids[1:].astype(np.int64))
    with llamacpp.Engine(path, len(ids)) as engine:
      (want,) = engine([request])
    types = llamacpp.types_by_input_size(path)
    self.assertEqual(set(types.values()), {scheme.upper()})

    def error(run):
      logits = np.asarray(decoder.unembed(
          cfg, params, run(params, ids[None])))[0]
      logprob = special.log_softmax(logits.astype(np.float64), axis=-1)
      return np.median(np.abs(
          logprob[request.positions, request.targets] - want))

    forward = lambda p, tokens: decoder.forward(cfg, p, tokens)
    self.assertGreater(error(forward), 1e-3)
    rounded = activations.with_rounded_inputs(forward, types)
    self.assertLess(error(rounded), 1e-5)


@needs_bnb
class MisreadTest(absltest.TestCase):
  """Rows of 96, which the AVX-512 dequantizer of bitsandbytes misreads."""

  def test_misread_matrices_are_replaced(self):
    cfg = tiny.config(
        d_model=96, d_ff=160, d_head=24, tie_embeddings=False)
    folder = tiny.temp_dir(self)
    params = tiny.params(cfg, scale=0.1)
    hf_io.write(folder, cfg, params, None)
    model = bnb.load(folder, 'nf4')
    want = quant.fake_quantize(params, 'nf4', layout.block_layout(cfg))
    got = bnb.read_params(model, cfg)
    differences = simulator.count_differing_weights(got, want, cfg)
    self.assertEqual(differences['differing'], 0)
    ids = tiny.tokens(cfg, batch=1)[0]
    request = scoring_plan.Request(
        tuple(ids.tolist()), np.arange(len(ids) - 1), ids[1:].astype(np.int64))
    (got,) = bnb.Engine(model)([request])
    logits = np.asarray(tiny.logits(cfg, want, jnp.asarray(ids)[None])[0])
    logprob = special.log_softmax(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(
        got, logprob[request.positions, request.targets], atol=1e-4)


if __name__ == '__main__':
  absltest.main()
