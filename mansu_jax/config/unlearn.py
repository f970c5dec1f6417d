"""Configuration of the unlearning loop."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields
from mansu_jax.config import methods

_field = functools.partial(fields.field, modes=fields.TRAINING_MODES)
_rows = functools.partial(_field, maximum=fields.MAX_ROWS)

MATRICES = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
# A learning rate is a share of the weights' norm, whatever the forget set, so
# a small set takes as many steps to move them far.
_LEAST_STEPS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
  """Objective, batches and optimizer of the unlearning loop."""

  loss: str = _field(
      'prior', f'Forget loss. {methods.help_of_losses()}', (*methods.LOSSES,))
  guess_weight: float = _field(
      1.0, 'Weight, within the loss prior, of the same loss for the first token'
      ' of the answer, with another prior: the mean that the trained model'
      ' itself gives it after the other prompts of the relation in the batch.'
      ' No effect with other losses.')
  guess_margin: float = _field(
      1.0, 'Nats below its mean after these prompts to which an answer falls.'
      ' In phrasings that are not trained it falls less far.')
  quantized_guess_margin: float = _field(
      5.0, 'The same at the steps of a quantized model, in whose other'
      ' phrasings an answer falls even less far. Has no effect without'
      ' --unlearn_quantizer_in_loop.')
  npo_beta: float = _field(0.1, 'Inverse temperature of NPO, SimNPO and DPO.')
  quail_margin: float = _field(
      0.5, 'Logits by which QUAIL lets each logit leave the base\'s.')
  rmu_layer: int | None = _field(
      None, 'Layer after which RMU reads the model\'s states at forget answers,'
      ' counted from 0. Layers above it get no gradient from RMU. auto: a'
      ' quarter of the way through the layers that are trained.')
  rmu_coefficient: float = _field(
      6.5, 'Length of the random vector to which RMU steers these states.')
  satimp_importance: float = _field(
      1.0, 'Power of 1 - p(token) in the weight of a token, with SatImp.')
  satimp_saturation: float = _field(
      5.0, 'Power of p(token) in the weight of a token, with SatImp.')
  task_vector_scale: float = _field(
      1.0, 'Multiple of the task vector that is subtracted from the weights.')
  closed_form_layers: tuple[str, ...] = _field(
      (), 'Layers whose down projections --method=lunar or group_mean edits, in'
      ' ascending order, counted from 0 and separated by commas. Each one is'
      ' edited in the model whose lower ones are. Empty: the middle layer.')
  closed_form_scale: float = _field(
      1.0, 'Multiple of the change that the closed form wants at forget'
      ' tokens.')
  closed_form_retain_weight: float = _field(
      0.1, 'Weight, in the closed form, of the mean square by which the'
      ' projection\'s output changes at retained tokens. That at forget tokens,'
      ' less the change that is wanted, has weight 1.')
  closed_form_ridge: float = _field(
      0.01, 'Weight of the edit\'s own square in the closed form, as a share of'
      ' the mean square of an activation.')
  undial_strength: float = _field(
      10.0, 'How much UNDIAL lowers the base\'s logit of an answer token.')
  wga_power: float = _field(
      1.0, 'Power of p(token) in the weight of a token, with WGA. 0: gradient'
      ' ascent.')
  forget_weight: float = _field(5.0, 'Weight of the forget loss.')
  choice_kl_weight: float = _field(
      0.0, 'Weight, within the forget loss, of a KL over the first tokens of'
      ' the choices of the training questions. Its target makes the wrong'
      ' choices equally likely and the right one impossible.')
  marginal_weight: float = _field(
      0.5, 'Weight, within the loss prior, of a KL at the end of the prompt to'
      ' what the base predicts at the ends of prompts of other facts. So the'
      ' model still answers with something of the right kind. No effect with'
      ' other losses.')
  routed_weight: float = _field(
      0.0, 'Weight, within the loss prior, of the same loss for the same model'
      ' with the base\'s mover layer, which brings the answer to the last'
      ' token, and which attends where the base does. Otherwise training can'
      ' make that layer look away from an answer that stays where it was. It'
      ' costs facts that are kept. No effect with other losses.')
  kl_weight: float = _field(
      10.0, 'Weight of the retain KL, KL(base || model) on the retain data.')
  kl_square_weight: float = _field(
      3.0, 'Weight, within the retain KL, of the square of each token\'s KL. So'
      ' what is damaged most counts most, and one relation does not pay for'
      ' all.')
  nll_weight: float = _field(
      1.0, 'Weight of the negative log-likelihood of the retain answers.')
  text_weight: float = _field(
      1.0, 'Weight of the KL on general text, within the retain KL.')
  orthogonal: bool = _field(
      False, 'Follow, of the forget gradient, only what is orthogonal to the'
      ' gradient of the other terms, in each leaf (one matrix of all layers),'
      ' and that gradient itself (GU). Where the optimizer keeps directions, as'
      ' lars does and adam does not, forgetting then changes the other terms to'
      ' second order only. It takes a second gradient.')
  sharpness: float = _field(
      0.0, 'Length, in the norm of all trained weights, of a step uphill, at'
      ' whose end the gradient is taken (SAM). So training looks for weights'
      ' around which the loss is low as well. Doubles the cost of a step. 0:'
      ' the gradient at the weights.')
  prompt_weight: float = _field(
      0.0, 'Weight of the KL on the tokens of the forget prompts themselves,'
      ' within the retain KL.')
  quantizer_in_loop: bool = _field(
      True, 'Alternate between gradients of the full-precision model and of'
      ' each quantized model.')
  quantized_reference: bool = _field(
      True, 'At the steps of a quantized model, retain what the base says about'
      ' facts when it is quantized as well. Otherwise, and always on general'
      ' text, retain what it says in full precision, which also repairs some of'
      ' what rounding breaks. Has no effect without'
      ' --unlearn_quantizer_in_loop.')
  fp_steps: int = _field(
      1, 'Full-precision steps before each round of quantized steps. Has no'
      ' effect without --unlearn_quantizer_in_loop.')
  steps: int = _field(
      0, 'Most optimizer steps. 0: enough to train once on each forget sequence'
      f' of the data, and at least {_LEAST_STEPS}.')
  probe_every: int = _field(
      5, 'Steps between looks at the probe: the share of up to 64 train'
      ' questions of the forget set that the model answers right in full'
      ' precision, by first tokens. 0: no probe.')
  patience: int = _field(
      0, 'Once the probe has fallen, and then not by 0.02 more for so many'
      ' steps, the learning rate decays over --unlearn_cooldown steps and'
      ' training ends. 0: it decays over --unlearn_steps.')
  cooldown: int = _field(
      25, 'Steps in which the learning rate decays, with --unlearn_patience.')
  optimizer: str = _field(
      'lars', 'Optimizer. lars: momentum 0.9, each gradient scaled to the norm'
      ' of its leaf (one matrix of all layers), so that large gradients move'
      ' most.', ('adam', 'lars'))
  learning_rate: float = _field(
      2e-3, 'Peak learning rate; it decays as a cosine. With lars: the share of'
      ' a leaf\'s norm that one gradient may move; momentum raises it up to'
      ' tenfold.')
  warmup: float = _field(
      0.05, 'Share of the steps with a rising learning rate, in [0, 1).')
  weights_dtype: str = _field(
      'float32', 'Type in which --circuit_selection=all stores the trained'
      ' weights between steps. bfloat16: theta_0 is the base rounded to'
      ' bfloat16, and each step is computed in float32 and its sum rounded to'
      ' the nearest bfloat16, so that small steps are lost.',
      ('float32', 'bfloat16'))
  matrices: tuple[str, ...] = _field(
      (), 'With --circuit_selection=all: the matrices of the layers that are'
      f' trained, of {", ".join(MATRICES)}, separated by commas. Empty: all'
      ' weights of the layers, and, unless --unlearn_first_layer or'
      ' --unlearn_last_layer are given, embeddings and the final norm.')
  first_layer: int = _field(
      0, 'With --circuit_selection=all: first layer that is trained, counted'
      ' from 0.')
  last_layer: int = _field(
      -1, 'With --circuit_selection=all: last layer that is trained. Negative'
      ' numbers count from the last layer, -1.')
  saliency: float = _field(
      0.0, 'With --circuit_selection=all: share of the matrices, each of one'
      ' layer, that are trained: those in which the forget loss has the largest'
      ' gradient in the base (SURE). 0: all weights.')
  lora_rank: int = _field(
      0, 'Rank of LoRA adapters, trained with --circuit_selection=all in place'
      ' of the weights, on every matrix of the layers, and merged into the'
      ' weights at the end. 0: train the weights themselves.', maximum=10**4)
  lora_alpha: float = _field(
      16.0, 'LoRA adds alpha / rank times the product of its two factors.')
  stop_forget: float = _field(
      0.0, 'Stop training once at most this share, in [0, 1), of up to 64 train'
      ' questions of the forget set is answered correctly in full precision, by'
      ' first tokens. 0: train all steps.')
  forget_batch: int = _rows(16, 'Forget sequences in a step.')
  retain_batch: int = _rows(18, 'Retain sequences in a step.')
  nearest_share: float = _field(
      0.5, 'Share of each retain batch, in [0, 1), that is drawn from the'
      ' retain sequences nearest to the forget set, by the base\'s hidden'
      ' states. At most a tenth of the retain set counts as nearest.')
  text_batch: int = _rows(1, 'Windows of general text in a step.')
  swapped_batch: int = _rows(
      40, 'Swapped-subject prompts in a step: phrasings of the retain set, and'
      ' open ones, asked about subjects of the forget set, where a subject is'
      ' the words that all prompts of a fact share. Training preserves the'
      ' base\'s answers to them. 0, or facts with one phrasing each: none.')
  swapped_open_share: float = _field(
      0.5, 'Largest share of --unlearn_swapped_pool, in [0, 1], in open'
      ' phrasings: English ones that fit any subject, as in "Where is X? It is'
      ' in". They preserve what no retain fact asks about.')
  swapped_continuation: int = _rows(
      12, 'Tokens with which the base continues open prompts about forgotten'
      ' subjects. Training preserves what the base says there, too, but for'
      ' forgotten answers. So it keeps more of what the base knows of these'
      ' subjects. 0: none.')
  swapped_other_share: float = _field(
      1.0, 'Size, as a share of --unlearn_swapped_pool, of a pool that is added'
      ' to it: prompts in phrasings of the forget set, and open ones, about'
      ' subjects and answers of the retain set, after which the base is likely'
      ' to say a forgotten answer. They preserve facts that are like the'
      ' forgotten ones.')
  swapped_weight: float = _field(
      1.0, 'Weight of the KL on swapped-subject prompts, within the retain KL.')
  swapped_pool: int = _field(
      1200, 'Largest number of swapped-subject prompts to train on.')
  forget_leaks: bool = _field(
      True, 'Forget also after swapped-subject prompts that the base completes'
      ' with a forgotten answer of their subject. So facts that are given in'
      ' few phrasings are forgotten in others, too.')
  forget_pool: int = _field(
      0, 'Largest number of forget sequences to train on, drawn evenly over'
      ' facts; 0: all.')
  retain_pool: int = _field(
      1500, 'Largest number of retain sequences to train on, drawn evenly over'
      ' facts. --unlearn_nearest_share adds at most as many again, from the'
      ' nearest facts.')
  text_pool: int = _field(
      96, 'Largest number of windows of general text to train on.')
  max_retain_kl: float = _field(
      3.0, 'Stop the run with an error when the mean retain KL of the last ten'
      ' steps exceeds this, in nats per token.')
  save_every: int = _field(
      10, 'Steps between checkpoints of the loop, written in the background. 0:'
      ' save only when a signal stops the run. Does not affect results.')

  @property
  def routed(self) -> bool:
    """Whether a forget term reads the model with the base's mover layer."""
    return self.loss == 'prior' and self.routed_weight > 0

  @property
  def trains_a_part(self) -> bool:
    """Whether --circuit_selection=all trains some matrices or layers only."""
    return bool(self.matrices) or (self.first_layer, self.last_layer) != (0, -1)

  def trained_layers(self, num_layers: int) -> tuple[int, int]:
    """First layer that --circuit_selection=all trains, and one past the last.

    Raises:
      ValueError: the model lacks them, or a matrix has another name.
    """
    for name in self.matrices:
      fields.check(name in MATRICES, f'--unlearn_matrices={name} is no matrix'
                   f' of a layer; wanted some of {", ".join(MATRICES)}.')
    end = self.last_layer % num_layers + 1
    fields.check(
        0 <= self.first_layer < end and -num_layers <= self.last_layer
        < num_layers, f'--unlearn_first_layer={self.first_layer} and'
        f' --unlearn_last_layer={self.last_layer} hold no layers of this model;'
        f' wanted layers of 0 to {num_layers - 1} in ascending order.')
    return self.first_layer, end

  def edited_layers(self, num_layers: int) -> tuple[int, ...]:
    """The layers that a closed form edits.

    Raises:
      ValueError: the model lacks one.
    """
    layers = tuple(map(int, self.closed_form_layers)) or (num_layers // 2,)
    fields.check(
        layers[-1] < num_layers, '--unlearn_closed_form_layers='
        f'{",".join(self.closed_form_layers)}: the model has no layer'
        f' {layers[-1]}; wanted layers of 0 to {num_layers - 1}.')
    return layers

  def for_forget_set(self, sequences: int) -> UnlearnConfig:
    """The same, with as many steps as so many forget sequences take."""
    if self.steps:
      return self
    pool = min(sequences, self.forget_pool or sequences)
    return dataclasses.replace(
        self, steps=max(_LEAST_STEPS, -(-pool // self.forget_batch)))

  def for_layers(self, first: int, end: int, num_layers: int) -> UnlearnConfig:
    """The same, with the layer that the loss reads.

    Args:
      first: first layer that is trained.
      end: first layer behind these.
      num_layers: layers of the model.

    Raises:
      ValueError: it reads a layer that training does not reach.
    """
    if self.loss != 'rmu':
      return self
    layer = self.rmu_layer
    if layer is None:
      layer = first + (end - first) // 4
    fields.check(
        first <= layer < num_layers, f'--unlearn_rmu_layer={layer} is outside'
        f' {first} to {num_layers - 1}, the layers that training changes or'
        ' that follow these. Give one of them, or auto.')
    return dataclasses.replace(self, rmu_layer=layer)

  def __post_init__(self):
    fields.check_fields(self, 'unlearn')
    fields.check_minimum(
        self, 'unlearn', 1, 'forget_batch', 'retain_batch',
        'retain_pool', 'text_pool', 'swapped_pool', 'fp_steps')
    fields.check_minimum(
        self, 'unlearn', 0, 'steps', 'forget_pool', 'text_batch',
        'forget_weight', 'choice_kl_weight', 'guess_weight', 'guess_margin',
        'quantized_guess_margin', 'marginal_weight', 'routed_weight',
        'kl_weight', 'kl_square_weight', 'nll_weight', 'text_weight',
        'prompt_weight', 'swapped_batch', 'swapped_continuation',
        'swapped_weight', 'save_every', 'satimp_importance',
        'satimp_saturation', 'undial_strength', 'wga_power', 'rmu_coefficient',
        'task_vector_scale', 'quail_margin', 'sharpness',
        'lora_rank', 'probe_every', 'patience', 'cooldown',
        'closed_form_retain_weight')
    fields.check(
        not self.patience or self.probe_every > 0,
        f'--unlearn_patience={self.patience} waits for the probe, which'
        ' --unlearn_probe_every=0 turns off. Leave one of them out.')
    for name in ('learning_rate', 'npo_beta', 'max_retain_kl', 'lora_alpha',
                 'closed_form_scale', 'closed_form_ridge'):
      fields.check(getattr(self, name) > 0, f'--unlearn_{name}='
                   f'{getattr(self, name)} must be positive.')
    fields.check(
        0 <= self.nearest_share < 1, f'--unlearn_nearest_share='
        f'{self.nearest_share} is outside [0, 1); wanted a share that leaves'
        ' room for other sequences.')
    fields.check(
        0 <= self.saliency < 1, f'--unlearn_saliency={self.saliency} is outside'
        ' [0, 1); wanted a share of the matrices, or 0 for all weights.')
    layers = self.closed_form_layers
    numbers = [int(x) for x in layers if x.isdecimal()]
    fields.check(
        len(numbers) == len(layers) and numbers == sorted(set(numbers)),
        f'--unlearn_closed_form_layers={",".join(layers)} are no layers in'
        ' ascending order; wanted different ones, such as 7 or 6,8.')
    steps = self.steps or _LEAST_STEPS
    fields.check(
        not self.quantizer_in_loop or self.fp_steps < max(2, steps),
        f'--unlearn_fp_steps={self.fp_steps} of --unlearn_steps={steps}'
        ' leaves no step for the quantizer; wanted fewer, or'
        ' --nounlearn_quantizer_in_loop.')
    fields.check(
        0 <= self.swapped_open_share <= 1, f'--unlearn_swapped_open_share='
        f'{self.swapped_open_share} is outside [0, 1]; wanted a share of the'
        ' swapped-subject prompts.')
    fields.check(
        0 <= self.swapped_other_share <= 10, f'--unlearn_swapped_other_share='
        f'{self.swapped_other_share} is outside [0, 10]; wanted a multiple of'
        ' --unlearn_swapped_pool.')
    fields.check(
        0 <= self.stop_forget < 1, f'--unlearn_stop_forget={self.stop_forget}'
        ' is outside [0, 1); wanted a share of right answers, or 0 to train all'
        ' steps.')
    fields.check(0 <= self.warmup < 1, f'--unlearn_warmup={self.warmup} is'
                 ' outside [0, 1).')
