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
from mansu_jax.stages.train import retain_kl
from mansu_jax.unlearn import loop
from tests import runs
from tests import tiny_job

_JITTED = type(jax.jit(lambda: None))


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
    for owner, name in ((loop, 'make_step'), (retain_kl, 'program')):
      _made_by(stack, owner, name, functools.partial(
          _Counted, f'{owner.__name__.removeprefix("mansu_jax.")}.{name}',
          report=report))
    _attributes(stack, generation.Generator, report, 'next_tokens')
    _attributes(stack, scoring.Scorer, report, '_apply', '_prefix',
                '_normalized')
    yield


def _planned(*flags):
  """`{(stage, function): calls}` of a plan."""
  calls, bounds = collections.Counter(), set()

  def compile_none(recorder, program):
    traced = program.fn.trace(*program.args, **program.static)
    return (1.0, '', cost.count(traced.jaxpr),
            recorder._placer.replicate(traced.out_info))

  call = recorder_lib.Recorder._call

  def count(recorder, program):
    key = recorder.stages[-1].name, program.fn.name
    calls[key] += program.calls
    if getattr(program, 'at_most', False):
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


if __name__ == '__main__':
  folder = tempfile.mkdtemp()
  flags = (*tiny_job.make(pathlib.Path(folder) / 'job'), *sys.argv[1:])
  planned, bounds = _planned(*flags)
  made = _made(pathlib.Path(folder) / 'run', *flags)
  for key in sorted(set(planned) | set(made), key=str):
    if key[0] in (None, 'load'): continue
    p, m = planned.get(key), made.get(key)
    print('  ' if p == m else '!!', '<=' if key in bounds else '  ', key, p, m)
