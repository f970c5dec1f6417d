"""A plan lists each heavy program as often as the run calls it."""

from __future__ import annotations

import collections
import contextlib
import functools
import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import pytest

from mansu_jax.eval import generation
from mansu_jax.eval import scoring
from mansu_jax.flows import plan
from mansu_jax.planning import cost
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.runtime import clock
from mansu_jax.stages.train import probe
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import saliency
from mansu_jax.stages.train import training
from mansu_jax.unlearn import loop
from tests import runs
from tests import tiny_job

_JITTED = type(jax.jit(lambda: None))
# Functions that no plan lists: they reduce one leaf, or map the circuit's
# slices element by element.
_LIGHT = ('circuits.param_mask._differing', 'erasure.hidden_share._signed',
          'erasure.suppression._margins',
          'quant.leaves.', 'stages.judge.copy_back.', 'stages.train.edits.',
          'transforms.')
_WHOLE = ('--attribution_level=neuron_and_head', '--method=npo')


class _Counted:
  """A jitted function that reports its calls outside other jitted ones."""

  def __init__(self, name: str, fn: Any, report: Any):
    self.name, self._fn, self._report = name, fn, report

  def __call__(self, *args, **options):
    if not any(isinstance(x, jax.core.Tracer)
               for x in jax.tree.leaves((args, options))):
      self._report(self.name)
    return self._fn(*args, **options)

  def __getattr__(self, name: str):
    return getattr(self._fn, name)


def _made_by(stack, owner, name, wrap):
  """Wraps what a function of a module returns."""
  make = getattr(owner, name)
  stack.enter_context(mock.patch.object(
      owner, name, lambda *args, **options: wrap(make(*args, **options))))


def _attributes(stack, owner, report, *names):
  """Wraps attributes that a class sets when it is initialised."""
  start = owner.__init__

  @functools.wraps(start)
  def init(self, *args, **options):
    start(self, *args, **options)
    for name in names:
      if getattr(self, name):
        setattr(self, name, _Counted(
            f'{owner.__name__}.{name}', getattr(self, name), report))

  stack.enter_context(mock.patch.object(owner, '__init__', init))


@contextlib.contextmanager
def _counted(report):
  """Reports the name of each jitted function of the library when called."""
  with contextlib.ExitStack() as stack:
    for module in [m for name, m in sys.modules.items()
                   if name.startswith('mansu_jax.')]:
      for name, fn in list(vars(module).items()):
        if isinstance(fn, _JITTED):
          short = f'{module.__name__.removeprefix("mansu_jax.")}.{name}'
          stack.enter_context(mock.patch.object(
              module, name, _Counted(short, fn, report)))
    for owner, name in ((loop, 'make_step'), (retain_kl, 'program'),
                        (probe, 'program'), (saliency, 'program'),
                        (training, 'reference_program')):
      _made_by(stack, owner, name, functools.partial(
          _Counted, f'{owner.__name__.removeprefix("mansu_jax.")}.{name}',
          report=report))
    _attributes(stack, generation.Generator, report, 'prefill', 'extend',
                'decode')
    _attributes(stack, scoring.Scorer, report, '_apply', '_prefix',
                '_normalized')
    yield


def _planned(*flags):
  """`{(stage, function): calls}` of a plan, and the keys of upper bounds."""
  calls, bounds = collections.Counter(), set()

  def compile_none(recorder, program):
    traced = program.fn.trace(*program.args, **program.static)
    return (1.0, '', cost.count(traced.jaxpr),
            recorder._placer.replicate(traced.out_info))

  call = recorder_lib.Recorder._call

  def count(recorder, program):
    key = recorder.stages[-1].name, program.fn.name
    calls[key] += program.calls
    if program.at_most:
      bounds.add(key)
    return call(recorder, program)

  with (mock.patch.object(recorder_lib.Recorder, '_compile', compile_none),
        mock.patch.object(recorder_lib.Recorder, '_call', count),
        _counted(lambda name: None)):
    plan.run(runs.parse(*flags, '--mode=plan', '--plan_topology=this'))
  return calls, bounds


def _made(root, *flags):
  """`{(stage, function): calls}` of a run."""
  calls, stages = collections.Counter(), [None]
  timed = clock.Clock.stage

  @contextlib.contextmanager
  def stage(self, name):
    stages.append(name)
    with timed(self, name):
      yield
    stages.pop()

  with (mock.patch.object(clock.Clock, 'stage', stage),
        _counted(lambda name: calls.update([(stages[-1], name)]))):
    runs.run(root, *flags)
  return calls


class CallsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('neuron_and_head', '--attribution_level=neuron_and_head',
       '--circuit_contrast=0.5', '--circuit_resamples=5'),
      ('edge', '--attribution_level=edge', '--circuit_edges=50',
       '--circuit_contrast=0.5', '--circuit_resamples=5'),
      ('lora', *_WHOLE, '--unlearn_lora_rank=2', '--circuit_resamples=0'),
      ('bfloat16_until_forgotten', *_WHOLE, '--circuit_resamples=0',
       '--unlearn_weights_dtype=bfloat16', '--unlearn_stop_forget=0.1',
       '--unlearn_saliency=0.3', '--method=saf', '--unlearn_sharpness=0.1'),
      ('neuron_with_measures', '--attribution_level=neuron',
       '--eval_hidden_questions=48', '--eval_recall_questions=24',
       '--eval_attacks=lora', '--eval_attack_steps=2',
       '--circuit_resamples=0'),
      ('prior_until_the_plateau', '--unlearn_loss=prior',
       '--unlearn_routed_weight=1', '--unlearn_marginal_weight=0.3',
       '--unlearn_patience=1', '--unlearn_cooldown=1',
       '--unlearn_probe_every=1', '--circuit_resamples=0',
       '--eval_hidden_questions=48'),
      ('several_quantizers', '--attribution_level=neuron_and_head',
       '--quant_schemes=nf4,q4_0,gptq_g128', '--circuit_resamples=0'))
  @pytest.mark.slow
  def test_each_program_is_called_as_often_as_planned(self, *flags):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    # The plan's circuit is drawn. A large budget gives both every kind of node.
    job = (*tiny_job.make(folder / 'job'), '--unlearn_steps=4',
           '--circuit_budget=0.4', *flags)
    planned, bounds = _planned(*job)
    made = _made(folder / 'run', *job)
    for key, calls in planned.items():
      if key in bounds:
        self.assertBetween(made[key], 1, calls, str(key))
      else:
        self.assertEqual(made[key], calls, str(key))
    stops = any('stop_forget' in flag or 'patience' in flag for flag in flags)
    writes = any('recall' in flag for flag in flags)
    self.assertLen(bounds, 2 + 3 * stops + 3 * writes)
    unplanned = {name for stage, name in made if stage not in (
        None, 'load') and (stage, name) not in planned}
    self.assertEmpty({
        name for name in unplanned if not name.startswith(_LIGHT)})


if __name__ == '__main__':
  absltest.main()
