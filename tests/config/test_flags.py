"""Flags and config correspond, are checked, and survive a flagfile."""

import dataclasses
import functools
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock
import zlib

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax import quant
from mansu_jax.config import flags as flags_lib
from mansu_jax.config import mode_checks
from mansu_jax.config import run as config_lib
from mansu_jax.data.readers import jsonl
from mansu_jax.stages.prepare import inputs
from mansu_jax.stages.train import pools
from tests.config import options

_ROOT = pathlib.Path(__file__).parents[2]
_EXPERIMENTS = sorted(_ROOT.glob('experiments/**/*.flags'))
_COMMON = _ROOT / 'experiments' / 'test' / 'common.flags'  # Has no facts.
_COMPARED = [path for path in _EXPERIMENTS
             if path.parent.name in ('compare', 'lab')]  # Flags of methods.
_JOBS = [path for path in _EXPERIMENTS
         if path.parent.name != 'ablations' and path not in _COMPARED
         and not path.name.startswith(('common', 'former_defaults'))]


def _parse(*args):
  """(config, arguments that are not flags)."""
  values = flags.FlagValues()
  flags_lib.define(values)
  rest = values(['mansu_jax', *args])
  return flags_lib.to_config(values), rest[1:]


def _parse_text(text):
  with tempfile.NamedTemporaryFile('w', suffix='.flags') as file:
    file.write(text)
    file.flush()
    return _parse(f'--flagfile={file.name}')


def _number_words(texts, add_special_tokens):
  """A tokenizer that gives each word one number."""
  del add_special_tokens
  return {'input_ids': [
      [zlib.crc32(word.encode()) >> 1 for word in text.split()]
      for text in texts]}


def _flag_names():
  return [name for name, *_ in config_lib.options()]


class RoundTripTest(parameterized.TestCase):

  def test_an_alias_is_the_flag_that_the_file_names(self):
    for args, chat in ((['--chat'], True), (['--chat', '--nochat'], False),
                       (['--nodata_chat', '--chat'], True)):
      config, _ = _parse(*args)
      self.assertEqual(config.data.chat, chat)
      text = flags_lib.to_flagfile(config)
      self.assertIn(f'--{"" if chat else "no"}data_chat\n', text)
      self.assertNotIn('--chat', text)
      self.assertNotIn('--nochat', text)

  def test_no_flags_give_the_default_config(self):
    self.assertEqual(_parse()[0], config_lib.RunConfig())

  def test_every_field_survives_its_flagfile(self):
    # Tested below: they need other flags, or are not in the file.
    excluded = ('method', 'workdir', 'resume', 'attribution_skip_unequal',
                'unlearn_lora_rank', 'unlearn_weights_dtype')
    for name, field, _ in config_lib.options():
      if name in excluded:
        continue
      with self.subTest(name):
        config = options.replace(
            config_lib.RunConfig(), name, options.other_value(field))
        self.assertNotEqual(config, config_lib.RunConfig())
        got, rest = _parse_text(flags_lib.to_flagfile(config))
        self.assertEqual(got, config)
        self.assertEmpty(rest)

  @parameterized.parameters(
      (('--method=graddiff',),), (('--method=retain_only',),),
      (('--method=gu',),),
      (('--unlearn_lora_rank=3', '--unlearn_lora_alpha=7', '--method=npo'),),
      (('--unlearn_weights_dtype=bfloat16', '--method=graddiff'),),
      (('--method=retain_only', '--circuit_selection=all'),),
      (('--circuit_selection=random', '--edit_floor=lift'),),
      (('--edit_floor=none', '--noresume', '--quant_schemes=nf4,int8'),),
      (('--mode=plan', '--plan_topology=this', '--plan_memory_gib=74.5'),),
      (('--attribution_pairs_file=p.jsonl', '--attribution_skip_unequal'),))
  def test_dependent_fields_survive_a_flagfile(self, args):
    config, _ = _parse(*args)
    got, _ = _parse_text(flags_lib.to_flagfile(config))
    self.assertEqual(got, dataclasses.replace(config, resume=True))

  def test_flagfile_holds_all_flags_but_workdir_and_resume(self):
    config = config_lib.RunConfig(workdir='/somewhere', resume=False)
    text = flags_lib.to_flagfile(config)
    said = {line.removeprefix('--').removeprefix('no').split('=')[0]
            for line in text.splitlines()}
    multiple = {f'data_{f.name}' for f in dataclasses.fields(
        config_lib.DataConfig) if f.default == ()}  # No line when empty.
    self.assertSetEqual(
        said, set(_flag_names()) - {'workdir', 'resume'} - multiple)
    self.assertNotIn('/somewhere', text)

  def test_repeated_data_flags_accumulate_and_others_take_the_last(self):
    config, _ = _parse('--data_forget=a,b', '--data_forget=c', '--seed=1',
                       '--seed=2')
    self.assertEqual(config.data.forget, ('a,b', 'c'))
    self.assertEqual(config.seed, 2)


class FlagfileTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    made = tempfile.TemporaryDirectory()
    self.addCleanup(made.cleanup)
    self.path = os.path.join(made.name, 'job.flags')
    pathlib.Path(self.path).write_text(
        '# A comment.\n--seed=3\n--data_forget=a\n')

  def test_overrides_come_last(self):
    config = flags_lib.from_flagfile(
        self.path, '--seed=4', '--data_forget=b', '--noresume')
    self.assertEqual(config.seed, 4)
    self.assertEqual(config.data.forget, ('a', 'b'))
    self.assertFalse(config.resume)

  def test_flagfile_errors_name_the_cause(self):
    with self.assertRaisesRegex(ValueError, 'job.flags: .*stepz.*--help'):
      flags_lib.from_flagfile(self.path, '--unlearn_stepz=3')
    with self.assertRaisesRegex(ValueError, '--circuit_budget=2.0'):
      flags_lib.from_flagfile(self.path, '--circuit_budget=2')
    pathlib.Path(self.path).write_text('--seed=3\n  # Indented.\n')
    with self.assertRaisesRegex(ValueError, 'Indented.*first column'):
      flags_lib.from_flagfile(self.path)
    with self.assertRaisesRegex(ValueError, 'missing.flags'):
      flags_lib.from_flagfile(self.path + '/missing.flags')
    pathlib.Path(self.path).write_bytes(b'# caf\xe9\n--seed=3\n')
    with self.assertRaisesRegex(ValueError, 'job.flags: .*utf-8'):
      flags_lib.from_flagfile(self.path)


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      (['--unlearn_stop_forget=1'], r'stop_forget=1.0 is outside \[0, 1\)'),
      (['--edit_floor=none', '--edit_landing=boundary'],
       'boundary contradicts --edit_floor=none'),
      (['--quant_schemes='], 'No quantizer'),
      (['--circuit_budget=0'], r'--circuit_budget=0.0 is outside \(0, 1\]'),
      (['--circuit_budget=1.5'], '--circuit_budget=1.5 is outside'),
      (['--circuit_first_layer=-1'], '--circuit_first_layer=-1 must be'),
      (['--circuit_per_layer_cap=0'], '--circuit_per_layer_cap=0.0'),
      (['--edit_fisher_quantile=0'], '--edit_fisher_quantile=0.0'),
      (['--unlearn_steps=-1'], '--unlearn_steps=-1 must be at least 0'),
      (['--unlearn_learning_rate=0'], 'must be positive'),
      (['--unlearn_learning_rate=nan'], 'is not finite; wanted a number'),
      (['--unlearn_npo_beta=0'], '--unlearn_npo_beta=0.0 must be positive'),
      (['--unlearn_kl_weight=-1'], '--unlearn_kl_weight=-1.0 must be'),
      (['--unlearn_text_pool=0'], '--unlearn_text_pool=0 must be at least 1'),
      (['--eval_cad_pairs=1'], '--eval_cad_pairs=1 cannot be resampled'),
      (['--eval_questions=-1'], '--eval_questions=-1 must be'),
      (['--unlearn_warmup=1'], r'--unlearn_warmup=1.0 is outside'),
      (['--attribution_steps=0'], '--attribution_steps=0'),
      (['--fisher_chunk=0'], '--fisher_chunk=0'),
      (['--eval_bootstrap=10'], '--eval_bootstrap=10 is too few'),
      (['--data_text_window=2'], '--data_text_window=2 is too short'))
  def test_flags_that_are_wrong_are_refused(self, args, message):
    with self.assertRaisesRegex(ValueError, message):
      _parse(*args)

  @parameterized.parameters(
      '--unlearn_loss=x', '--circuit_selection=none', '--export_dtype=int8',
      '--unlearn_stepz=3', '--unlearn_steps=many', '--mode=none')
  def test_absl_refuses_malformed_flag_values(self, arg):
    with self.assertRaises(flags.Error):
      _parse(arg)

  @parameterized.parameters(
      (config_lib.UnlearnConfig, dict(loss='x'), '--unlearn_loss=.x'),
      (config_lib.EditConfig, dict(landing='here'), '--edit_landing=.here'),
      (config_lib.CircuitConfig, dict(selection='x'), 'circuit_selection=.x'),
      (config_lib.FisherConfig, dict(labels='x'), '--fisher_labels=.x'),
      (config_lib.AttributionConfig, dict(level='x'), 'attribution_level=.x'),
      (config_lib.RunConfig, dict(export_dtype='x'), '--export_dtype=.x'))
  def test_a_config_made_without_flags_is_checked(self, cls, args, message):
    with self.assertRaisesRegex(ValueError, message):
      cls(**args)


  def test_every_number_has_an_upper_bound(self):
    values = {int: (10**20, 10**5000, -10**20), float: (1e300, -1e300)}
    for flag, field, _ in config_lib.options():
      for value in values.get(type(field.default), ()):
        with self.subTest(flag), self.assertRaisesRegex(
            ValueError, f'--{flag}=.* is out of range; wanted at most'):
          options.replace(config_lib.RunConfig(), flag, value)

  @parameterized.parameters(
      ('x' * 256, 'too long: the path has 256 bytes and its longest name 256'),
      ('/'.join(['d' * 99] * 40), 'has 3999 bytes .* name 99; wanted at most'),
      ('a\0b', 'NUL; wanted'), ('a\nb', 'line break'), ('a ', 'ends with'),
      ('~/a', 'begins with ~.*HOME'), ('a\udcff', 'not UTF-8.*PYTHONUTF8=1'))
  def test_impossible_file_names_are_refused(self, name, message):
    for args in (dict(model=name), dict(workdir=name), dict(base=name)):
      with self.assertRaisesRegex(ValueError, f'--{[*args][0]}=.*{message}'):
        config_lib.RunConfig(**args)
    with self.assertRaisesRegex(ValueError, f'--data_text=.*{message}'):
      config_lib.DataConfig(text=('a', name))
    with self.assertRaisesRegex(
        ValueError, f'attribution_pairs_file=.*{message}'):
      config_lib.AttributionConfig(pairs_file=name)

  def test_former_names_and_values_are_accepted(self):
    got, _ = _parse(
        '--unlearn_near_share=0.5', '--unlearn_crossed_batch=3',
        '--unlearn_crossed_weight=2', '--unlearn_crossed_pool=9',
        '--unlearn_alternatives_weight=4', '--unlearn_collapse=5',
        '--unlearn_loss=marginal', '--attribution_pairs=p.jsonl')
    want, _ = _parse(
        '--unlearn_nearest_share=0.5', '--unlearn_swapped_batch=3',
        '--unlearn_swapped_weight=2', '--unlearn_swapped_pool=9',
        '--unlearn_choice_kl_weight=4', '--unlearn_max_retain_kl=5',
        '--unlearn_loss=group_marginal', '--attribution_pairs_file=p.jsonl')
    self.assertEqual(got, want)
    self.assertEqual(_parse('--unlearn_loss=exchange')[0].unlearn.loss,
                     'answer_swap')

  def test_a_file_of_pairs_overrides_their_number(self):
    options = _parse('--attribution_pairs=8')[0].attribution
    self.assertEqual(options.max_pairs, 8)
    options = _parse('--attribution_pairs=8',
                     '--attribution_pairs_file=p')[0].attribution
    self.assertIsNone(options.max_pairs)

  def test_names_that_are_empty(self):
    with self.assertRaisesRegex(ValueError, '--data_text= is empty'):
      config_lib.DataConfig(text=('',))
    with self.assertRaisesRegex(ValueError, 'No model: give --model'):
      config_lib.RunConfig(model='')


