"""Each flag names the modes that read it; other modes refuse it."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import fields
from mansu_jax.config import methods
from mansu_jax.config import mode_checks
from mansu_jax.config import run as config_lib
from tests import runs
from tests.config import options

_REQUIRED = {
    'audit': {'base': 'b', 'model': 'm'},
    'apply': {'base': 'b', 'apply': config_lib.ApplyConfig(edit='e')}}
# Need other flags to be valid at all, and are read by all modes.
_NOT_ALONE = ('mode', 'attribution_skip_unequal', 'method')
# Read at --attribution_level=edge only.
_EDGE = ('circuit_edges', 'circuit_edge_selection', 'circuit_file')
# Read by methods that train every weight only.
_ALL_WEIGHTS = (
    'unlearn_lora_rank', 'unlearn_lora_alpha', 'unlearn_weights_dtype',
    'unlearn_matrices', 'unlearn_first_layer', 'unlearn_last_layer',
    'unlearn_saliency')
# Read by closed forms only.
_CLOSED = tuple(f'unlearn_closed_form_{name}' for name in (
    'layers', 'scale', 'retain_weight', 'ridge'))
_PATIENT = ('unlearn_cooldown',)  # Read with --unlearn_patience only.
# Each read by one loss, which is not the default.
_OF_LOSSES = {
    'npo': ('unlearn_npo_beta',), 'simnpo': ('unlearn_npo_beta',),
    'dpo': ('unlearn_npo_beta',),
    'satimp': ('unlearn_satimp_importance', 'unlearn_satimp_saturation'),
    'undial': ('unlearn_undial_strength',), 'wga': ('unlearn_wga_power',),
    'quail': ('unlearn_quail_margin',),
    'task_vector': ('unlearn_task_vector_scale',),
    'rmu': ('unlearn_rmu_layer', 'unlearn_rmu_coefficient')}

# What a baseline wants next, the flag that gives it, and one that contradicts.
_ALSO = {
    'gu': (('wanted --unlearn_orthogonal', '--unlearn_orthogonal',
            '--nounlearn_orthogonal'),),
    'saf': (('wanted --unlearn_quantizer_in', '--unlearn_quantizer_in_loop',
             '--nounlearn_quantizer_in_loop'),
            ('such as --unlearn_sharpness', '--unlearn_sharpness=0.1')),
    'sure': (('such as --unlearn_saliency', '--unlearn_saliency=0.1'),)}


def _changed(name, field, mode):
  """A config of a mode in which one flag is not at its default."""
  config = config_lib.RunConfig(mode=mode, **_REQUIRED.get(mode, {}))
  return options.replace(config, name, options.other_value(field))


def _check(*args):
  mode_checks.check_unread_flags(runs.parse(*args))


class ModesTest(parameterized.TestCase):

  def test_every_field_names_its_modes(self):
    for name, field, _ in config_lib.options():
      with self.subTest(name):
        modes = field.metadata['modes']
        self.assertNotEmpty(modes)
        self.assertContainsSubset(modes, config_lib.MODES)
        self.assertLen(set(modes), len(modes))

  @parameterized.parameters(*config_lib.MODES)
  def test_a_mode_refuses_each_flag_that_it_does_not_read(self, mode):
    refused = 0
    for name, field, _ in config_lib.options():
      if mode in field.metadata['modes'] or name in _NOT_ALONE:
        continue
      refused += 1
      flag = fields.flag_lines(name, options.other_value(field))[0]
      with self.subTest(name):
        with self.assertRaises(ValueError) as caught:
          mode_checks.check_unread_flags(_changed(name, field, mode))
        message = str(caught.exception)
        self.assertStartsWith(message, f'{flag} has no effect in --mode={mode}:'
                              ' it applies to --mode=')
        self.assertEndsWith(message, '. Leave it out.')
    self.assertGreater(refused, 3)

  @parameterized.parameters(*config_lib.MODES)
  def test_a_mode_accepts_each_flag_that_it_reads(self, mode):
    for name, field, _ in config_lib.options():
      if mode in field.metadata['modes'] and name not in (
          *_NOT_ALONE, *_EDGE, *_ALL_WEIGHTS, *_PATIENT, *_CLOSED,
          *itertools.chain(*_OF_LOSSES.values())):
        with self.subTest(name):
          mode_checks.check_unread_flags(_changed(name, field, mode))

  @parameterized.parameters(*config_lib.MODES)
  def test_defaults_are_accepted(self, mode):
    mode_checks.check_unread_flags(
        config_lib.RunConfig(mode=mode, **_REQUIRED.get(mode, {})))

  @parameterized.parameters(('--base=b',), ('--edit=e',))
  def test_an_edit_needs_a_base_and_a_file(self, flag):
    with self.assertRaisesRegex(ValueError, 'wanted both. Give --base=B'):
      _check('--mode=apply', flag)

  def test_the_modes_of_a_field_are_required(self):
    with self.assertRaises(TypeError):
      fields.field(1, 'Help.')

  def test_a_plan_takes_the_flags_of_a_run(self):
    for name, field, _ in config_lib.options():
      modes = field.metadata['modes']
      if name.split('_')[0] in config_lib.stages() and not name.startswith(
          ('mesh', 'plan', 'apply')):
        with self.subTest(name):
          self.assertEqual('plan' in modes, 'unlearn' in modes)


class ConditionsTest(parameterized.TestCase):
  """Flags whose use depends on other flags; see also tests/flows."""

  _PAIRS = '--attribution_pairs_file=p.jsonl'
  _EDGE_LEVEL = '--attribution_level=edge'
  _NO_FORGET = ('--method=retain_only', '--unlearn_loss=none')

  @parameterized.parameters(
      (('--circuit_edges=7',), 'it applies to --attribution_level=edge, but'
       ' the level is --attribution_level=neuron_and_head'),
      (('--mode=audit', '--base=b', '--circuit_edge_selection=top'),
       'applies to --attribution_level=edge'),
      (('--mode=attribute', '--circuit_file=c.json'),
       'applies to --attribution_level=edge'),
      (('--mode=attribute', _EDGE_LEVEL, '--circuit_budget=0.1'),
       '--circuit_edges sets the size'),
      (('--mode=attribute', _EDGE_LEVEL, '--circuit_file=c.json',
        '--circuit_contrast=1'), '--circuit_file=c.json gives the circuit'),
      (('--mode=attribute', _PAIRS, '--data_forget=f'), 'the pairs come from'),
      (('--mode=attribute', _PAIRS, '--data_retain=r'),
       'only --circuit_contrast needs retain pairs'),
      (('--mode=attribute', '--circuit_resamples=0', '--eval_bootstrap=200'),
       'no circuit is selected from resampled pairs'),
      (('--mode=attribute', _PAIRS, '--eval_questions=9'),
       'no other phrasings are compared'),
      ((*_NO_FORGET, '--unlearn_choice_kl_weight=3'), 'has no forget term'),
      ((*_NO_FORGET, '--unlearn_orthogonal'), 'has no forget term'),
      (('--unlearn_kl_weight=0', '--unlearn_nll_weight=0',
        '--unlearn_orthogonal'), 'leave no other term'),
      (('--unlearn_lora_alpha=8',), 'applies to --unlearn_lora_rank above 0'),
      (('--unlearn_cooldown=9',), 'applies to --unlearn_patience above 0'),
      (('--unlearn_loss=npo', '--unlearn_marginal_weight=1'),
       'applies to --unlearn_loss=prior, but the loss is --unlearn_loss=npo'),
      (('--unlearn_guess_weight=0', '--unlearn_quantized_guess_margin=4'),
       'prior with --unlearn_guess_weight above 0'),
      (('--unlearn_loss=ascent', '--unlearn_routed_weight=2'),
       'applies to --unlearn_loss=prior'),
      (('--unlearn_loss=wga', '--unlearn_npo_beta=1'),
       'applies to --unlearn_loss=npo or --unlearn_loss=simnpo or'
       ' --unlearn_loss=dpo, but the loss'),
      (('--unlearn_loss=npo', '--unlearn_undial_strength=2'),
       'applies to --unlearn_loss=undial, but the loss is --unlearn_loss=npo'),
      (('--eval_attacks=', '--eval_attack_questions=9'), 'skips the attacks'),
      (('--mode=audit', '--base=b', '--eval_attacks=', '--eval_attack_steps=9'),
       'skips the attacks'),
      (('--eval_attacks=few_shot', '--eval_attack_steps=9'),
       'no attack trains with'),
      (('--eval_attacks=benign,few_shot', '--eval_attack_shares=0.1'),
       'no attack trains on forget facts with --eval_attacks=benign,few_shot'))
  def test_refuses(self, args, reason):
    flag = args[-1].split('=')[0]
    with self.assertRaisesRegex(
        ValueError, f'^{flag}.* has no effect in --mode=.*{reason}'):
      _check(*args)

  @parameterized.parameters(
      (_EDGE_LEVEL, '--circuit_edges=7', '--circuit_edge_selection=top'),
      (_EDGE_LEVEL, '--circuit_budget=0.1'),
      # So that a control may add to a run's flags.
      (*_NO_FORGET, '--unlearn_forget_weight=10'),
      # Flagfiles that older versions wrote name a weight of 0.
      ('--unlearn_loss=npo', '--unlearn_marginal_weight=0',
       '--unlearn_routed_weight=0'),
      ('--mode=attribute', _EDGE_LEVEL, '--circuit_file=c.json',
       '--circuit_edge_selection=top'),
      ('--mode=attribute', _PAIRS, '--data_retain=r', '--circuit_contrast=1'),
      ('--mode=attribute', _PAIRS, '--eval_bootstrap=200'),
      ('--mode=attribute', '--data_forget=f', '--eval_questions=9'),
      (_PAIRS, '--data_forget=f', '--data_retain=r', '--circuit_resamples=0',
       '--eval_bootstrap=200', '--eval_questions=9'))
  def test_accepts(self, *args):
    _check(*args)

  @parameterized.parameters(*methods.BASELINES.items())
  def test_a_baseline_needs_its_loss_and_reads_the_flags_of_it(
      self, method, loss):
    args = (f'--method={method}',)
    for wanted, flag, *contradiction in _ALSO.get(method, ()):
      with self.assertRaisesRegex(ValueError, wanted):
        _check(*args, *contradiction)
      args = (*args, flag)
    own = (f'--{flag}=2' for flag in _OF_LOSSES.get(loss, ()))
    _check(*args, *own)
    with self.assertRaisesRegex(ValueError, f'wanted --unlearn_loss={loss}'):
      _check(*args, '--unlearn_loss=prior')


  @parameterized.parameters(*methods.CLOSED_FORMS)
  def test_a_closed_form_reads_its_flags_and_those_of_the_sequences(
      self, method):
    every = {name for name, _, _ in config_lib.options()
             if name.startswith('unlearn_')}
    refused = set()
    config = runs.parse(f'--method={method}')
    mode_checks.check_unread_flags(config)
    for name, field, value in config_lib.options(config):
      if name in every - {'unlearn_loss', 'unlearn_quantizer_in_loop'}:
        other = options.other_value(field)
        changed = options.replace(config, name, other)
        try:
          mode_checks.check_unread_flags(changed)
        except ValueError as error:
          self.assertRegex(str(error), f'{name}.* has no effect')
          refused.add(name.removeprefix('unlearn_'))
    self.assertContainsSubset(
        ('steps', 'learning_rate', 'optimizer', 'kl_weight', 'forget_weight',
         'stop_forget', 'save_every', 'prompt_weight'), refused)
    self.assertNoCommonElements(refused, (
        'retain_pool', 'swapped_batch', 'swapped_weight', 'text_weight',
        'probe_every', 'forget_pool', *(
            name.removeprefix('unlearn_') for name in _CLOSED)))
    with self.assertRaisesRegex(ValueError, 'a closed form, which takes no st'):
      _check(f'--method={method}', '--unlearn_steps=9')

  def test_other_methods_refuse_the_flags_of_closed_forms(self):
    for method in 'mansu', 'npo':
      with self.assertRaisesRegex(
          ValueError, 'applies to --method=lunar and --method=group_mean, but'
          f' the method is --method={method}'):
        _check(f'--method={method}', '--unlearn_closed_form_scale=2')


class BaseTest(absltest.TestCase):

  def test_an_audit_needs_another_base(self):
    with self.assertRaisesRegex(ValueError, '--base is not set.*Give --base=B'):
      _check('--mode=audit', '--model=m')
    with self.assertRaisesRegex(ValueError, '--base=m and --model=m are one'):
      _check('--mode=audit', '--model=m', '--base=m')
    _check('--mode=audit', '--model=m', '--base=b')


if __name__ == '__main__':
  absltest.main()
