"""What a run would take, before it is paid for: `--mode=plan`.

The heavy programs of every stage are compiled ahead of time for the devices
that are asked for, which need not be there, from the model's config alone.
Memory is the compiler's own account; operations are counted from the programs;
seconds are an estimate (see `planning.recorder`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mansu_jax import tree_paths
from mansu_jax.circuits import param_mask
from mansu_jax.config import run as run_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models.io import loading
from mansu_jax.planning import job as job_lib
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.planning import stages
from mansu_jax.planning import stub_tokenizer
from mansu_jax.planning import topology
from mansu_jax.runtime import memory
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import checks

_GIB = 2**30
# What a stage holds more of the larger the circuit is.
_OF_CIRCUIT = frozenset((
    'fisher', 'grids', 'slices', 'slices_and_optimizer', 'slices_before'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The account of a run.

  Attributes:
    model: its name.
    weights: how many it has.
    topology: as asked for.
    mesh: sizes of its axes by name.
    chip: the kind of device, with the memory that was asked for.
    dtype: that weights are held in.
    stages: see `planning.recorder`.
    compile_seconds: of all programs, here.
    notes: what is not the run's own.
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
    """Whether every stage does."""
    return all(map(self.fits_stage, self.stages))

  def fits_stage(self, stage: recorder_lib.Stage) -> bool:
    """Whether a stage needs no more than a device has."""
    return stage.bytes <= self.chip.memory and not any(
        call.refused for call in stage.calls)


def run(config: run_config.RunConfig) -> Plan:
  """Plans the run of a config; `lines` prints it.

  Raises:
    ValueError: bad flags or data, as of the run itself; no such topology; or
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
    notes.append('there is no tokenizer: lengths of texts are estimated, within'
                 ' about 5 %')
    if config.data.chat:
      notes.append('nor is there a chat template: it is taken to be as long as'
                   ' that of SmolLM2')
  checks.check_model_and_data(config, inputs, shapes, tokenizer)
  circuit = job_lib.draw_circuit(config, shapes)
  index, replacement_masks = param_mask.make_index(circuit), param_mask.make_replacement_masks(circuit)
  recorder = recorder_lib.Recorder(mesh, chip)
  dtype = jnp.dtype(config.export_dtype)
  params = tree_paths.map_named(lambda leaf, x: recorder.place(
      jax.ShapeDtypeStruct(x.shape, dtype), layout.AXES[leaf]),
                                decoder.abstract(shapes))
  model = loading.LoadedModel(shapes, params, tokenizer, {})
  hosts = topology.hosts(config.plan.topology, devices)
  if hosts > 1:
    notes.append(f'these devices are of {hosts} hosts: one process on each'
                 ' (--mesh_distributed)')
  jax.clear_caches()  # What is traced follows the devices' memory and kind.
  with jax.set_mesh(mesh), memory.planned(chip.memory, devices[0].platform):
    stages.plan(job_lib.Job(
        config=config, inputs=inputs, model=model, circuit=circuit,
        index=recorder.whole(index), replacement_masks=recorder.whole(replacement_masks),
        recorder=recorder))
  return Plan(
      model=name, weights=tree_paths.count(params),
      topology=config.plan.topology, mesh=dict(mesh.shape), chip=chip,
      dtype=config.export_dtype,
      stages=recorder.stages, compile_seconds=recorder.compile_seconds,
      notes=notes)


def _check(config: run_config.RunConfig) -> None:
  """Raises ValueError on what has no plan."""
  topology.prepare(config.plan.topology)
  if config.method != 'mansu':
    raise ValueError(
        f'--mode=plan is of --method=mansu, not of {config.method}, which'
        ' trains every weight; wanted mansu.')


_HEADS = ('stage', 'GiB', 'of it held', 'largest program', 'TFLOP', 's a call',
          's in all')


def lines(plan: Plan) -> list[str]:
  """The plan as text; the last line says whether it fits."""
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
      f'about {seconds:.0f} s of products and of moving weights, at'
      f' {recorder_lib.EFFICIENCY:.0%} of what the devices could: without'
      ' loading, compiling, export and what the host does. To compile took'
      f' {plan.compile_seconds:.0f} s here.')
  largest = plan.largest
  out.append(
      f'{"fits" if plan.fits else "does not fit"}: the largest stage is'
      f' {largest.name}, {largest.bytes / _GIB:.2f} of'
      f' {plan.chip.memory / _GIB:.2f} GiB a device')
  return out


def _too_much(plan: Plan, stage: recorder_lib.Stage) -> str:
  """Why a stage does not fit, and what to change."""
  refused = '; '.join(f'{c.name} does not compile ({c.refused})'
                      for c in stage.calls if c.refused)
  fixed = sum(size for name, size in stage.held.items()
              if name not in _OF_CIRCUIT)
  ways = ['take more devices, or a larger --mesh_fsdp or --mesh_tensor']
  if plan.dtype == 'float32':
    ways.insert(0, 'give --export_dtype=bfloat16')
  if fixed < plan.chip.memory:  # Else smaller batches and circuits are in vain.
    ways.insert(0, f'lower {stage.flags or "--circuit_budget"}')
  advice = '; or '.join(ways)
  advice = f'{advice[0].upper()}{advice[1:]}.'
  if refused and stage.bytes <= plan.chip.memory:
    return f'{stage.name} does not run: {refused}. {advice}'
  parts = ', '.join(f'{name} {size / _GIB:.2f}'
                    for name, size in stage.held.items())
  largest = stage.largest and (
      f', and {stage.largest.name} takes {stage.largest.bytes / _GIB:.2f} more')
  return (f'{stage.name} does not fit: it holds {parts} GiB{largest or ""}.'
          f' {advice}')
