"""Configuration of the evaluation."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=fields.EVALUATION_MODES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Sizes of the evaluation sets and number of resamples."""

  questions: int = _field(
      300, 'Largest number of questions in a split, drawn evenly over facts; 0:'
      ' all. In --mode=attribute the splits are the near and far phrasings that'
      ' test the circuit\'s stability.', modes=fields.RUN_MODES)
  kept_questions: int = _field(
      0, 'Like --eval_questions, for the splits retain and retain_heldout. 0:'
      ' use --eval_questions.')
  text_windows: int = _field(
      48, 'Largest number of windows of each kind of general text.')
  batch_tokens: int = _field(512, 'Tokens in an evaluation batch.')
  calibration_tokens: int = _field(
      4096, 'Largest number of tokens of calibration text, in windows of 128'
      ' tokens.')
  bootstrap: int = _field(
      2000, 'Bootstrap resamples of the facts, at least 100.',
      modes=fields.RUN_MODES, maximum=fields.MAX_DRAWS)
  generations: int = _field(
      6, 'Questions whose free-form answers the report shows.')
  recall_questions: int = _field(
      180, 'Forget questions that each model answers in its own words, plainly'
      ' and after three solved examples, drawn evenly over facts; 0: skip'
      ' both.')
  cad_pairs: int = _field(
      32, 'Largest number of prompt pairs for CAD and AS-NC; 0: skip both.')
  lens_questions: int = _field(
      320, 'Retain questions to fit the readability lens on; 0: skip it.')
  hidden_questions: int = _field(
      240, 'Largest number of forget questions for the hidden share, which'
      ' judges structural erasure; 0: skip it. A quarter as many retain'
      ' questions test the measure.')
  attacks: tuple[str, ...] = _field(
      ('lora',), 'Attacks on the unlearned model, separated by commas; empty'
      ' skips them. relearn: teach half of the forget facts again, all weights,'
      ' and ask the others; lora: the same with low-rank adapters; benign:'
      ' fine-tune all weights on unrelated text; few_shot: train nothing, and'
      ' put up to 5 solved questions about that half before each prompt.')
  attack_steps: int = _field(
      10, 'Steps of each attack. The model is measured after 0, 10, 20, 50 and'
      ' 100 steps, and at the end.', maximum=10_000)
  attack_questions: int = _field(
      120, 'Largest number of questions that attacks ask about forgotten facts,'
      ' and about facts never known, drawn evenly over facts; 0: all.')
  attack_rates: tuple[str, ...] = _field(
      ('3e-5',), 'Learning rates of the attacks, separated by commas. Each kind'
      ' of attack runs with each; lora at ten times the rate.')
  attack_shares: tuple[str, ...] = _field(
      ('0.5',), 'Shares of the forget facts that relearn and lora teach, at'
      ' most 0.5, separated by commas. Each runs with each; the other half is'
      ' asked at every share.')

  def __post_init__(self):
    fields.check_fields(self, 'eval')
    fields.check_minimum(
        self, 'eval', 0, 'questions', 'kept_questions', 'text_windows',
        'generations', 'recall_questions', 'cad_pairs', 'lens_questions',
        'hidden_questions', 'attack_questions')
    fields.check_minimum(
        self, 'eval', 1, 'batch_tokens', 'calibration_tokens', 'attack_steps')
    fields.check(
        bool(self.attack_rates), '--eval_attack_rates= is empty; wanted at'
        ' least one learning rate. To skip attacks give --eval_attacks=.')
    fields.check(
        bool(self.attack_shares), '--eval_attack_shares= is empty; wanted at'
        ' least one share, such as 0.5. To skip attacks give --eval_attacks=.')
    fields.check(
        self.cad_pairs != 1, '--eval_cad_pairs=1 cannot be resampled; wanted at'
        ' least 2, or 0 to skip CAD and AS-NC.')
    fields.check(
        self.bootstrap >= 100, f'--eval_bootstrap={self.bootstrap} is too few;'
        ' wanted at least 100 resamples.')
