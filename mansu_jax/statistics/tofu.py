"""The measures of the TOFU benchmark, from the losses of its answers.

TOFU asks about authors who do not exist. A model that was taught all of them
unlearns some; the *gold* model was never taught these. Losses are the mean over
an answer's tokens, in nats.

Its published code has two truth ratios: forget quality takes the geometric mean
of the wrong answers' probabilities, every other figure the arithmetic mean. So
do we.

References:
  Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024 (arXiv
  2401.06121)
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
  """A model's answers to N questions of one split.

  Attributes:
    loss: [N] of the right answers.
    paraphrased_loss: [N] of the right answers in other words.
    wrong_loss: [N, K] of the wrong answers.
    rouge: [N] ROUGE-L recall of the answers that the model writes.

  Raises:
    ValueError: the arrays are of different or no questions, or not finite.
  """

  loss: np.ndarray
  paraphrased_loss: np.ndarray
  wrong_loss: np.ndarray
  rouge: np.ndarray

  def __post_init__(self):
    shapes = {field.name: np.shape(getattr(self, field.name))
              for field in dataclasses.fields(self)}
    *rows, wrong = shapes['wrong_loss'] or (0,)
    if not (len(rows) == 1 and rows[0] and wrong) or {
        shape for name, shape in shapes.items() if name != 'wrong_loss'
    } != {tuple(rows)}:
      raise ValueError(
          f'The answers have shapes {shapes}; wanted [N], and [N, K] of the'
          ' wrong ones, with N and K above 0.')
    for name in shapes:
      if not np.isfinite(getattr(self, name)).all():
        raise ValueError(
            f'{name} has a value that is not finite; wanted a number for each'
            ' answer.')

  @property
  def probability(self) -> np.ndarray:
    """[N] of the right answers."""
    return np.exp(-self.loss)

  @property
  def probability_of_choice(self) -> np.ndarray:
    """[N] of the right answers among all answers."""
    return self.probability / (
        self.probability + np.exp(-self.wrong_loss).sum(-1))

  @property
  def truth_ratio(self) -> np.ndarray:
    """[N] mean probability of the wrong answers / that of the paraphrase."""
    return np.exp(-self.wrong_loss).mean(-1) * np.exp(self.paraphrased_loss)

  @property
  def geometric_truth_ratio(self) -> np.ndarray:
    """[N] the same with the geometric mean of the wrong answers."""
    return np.exp(self.paraphrased_loss - self.wrong_loss.mean(-1))

  @property
  def forgotten_truth_ratio(self) -> float:
    """1: the paraphrase and the wrong answers are equally likely."""
    with np.errstate(divide='ignore'):  # A ratio of 0 counts 0.
      return float(np.exp(-np.abs(np.log(self.truth_ratio))).mean())

  @property
  def retained_truth_ratio(self) -> float:
    """0: the wrong answers are as likely as the paraphrase, or likelier."""
    return float(np.maximum(0, 1 - self.truth_ratio).mean())


@dataclasses.dataclass(frozen=True)
class ForgetQuality:
  """How far a model's answers are from the gold model's.

  Attributes:
    statistic: Kolmogorov-Smirnov distance of their truth ratios.
    p_value: probability of at least this distance between equal models; a model
      has forgotten when it is above 0.05.
  """

  statistic: float
  p_value: float


def forget_quality(model: Answers, gold: Answers) -> ForgetQuality:
  """Compares the forget split of a model with that of the gold model."""
  found = stats.ks_2samp(
      model.geometric_truth_ratio, gold.geometric_truth_ratio)
  return ForgetQuality(float(found.statistic), float(found.pvalue))


def model_utility(
    *, retain: Answers, real_authors: Answers, world_facts: Answers) -> float:
  """Harmonic mean of nine figures, three of each split: 0 to 1.

  They are the probability of the right answer (of real authors and world facts
  among all answers), ROUGE-L recall, and `retained_truth_ratio`.
  """
  figures = [retain.probability.mean()]
  figures += [split.probability_of_choice.mean()
              for split in (real_authors, world_facts)]
  for split in (retain, real_authors, world_facts):
    figures += [split.rouge.mean(), split.retained_truth_ratio]
  return float(stats.hmean(figures))
