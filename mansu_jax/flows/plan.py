"""`--mode=plan`: the memory and time of a run, before it is started.

Compiles the heavy programs of every stage ahead of time from the model's config
alone, for devices that need not be attached. Memory comes from the compiler,
operations are counted from the programs, and seconds are an estimate (see
`planning.recorder`).
"""

from __future__ import annotations

import dataclasses

import jax

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
from mansu_jax.stages.circuit import settings as circuit_settings
from mansu_jax.stages.judge import attack_programs
from mansu_jax.stages.judge import programs as judge_programs
from mansu_jax.stages.judge import structure_programs
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.prepare import answer_layers
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.train import programs as train_programs
from mansu_jax.stages.train import settings as train_settings

_GIB = 2**30


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
    efficiency: share of the roofline bound that the seconds assume.
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
  efficiency: float
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
  """Plans the run of a config; `report.sections.plan` formats the plan.

  Raises:
    ValueError: bad flags or data, as in the run itself; an unknown topology; or
      no TPU compiler.
  """
  topology.prepare(config.plan.topology)
  devices, chip = topology.find(config.plan.topology)
  if config.plan.memory_gib:
    chip = chip._replace(memory=config.plan.memory_gib * _GIB)
  mesh = sharding.make_mesh(config.mesh, devices)
  inputs = checks.read(config)
  name, shapes, tokenizer = loading.find_config(
      config.model, config.model_ignore_fields)
  notes = []
  if tokenizer is None:
    tokenizer = stub_tokenizer.Tokenizer(shapes.vocab_size)
    notes.append('no tokenizer: text lengths are estimated to about 5 %')
    if config.data.chat:
      notes.append('no chat template: its length is taken from SmolLM2\'s')
  checks.check_model_and_data(config, inputs, shapes, tokenizer)
  attribution = circuit_settings.Settings.from_run(config)
  if answer_layers.is_needed(config):
    attribution = attribution.with_layers(
        answer_layers.UNKNOWN, shapes.num_layers)
  if attribution.circuit != config.circuit:
    notes.append(f'layers {attribution.circuit.first_layer} to'
                 f' {attribution.circuit.last_layer} are assumed for the'
                 ' circuit: a run finds them')
  recorder = recorder_lib.Recorder(mesh, chip)
  circuit = abstract.draw_circuit(
      config.attribution.level, attribution.circuit, config.seed, shapes)
  model = abstract.make(
      shapes, tokenizer, circuit, config.export_dtype, programs.Placer(mesh))
  hosts = topology.hosts(config.plan.topology, devices)
  if hosts > 1:
    notes.append(f'these devices belong to {hosts} hosts: start one process on'
                 ' each (--mesh_distributed)')
  jax.clear_caches()  # Traced programs depend on the devices' kind and memory.
  with jax.set_mesh(mesh), memory.planned(chip.memory, devices[0].platform):
    _record(config, attribution, inputs, model, recorder)
  return Plan(
      model=name, weights=tree_paths.count(model.params),
      topology=config.plan.topology, mesh=dict(mesh.shape), chip=chip,
      dtype=config.export_dtype,
      stages=recorder.stages, compile_seconds=recorder.compile_seconds,
      efficiency=recorder_lib.EFFICIENCY, notes=notes)


def _record(
    config: run_config.RunConfig, attribution: circuit_settings.Settings,
    inputs: inputs_lib.Inputs, model: abstract.AbstractModel,
    recorder: recorder_lib.Recorder) -> None:
  """Compiles the programs of every stage, in the order of the run.

  Args:
    config: of the run.
    attribution: its settings of attribution, with the circuit's layers.
    inputs: of the run.
    model: the base.
    recorder: records the stages.
  """
  if attribution.layers is not None:
    recorder.record('mover layer', answer_layers.plan(
        inputs.splits, model, seed=config.seed, chat=config.data.chat))
  recorder.record('attribution', circuit_programs.attribute(
      model, attribution, inputs.splits))
  settings = train_settings.Settings.from_run(
      config, inputs.splits, model.circuit)
  fisher = None
  prepared = recorder.record('references', train_programs.references(
      model, settings, inputs.splits,
      answer_layers.usual(model.config.num_layers)))
  if settings.edit.projection != 'none':
    fisher = recorder.record('fisher', train_programs.fisher(
        model, settings, prepared))
  recorder.record('unlearn', train_programs.unlearn(
      model, settings, prepared, fisher))
  recorder.record('export', train_programs.export(model, settings, prepared))
  judged = judge_programs.Job(
      model=model, inputs=inputs, attribution=attribution, options=config.eval,
      data=config.data, schemes=config.quant_schemes,
      whole=settings.all_weights)
  options = config.eval
  for name, stage, included in (
      ('evaluate', judge_programs.evaluate, True),
      ('generation', judge_programs.recall, options.recall_questions),
      ('hidden share', structure_programs.hidden_share,
       options.hidden_questions),
      ('attacks', attack_programs.attacks, options.attacks),
      ('erasure', judge_programs.erasure, True),
      ('samples', judge_programs.samples, True),
      ('survival', judge_programs.survival, True)):
    if included:
      recorder.record(name, stage(judged))