class ExperimentTest(parameterized.TestCase):

  def test_the_help_names_every_quantizer(self):
    field, = (f for f in dataclasses.fields(config_lib.RunConfig)
              if f.name == 'quant_schemes')
    for name in quant.NAMES:
      self.assertIn(name, field.metadata['help'])

  def test_flagfiles_of_experiments_exist(self):
    self.assertNotEmpty(_JOBS)

  @parameterized.parameters('test/common.flags', 'quickstart.flags')
  def test_the_defaults_are_the_method(self, name):
    config, _ = _parse(f'--flagfile={_ROOT}/experiments/{name}')
    like = lambda part, *names: dataclasses.replace(
        part, **{n: getattr(type(part)(), n) for n in names})
    self.assertEqual(dataclasses.replace(
        like(config, 'data', 'eval'), circuit=like(config.circuit, 'pairs')),
                     config_lib.RunConfig())

  @parameterized.named_parameters(
      (str(path.relative_to(_ROOT)), path) for path in _JOBS)
  def test_builds_its_config_and_names_data_that_exists(self, path):
    config, rest = _parse(f'--flagfile={path}')
    self.assertEmpty(rest)  # An indented comment would stand here.
    self.assertNotEmpty(config.data.forget)
    for field in dataclasses.fields(config.data):
      value = getattr(config.data, field.name)
      if isinstance(value, tuple):
        for name in inputs.expand(value):
          if name.startswith(jsonl.SHIPPED):
            jsonl.resolve(name)
          self.assertFalse(pathlib.Path(name).is_absolute())
    mode_checks.check_unread_flags(dataclasses.replace(config, model='mine'))

  def test_flagfiles_of_compared_methods(self):
    self.assertNotEmpty(_COMPARED)
    for path in _COMPARED:
      if path.stem not in ('baseline', 'common'):
        with self.subTest(path):
          config, rest = _parse(f'--flagfile={path}')
          self.assertStartsWith(path.stem, config.method)
          self.assertEmpty(rest)
          self.assertEqual(config.data, config_lib.DataConfig())

  def test_forget_loss_fits_the_facts_of_each_experiment(self):
    read = functools.cache(lambda data: inputs.read(
        dataclasses.replace(config, data=data)).splits)
    check = functools.cache(lambda unlearn, data: pools.check_forget_term(
        unlearn, read(data), _number_words, seed=0, chat=False))
    jobs = [path for path in _JOBS if path.parent != _COMMON.parent
            and not path.name.startswith(
                ('lab_', 'tofu_'))]  # A script makes their facts.
    for path, pool in itertools.product(jobs, (None, 480)):
      with self.subTest(path, pool=pool):
        config, _ = _parse(f'--flagfile={path}', *(
            [f'--unlearn_forget_pool={pool}'] if pool else []))
        unlearn = config_lib.UnlearnConfig(
            loss=config.unlearn.loss, forget_pool=config.unlearn.forget_pool,
            choice_kl_weight=config.unlearn.choice_kl_weight)
        if config.mode != 'audit':
          check(unlearn, config.data)


