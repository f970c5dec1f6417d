"""`--mode=plan`: the memory and time of a run, before it is started.

Compiles the heavy programs of every stage ahead of time from the model's config
alone, for devices that need not be attached. Memory comes from the compiler,
operations are counted from the programs, and seconds are an estimate (see
`planning.recorder`).
"""

from __future__ import annotations

import dataclasses

import jax

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax.config import run as run_config
from mansu_jax.models.io import loading
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.planning import stub_tokenizer
from mansu_jax.planning import topology
from mansu_jax.runtime import memory
from mansu_jax.runtime import programs
from mansu_jax.runtime import sharding
from mansu_jax.stages import checks
from mansu_jax.stages.circuit import programs as circuit_programs
from mansu_jax.stages.judge import programs as judge_programs
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.train import programs as train_programs

_GIB = 2**30
# Held trees that grow with the circuit.
_OF_CIRCUIT = frozenset((
    'fisher', 'grids', 'slices', 'slices_and_optimizer', 'slices_before'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The memory and time of a run, by stage.

  Attributes:
    model: its name.
    weights: their number.
    topology: `--plan_topology`.
    mesh: sizes of the mesh axes by name.
    chip: the kind of device, with the memory to plan for.
    dtype: storage dtype of the weights.
    stages: see `planning.recorder`.
    compile_seconds: of all programs, on this machine.
    notes: where the plan differs from the run.
  """

  model: str
  weights: int
  topology: str
  mesh: dict[str, int]
  chip: topology.Chip
  dtype: str
  stages: list[recorder_lib.Stage]
  compile_seconds: float
  notes: list[str]

  @property
  def largest(self) -> recorder_lib.Stage:
    """The stage that needs most memory."""
    return max(self.stages, key=lambda stage: stage.bytes)

  @property
  def fits(self) -> bool:
    """Whether every stage fits."""
    return all(map(self.fits_stage, self.stages))

  def fits_stage(self, stage: recorder_lib.Stage) -> bool:
    """Whether a stage fits into a device's memory."""
    return stage.bytes <= self.chip.memory and not any(
        call.refused for call in stage.calls)


def run(config: run_config.RunConfig) -> Plan:
  """Plans the run of a config; `lines` formats the plan.

  Raises:
    ValueError: bad flags or data, as in the run itself; an unknown topology; or
      no TPU compiler.
  """
  _check(config)
  devices, chip = topology.find(config.plan.topology)
  if config.plan.memory_gib:
    chip = chip._replace(memory=config.plan.memory_gib * _GIB)
  mesh = sharding.make_mesh(config.mesh, devices)
  inputs = checks.read(config)
  name, shapes, tokenizer = loading.find_config(config.model)
  notes = []
  if tokenizer is None:
    tokenizer = stub_tokenizer.Tokenizer(shapes.vocab_size)
    notes.append('no tokenizer: text lengths are estimated to about 5 %')
    if config.data.chat:
      notes.append('no chat template: its length is taken from SmolLM2\'s')
  checks.check_model_and_data(config, inputs, shapes, tokenizer)
  recorder = recorder_lib.Recorder(mesh, chip)
  plan_run = abstract.make(
      config, inputs, shapes, tokenizer, programs.Placer(mesh))
  hosts = topology.hosts(config.plan.topology, devices)
  if hosts > 1:
    notes.append(f'these devices belong to {hosts} hosts: start one process on'
                 ' each (--mesh_distributed)')
  jax.clear_caches()  # Traced programs depend on the devices' kind and memory.
  with jax.set_mesh(mesh), memory.planned(chip.memory, devices[0].platform):
    _record(plan_run, recorder)
  return Plan(
      model=name, weights=tree_paths.count(plan_run.model.params),
      topology=config.plan.topology, mesh=dict(mesh.shape), chip=chip,
      dtype=config.export_dtype,
      stages=recorder.stages, compile_seconds=recorder.compile_seconds,
      notes=notes)


def _record(
    plan_run: abstract.AbstractRun, recorder: recorder_lib.Recorder) -> None:
  """Compiles the programs of every stage, in the order of the run."""
  recorder.record('attribution', '--attribution_batch, --circuit_pairs',
                  circuit_programs.attribute(plan_run))
  prepared = recorder.record(
      'references', '', train_programs.references(plan_run))
  fisher = None
  if plan_run.config.edit.projection != 'none':
    fisher = recorder.record('fisher', '--fisher_chunk, --circuit_budget',
                             train_programs.fisher(plan_run, prepared))
  recorder.record(
      'unlearn', '--circuit_budget, --unlearn_forget_batch,'
      ' --unlearn_retain_batch, --unlearn_text_batch',
      train_programs.unlearn(plan_run, prepared, fisher))
  recorder.record('export', '', train_programs.export(plan_run, prepared))
  calibrated = set(plan_run.config.quant_schemes) & set(quant.CALIBRATED)
  for name, flags, programs_of in (
      ('evaluate', '--eval_batch_tokens' + (
          ', --eval_calibration_tokens' if calibrated else ''),
       judge_programs.evaluate),
      ('erasure', '--attribution_batch', judge_programs.erasure),
      ('samples', '--eval_generations', judge_programs.samples),
      ('survival', '', judge_programs.survival)):
    recorder.record(name, flags, programs_of(plan_run))


def _check(config: run_config.RunConfig) -> None:
  """Raises ValueError on a config that has no plan."""
  topology.prepare(config.plan.topology)
  if config.method != 'mansu':
    raise ValueError(
        f'--mode=plan supports --method=mansu only, got {config.method}.')


_HEADS = ('stage', 'GiB', 'held GiB', 'largest program', 'TFLOP', 's/call',
          'total s')


def lines(plan: Plan) -> list[str]:
  """The plan as lines of text; the last one says whether it fits."""
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items())
  out = [
      f'{plan.model}, {plan.weights / 1e9:.2f} billion weights, on'
      f' {plan.topology} ({plan.chip.name}, {plan.chip.memory / _GIB:.2f} GiB a'
      f' device; mesh {mesh})', *(f'note: {note}' for note in plan.notes)]
  rows = [_HEADS]
  for stage in plan.stages:
    call, ours = stage.largest, max(
        stage.calls, key=lambda c: c.calls * c.seconds, default=None)
    rows.append((
        stage.name, f'{stage.bytes / _GIB:.2f}',
        f'{sum(stage.held.values()) / _GIB:.2f}', call.name if call else '',
        f'{stage.flops / 1e12:.1f}', f'{ours.seconds:.3f}' if ours else '',
        f'{stage.seconds:.1f}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  out += ['  '.join(
      cell.ljust(width) if i in (0, 3) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
          for row in rows]
  out += [_too_much(plan, stage) for stage in plan.stages
          if not plan.fits_stage(stage)]
  seconds = sum(stage.seconds for stage in plan.stages)
  out.append(
      f'about {seconds:.0f} s of device time, assuming'
      f' {recorder_lib.EFFICIENCY:.0%} of the roofline bound; loading,'
      ' compiling, export and host work come on top. Compiling took'
      f' {plan.compile_seconds:.0f} s here.')
  largest = plan.largest
  out.append(
      f'{"fits" if plan.fits else "does not fit"}: the largest stage is'
      f' {largest.name}, {largest.bytes / _GIB:.2f} of'
      f' {plan.chip.memory / _GIB:.2f} GiB a device')
  return out


def _too_much(plan: Plan, stage: recorder_lib.Stage) -> str:
  """Why a stage does not fit, and which flags to change."""
  refused = '; '.join(f'{c.name} does not compile ({c.refused})'
                      for c in stage.calls if c.refused)
  fixed = sum(size for name, size in stage.held.items()
              if name not in _OF_CIRCUIT)
  ways = ['use more devices, or a larger --mesh_fsdp or --mesh_tensor']
  if plan.dtype == 'float32':
    ways.insert(0, 'give --export_dtype=bfloat16')
  if fixed < plan.chip.memory:  # Otherwise smaller batches do not help.
    ways.insert(0, f'lower {stage.flags or "--circuit_budget"}')
  advice = '; or '.join(ways)
  advice = f'{advice[0].upper()}{advice[1:]}.'
  if refused and stage.bytes <= plan.chip.memory:
    return f'{stage.name} does not compile: {refused}. {advice}'
  parts = ', '.join(f'{name} {size / _GIB:.2f}'
                    for name, size in stage.held.items())
  largest = stage.largest and (
      f', and {stage.largest.name} takes {stage.largest.bytes / _GIB:.2f} more')
  return (f'{stage.name} does not fit: it holds {parts} GiB{largest or ""}.'
          f' {advice}')
