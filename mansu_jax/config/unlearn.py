"""Objective, batches and optimizer of the unlearn loop."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
  """Objective, batches and optimizer of the unlearn loop."""

  loss: str = _field(
      'npo', 'Forget term. npo: negative preference against the base; simnpo:'
      ' without the base, by the mean log-probability; bounded_nll: -log(1 -'
      ' p(answer)), which ends at 0; group_marginal: say what the base says on'
      ' average over the facts that are each other\'s wrong choices, in the'
      ' same phrasing; answer_swap: what it says of one of them; ascent: plain'
      ' gradient ascent (GradDiff).',
      ('npo', 'simnpo', 'bounded_nll', 'group_marginal', 'answer_swap', 'ascent'))
  npo_beta: float = _field(0.1, 'Inverse temperature of NPO and SimNPO.')
  forget_weight: float = _field(1.0, 'Weight of the forget term.')
  choice_kl_weight: float = _field(
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
  forget_batch: int = _field(12, 'Forget sequences a step.', most=fields.MOST_ROWS)
  retain_batch: int = _field(
      12, 'Retain fact sequences a step.', most=fields.MOST_ROWS)
  nearest_share: float = _field(
      0.25, 'Share of each retain batch that is drawn from the sequences whose'
      ' base states are nearest to the forget set\'s, a tenth of the retain set'
      ' at most; in [0, 1).')
  text_batch: int = _field(
      2, 'General text windows a step.', most=fields.MOST_ROWS)
  swapped_batch: int = _field(
      0, 'Swapped-subject prompts a step: the retain set\'s phrasings asked of the'
      ' forget set\'s subjects (the words that all prompts of a fact share);'
      ' what the base says of them otherwise is kept.', most=fields.MOST_ROWS)
  swapped_weight: float = _field(
      1.0, 'Weight of their KL, within the retain KL.')
  swapped_pool: int = _field(
      1500, 'Swapped-subject prompts whose reference states are kept.')
  forget_pool: int = _field(
      480, 'Forget sequences that are used (0: all), evenly over facts.')
  retain_pool: int = _field(
      480, 'Retain sequences whose reference states are kept, evenly over'
      ' facts; with --unlearn_nearest_share up to as many more, of the facts that'
      ' are near.')
  text_pool: int = _field(96, 'Text windows whose reference states are kept.')
  max_retain_kl: float = _field(
      3.0, 'Stop when the retain KL exceeds this (nats a token).')
  save_every: int = _field(
      10, 'Steps from one save of the loop\'s state to the next, in the'
      ' background, so that a run that is stopped goes on from there (0: only'
      ' when told to stop); it changes no figure.')

  def __post_init__(self):
    fields.check_fields(self, 'unlearn')
    fields.check_least(self, 'unlearn', 1, 'steps', 'forget_batch', 'retain_batch',
                 'retain_pool', 'text_pool', 'swapped_pool', 'fp_steps')
    fields.check_least(self, 'unlearn', 0, 'forget_pool', 'text_batch',
                 'forget_weight', 'choice_kl_weight', 'kl_weight',
                 'nll_weight', 'text_weight', 'prompt_weight', 'swapped_batch',
                 'swapped_weight', 'save_every')
    for name in ('learning_rate', 'npo_beta', 'max_retain_kl'):
      _check(getattr(self, name) > 0, f'--unlearn_{name}='
             f'{getattr(self, name)} must be positive.')
    _check(0 <= self.nearest_share < 1, f'--unlearn_nearest_share={self.nearest_share}'
           ' is outside [0, 1); wanted a share that leaves room for the rest.')
    _check(not self.quantizer_in_loop or self.fp_steps < max(2, self.steps),
           f'--unlearn_fp_steps={self.fp_steps} of --unlearn_steps={self.steps}'
           ' leaves no step for the quantizer; wanted fewer, or'
           ' --nounlearn_quantizer_in_loop.')
    _check(0 <= self.warmup < 1, f'--unlearn_warmup={self.warmup} is outside'
           ' [0, 1).')