class MainTest(parameterized.TestCase):
  """The program itself, in a process of its own."""

  def _run(self, *args):
    env = os.environ | {'PYTHONPATH': str(_ROOT)}
    return subprocess.run(
        [sys.executable, '-m', 'mansu_jax.main', *args], env=env,
        capture_output=True, text=True, check=False, timeout=120)

  def test_help_lists_every_flag_and_mode(self):
    done = self._run('--help')
    self.assertEqual(done.returncode, 0)
    text = done.stdout
    self.assertIn(
        '--mode: <unlearn|audit|attribute|plan|compare|tune|apply>:', text)
    for name in _flag_names():
      self.assertRegex(text, rf'--(\[no\])?{name}\b')
    text = ' '.join(text.split())  # Help is wrapped.
    self.assertIn('(Modes: unlearn, plan, compare, tune.)', text)
    self.assertIn('134: timed out waiting for another process', text)

  @pytest.mark.medium
  def test_flags_that_the_mode_does_not_read(self):
    for args, message in (
        (('--mode=plan', '--mesh_distributed'), '--mesh_distributed has no'),
        (('--mode=plan', '--workdir=w'), '--workdir=w has no effect in'),
        (('--plan_memory_gib=2',), '--plan_memory_gib=2.0 has no effect')):
      done = self._run(*args)
      self.assertEqual(done.returncode, 2)
      self.assertIn(f'mansu_jax: {message}', done.stderr)

  def test_a_flagfile_that_the_locale_cannot_read(self):
    with tempfile.NamedTemporaryFile('wb', suffix='.flags') as file:
      file.write('--workdir=é\n'.encode())
      file.flush()
      ascii_only = {'LC_ALL': 'C', 'PYTHONUTF8': '0'}
      with mock.patch.dict(os.environ, ascii_only):
        done = self._run(f'--flagfile={file.name}')
        self.assertRegex(done.stderr, f'{file.name}: .ascii.*PYTHONUTF8=1')
        named = self._run('--workdir=é')
        self.assertRegex(named.stderr, 'not UTF-8 .* ascii; .*PYTHONUTF8=1')
      self.assertEqual((done.returncode, named.returncode), (2, 2))

  @parameterized.parameters(
      (('--seed=5', 'stray'), r"Positional arguments \['stray'\]"),
      (('--circuit_budget=2',), '--circuit_budget=2.0 is outside'),
      (('--unlearn_steps=1e20',),
       '--unlearn_steps=1e20; wanted a whole number, such as 100'),
      (('--unlearn_learning_rate=',), 'rate=; wanted a number, such as 0.1'),
      ((f'--seed={"9" * 5000}',), ' ... 9+; wanted .* fewer digits'),
      (('--mode=none',), 'should be one of <unlearn.audit.attribute.plan.'))
  def test_user_errors_are_one_line_and_status_2(self, args, message):
    done = self._run(*args)
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, f'mansu_jax: .*{message}')
    self.assertLen(done.stderr.splitlines(), 1)
    self.assertLess(len(done.stderr), 2100)
    self.assertNotIn('Traceback', done.stderr)


if __name__ == '__main__':
  absltest.main()
