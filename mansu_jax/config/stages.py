"""The configurations of a run's stages, which `config` names and gathers."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields as config_fields

_field, _check = config_fields.field, config_fields.check
_check_fields = config_fields.check_fields
_check_least = config_fields.check_least
_MOST_DRAWS = 10**5  # Of what is drawn at random, and measured, each time.
_MOST_ROWS = 10**5  # Of a batch.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Which files play which role; `shipped:NAME` is a file of the package."""

  forget: tuple[str, ...] = _field(
      (), 'Question file(s) (JSONL) to forget; `shipped:NAME` is a file of the'
      ' package, and NAME may hold * and ?. Required to unlearn.')
  retain: tuple[str, ...] = _field(
      (), 'Question file(s) to retain. Required to unlearn.')
  heldout: tuple[str, ...] = _field(
      (), 'Question file(s) never trained on, to measure what is lost.')
  text: tuple[str, ...] = _field(
      (), 'General text (.txt, or JSONL with text and kind) to retain.')
  heldout_text: tuple[str, ...] = _field(
      (), 'General text never trained on, for perplexity.')
  calibration: tuple[str, ...] = _field(
      (), 'General text that calibrated quantizers (gptq_g128, awq_g128) see;'
      ' the shipped retain text by default.')
  text_window: int = _field(64, 'Tokens in one window of general text.')
  chat: bool = _field(
      False, 'Ask facts as a user\'s turn of the model\'s chat template, which'
      ' the answer follows: in training, pairs and evaluation. Prompts that'
      ' hold its special tokens, and general text, stay as they are. Also'
      ' --chat.')

  def __post_init__(self):
    _check_fields(self, 'data')
    _check(self.text_window >= 8, f'--data_text_window={self.text_window} is'
           ' too short; wanted 8 or more tokens.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributionConfig:
  """EAP-IG: which pairs, how many path steps, which nodes."""

  level: str = _field(
      'neuron_and_head', 'What is scored and edited: MLP neurons, attention'
      ' heads, both, or the slices that read and write the connections of these'
      ' (edge).',
      ('neuron', 'head', 'neuron_and_head', 'edge'))
  steps: int = _field(5, 'Integrated-gradient steps M.')
  pairs: str = _field(
      '64', 'How many clean/corrupted prompt pairs to make of the forget set,'
      ' as many as there are, if fewer; or a JSONL file of pairs.')
  batch: int = _field(
      16, 'Pairs in one batch, at most: fewer where a device has less memory.')
  skip_unequal: bool = _field(
      False, 'Leave out the pairs of a file whose prompts differ in token'
      ' length, and say how many; without it they are an error.')

  def __post_init__(self):
    _check_fields(self, 'attribution')
    _check(self.pairs_file or not self.skip_unequal,
           '--attribution_skip_unequal is for pairs of a file, but'
           f' --attribution_pairs={self.pairs} makes some of questions, equally'
           ' long; leave it out.')
    _check_least(self, 'attribution', 1, 'steps', 'batch')
    _check(self.pairs != '', '--attribution_pairs is empty; wanted a number of'
           ' pairs, or a JSONL file of pairs.')
    most = config_fields.MOST
    counted = self.pairs.isdecimal() and len(self.pairs) <= len(str(most))
    _check(1 <= int(self.pairs) <= most if counted else
           not (self.pairs.isdecimal() or self.pairs.startswith('-')),
           f'--attribution_pairs={self.pairs[:40]}: wanted at least 1 pair and'
           f' at most {most:,}, or a JSONL file of pairs.')

  @property
  def most_pairs(self) -> int | None:
    """How many pairs to make; None where they come from a file."""
    return int(self.pairs) if self.pairs.isdecimal() else None

  @property
  def pairs_file(self) -> str:
    """The file of pairs; empty where they are made."""
    return '' if self.pairs.isdecimal() else self.pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitConfig:
  """How scores become the circuit, the only weights that may change."""

  selection: str = _field(
      'attributed', 'attributed: highest |score|; random: as many nodes of'
      ' the same layers, drawn by the seed; all: every weight (baselines).',
      ('attributed', 'random', 'all'))
  budget: float = _field(
      0.01, 'Share of all model weights that the circuit may own, in (0, 1].')
  first_layer: int = _field(0, 'First layer that may hold the circuit.')
  last_layer: int = _field(-1, 'Last layer that may; negative: from the end.')
  per_layer_cap: float = _field(
      1.0, 'Largest share of a layer\'s nodes, or edges into it, it may hold.')
  contrast: float = _field(
      0.0, 'Rank by |forget score| minus this times |retain score|.')
  faithfulness: float = _field(
      0.8, 'Report the smallest prefix of the ranking this faithful.')
  curve_circuits: int = _field(
      5, 'To attribute alone: random circuits at each size of the curve of'
      ' faithfulness (0: none).', most=_MOST_DRAWS)
  random_circuits: int = _field(
      20, 'Random circuits for comparison, alike in each layer.',
      most=_MOST_DRAWS)
  pairs: int = _field(32, 'Pairs on which faithfulness is measured.')
  resamples: int = _field(
      100, 'Times that the circuit is selected again from resampled pairs, to'
      ' tell how firm it is; 0: not at all.', most=_MOST_DRAWS)
  edges: int = _field(
      200, 'Edges of a circuit of edges, before those that lead nowhere are'
      ' dropped.', most=10**9)
  edge_selection: str = _field(
      'greedy', 'greedy: from the logits down, the highest |score| that leads'
      ' there; top: the highest |score| anywhere.', ('greedy', 'top'))
  file: str = _field(
      '', 'To attribute alone, at level edge: a circuit of edges (JSON, as'
      ' EAP-IG and the Mechanistic Interpretability Benchmark write it) that is'
      ' measured on the pairs instead of one selected by our scores.')

  def __post_init__(self):
    _check_fields(self, 'circuit')
    _check_least(self, 'circuit', 1, 'random_circuits', 'pairs', 'edges')
    _check_least(self, 'circuit', 0, 'first_layer', 'contrast', 'resamples',
                 'curve_circuits')
    _check(0 < self.budget <= 1, f'--circuit_budget={self.budget} is outside'
           ' (0, 1]: it is a share of all model weights.')
    _check(0 < self.per_layer_cap <= 1, '--circuit_per_layer_cap='
           f'{self.per_layer_cap} is outside (0, 1].')
    _check(0 < self.faithfulness <= 1, '--circuit_faithfulness='
           f'{self.faithfulness} is outside (0, 1].')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FisherConfig:
  """Diagonal Fisher information of the retain set, on the circuit."""

  labels: str = _field(
      'data', 'data: empirical Fisher; model: labels drawn from the model'
      ' (true Fisher).', ('data', 'model'))
  sequences: int = _field(128, 'Retain sequences it is averaged over.')
  chunk: int = _field(
      4, 'Per-example gradients live at once, at most: fewer where a device has'
      ' less memory.')

  def __post_init__(self):
    _check_fields(self, 'fisher')
    _check_least(self, 'fisher', 1, 'sequences', 'chunk')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditConfig:
  """The optax chain: projection and magnitude floor."""

  projection: str = _field(
      'fisher', 'Null-space projection of the updates.', ('fisher', 'none'))
  fisher_quantile: float = _field(
      0.5, 'Coordinates under this quantile of their leaf may move.')
  floor: str = _field(
      'hold', 'Magnitude floor: hold (error-feedback dead zone), lift (raise'
      ' to the floor at the last step, as in the paper), none.',
      ('hold', 'lift', 'none'))
  landing: str = _field(
      'centre', 'Where a moved weight lands: on its new code\'s value, or just'
      ' past the boundary.', ('centre', 'boundary'))

  def __post_init__(self):
    _check_fields(self, 'edit')
    _check(0 < self.fisher_quantile <= 1, '--edit_fisher_quantile='
           f'{self.fisher_quantile} is outside (0, 1].')


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
  """Objective, batches and optimizer of the unlearn loop."""

  loss: str = _field(
      'npo', 'Forget term. npo: negative preference against the base; simnpo:'
      ' without the base, by the mean log-probability; bounded_nll: -log(1 -'
      ' p(answer)), which ends at 0; marginal: say what the base says on'
      ' average over the facts that are each other\'s wrong choices, in the'
      ' same phrasing; exchange: what it says of one of them; ascent: plain'
      ' gradient ascent (GradDiff).',
      ('npo', 'simnpo', 'bounded_nll', 'marginal', 'exchange', 'ascent'))
  npo_beta: float = _field(0.1, 'Inverse temperature of NPO and SimNPO.')
  forget_weight: float = _field(1.0, 'Weight of the forget term.')
  alternatives_weight: float = _field(
      0.0, 'Weight, within the forget term, of a KL that sees only the choices'
      ' of a fact\'s training questions, by first tokens: the wrong ones are to'
      ' be equally likely, the right one not at all.')
  kl_weight: float = _field(10.0, 'Weight of KL(base || model) on retain.')
  nll_weight: float = _field(1.0, 'Weight of the retain NLL.')
  text_weight: float = _field(1.0, 'Weight of the general text\'s KL, within'
                              ' the retain KL.')
  prompt_weight: float = _field(
      0.0, 'Weight of the KL on the forget prompts\' own tokens, within the'
      ' retain KL.')
  quantizer_in_loop: bool = _field(
      True, 'Alternate gradients between the full-precision view and each'
      ' quantized view of the model.')
  fp_steps: int = _field(
      1, 'Steps at the full-precision view for each round of the quantized'
      ' ones; without these nothing changes.')
  steps: int = _field(100, 'Optimizer steps.')
  optimizer: str = _field(
      'adam', 'adam; or lars: momentum 0.9 of gradients that are scaled to the'
      ' weights, a leaf (all layers of a matrix) at a time, so that large'
      ' gradients move most.', ('adam', 'lars'))
  learning_rate: float = _field(
      4e-3, 'Peak learning rate (cosine); of lars, a share of each leaf\'s norm'
      ' for one gradient, up to ten times that with momentum.')
  warmup: float = _field(0.05, 'Share of the steps spent warming up.')
  forget_batch: int = _field(12, 'Forget sequences a step.', most=_MOST_ROWS)
  retain_batch: int = _field(
      12, 'Retain fact sequences a step.', most=_MOST_ROWS)
  near_share: float = _field(
      0.25, 'Share of each retain batch that is drawn from the sequences whose'
      ' base states are nearest to the forget set\'s, a tenth of the retain set'
      ' at most; in [0, 1).')
  text_batch: int = _field(
      2, 'General text windows a step.', most=_MOST_ROWS)
  crossed_batch: int = _field(
      0, 'Crossed prompts a step: the retain set\'s phrasings asked of the'
      ' forget set\'s subjects (the words that all prompts of a fact share);'
      ' what the base says of them otherwise is kept.', most=_MOST_ROWS)
  crossed_weight: float = _field(
      1.0, 'Weight of their KL, within the retain KL.')
  crossed_pool: int = _field(
      1500, 'Crossed prompts whose reference states are kept.')
  forget_pool: int = _field(
      480, 'Forget sequences that are used (0: all), evenly over facts.')
  retain_pool: int = _field(
      480, 'Retain sequences whose reference states are kept, evenly over'
      ' facts; with --unlearn_near_share up to as many more, of the facts that'
      ' are near.')
  text_pool: int = _field(96, 'Text windows whose reference states are kept.')
  collapse: float = _field(
      3.0, 'Stop when the retain KL exceeds this (nats a token).')
  save_every: int = _field(
      10, 'Steps from one save of the loop\'s state to the next, in the'
      ' background, so that a run that is stopped goes on from there (0: only'
      ' when told to stop); it changes no figure.')

  def __post_init__(self):
    _check_fields(self, 'unlearn')
    _check_least(self, 'unlearn', 1, 'steps', 'forget_batch', 'retain_batch',
                 'retain_pool', 'text_pool', 'crossed_pool', 'fp_steps')
    _check_least(self, 'unlearn', 0, 'forget_pool', 'text_batch',
                 'forget_weight', 'alternatives_weight', 'kl_weight',
                 'nll_weight', 'text_weight', 'prompt_weight', 'crossed_batch',
                 'crossed_weight', 'save_every')
    for name in ('learning_rate', 'npo_beta', 'collapse'):
      _check(getattr(self, name) > 0, f'--unlearn_{name}='
             f'{getattr(self, name)} must be positive.')
    _check(0 <= self.near_share < 1, f'--unlearn_near_share={self.near_share}'
           ' is outside [0, 1); wanted a share that leaves room for the rest.')
    _check(not self.quantizer_in_loop or self.fp_steps < max(2, self.steps),
           f'--unlearn_fp_steps={self.fp_steps} of --unlearn_steps={self.steps}'
           ' leaves no step for the quantizer; wanted fewer, or'
           ' --nounlearn_quantizer_in_loop.')
    _check(0 <= self.warmup < 1, f'--unlearn_warmup={self.warmup} is outside'
           ' [0, 1).')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """For which devices a run is planned."""

  topology: str = _field(
      'v5e:2x4', 'TPU slice, which need not be there: v5e, v5p or v6e and its'
      ' shape, such as v5p:2x2x4; or `this`, the devices that are there.')
  memory_gib: float = _field(
      0.0, 'Memory of a device in GiB, if not that of the topology; to plan for'
      ' 80 GB, say (74.5: of a GPU JAX takes three quarters, unless'
      ' XLA_PYTHON_CLIENT_MEM_FRACTION says more).')

  def __post_init__(self):
    _check_fields(self, 'plan')
    _check(self.memory_gib >= 0,
           f'--plan_memory_gib={self.memory_gib} is less than nothing; wanted'
           ' GiB of a device, or 0 for what the topology has. Correct it.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """How the devices are arranged; their product is their number."""

  data: int = _field(
      1, 'Devices over which rows of a batch are split, with whole weights on'
      ' each; -1: what is left.')
  fsdp: int = _field(
      -1, 'Devices over which rows, and weights along the model width, are'
      ' split; -1: what is left.')
  tensor: int = _field(
      1, 'Devices over which weights are split along heads, neurons and'
      ' vocabulary; -1: what is left.')
  distributed: bool = _field(
      False, 'Join the other processes of the run, which have devices of their'
      ' own (jax.distributed; BUILD.md, Several processes).')
  join_seconds: int = _field(
      300, 'Seconds that all processes may take to come; it changes no figure.')

  def __post_init__(self):
    _check_fields(self, 'mesh')
    sizes = self.data, self.fsdp, self.tensor
    _check(all(size == -1 or size > 0 for size in sizes)
           and sizes.count(-1) < 2,
           f'--mesh_data={self.data}, --mesh_fsdp={self.fsdp} and --mesh_tensor'
           f'={self.tensor} are no mesh; wanted numbers of devices, at most one'
           ' of them -1 for what is left.')
    _check_least(self, 'mesh', 1, 'join_seconds')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """How much is measured, and with what certainty."""

  questions: int = _field(
      300, 'Questions a split at most (0: all), drawn evenly over facts.')
  kept_questions: int = _field(
      0, 'As --eval_questions, for the splits of what is kept, retain and'
      ' retain_heldout (0: as there).')
  text_windows: int = _field(48, 'Windows of each kind of text at most.')
  batch_tokens: int = _field(512, 'Tokens in one evaluation batch.')
  calibration_tokens: int = _field(
      4096, 'Tokens of calibration text at most, in windows of 128.')
  bootstrap: int = _field(
      2000, 'Bootstrap resamples, by fact.', most=_MOST_DRAWS)
  generations: int = _field(6, 'Sample questions answered freely.')
  cad_pairs: int = _field(32, 'Pairs for CAD and AS-NC (0: skip).')
  lens_questions: int = _field(
      320, 'Retain questions that readability\'s lens is fitted on (0: skip).')

  def __post_init__(self):
    _check_fields(self, 'eval')
    _check_least(self, 'eval', 0, 'questions', 'kept_questions',
                 'text_windows', 'generations', 'cad_pairs',
                 'lens_questions')
    _check_least(self, 'eval', 1, 'batch_tokens', 'calibration_tokens')
    _check(self.cad_pairs != 1, '--eval_cad_pairs=1 cannot be resampled;'
           ' wanted 2 or more, or 0 to skip CAD and AS-NC.')
    _check(self.bootstrap >= 100, f'--eval_bootstrap={self.bootstrap} is too'
           ' few; wanted at least 100 resamples.')
