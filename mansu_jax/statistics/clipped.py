"""Accuracy above ignorance, clipped at 0 form by form, noise not counted."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import NamedTuple

import numpy as np


def positive_part(
    x: np.ndarray | float, sigma: np.ndarray | float) -> np.ndarray:
  """Estimate of max(0, mu) from x ~ N(mu, sigma^2); unbiased at mu = 0.

  Accuracies below ignorance must earn nothing, so they are clipped. Noise alone
  gives max(x, 0) a mean of sigma / sqrt(2 pi) at mu = 0, which would count as
  knowledge. The estimate

    max(x, 0) - sqrt(2) * sigma * phi(x / sigma),

  phi the standard normal density, has mean 0 there. Its bias is largest at
  mu = sigma and mu = -sigma, where it is -0.23 sigma; it vanishes for large mu.

  Args:
    x: [...] observations.
    sigma: [...] standard errors; 0 gives max(x, 0).
  """
  x, sigma = np.asarray(x, np.float64), np.asarray(sigma, np.float64)
  z = x / np.where(sigma > 0, sigma, 1.0)
  density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
  return np.maximum(x, 0) - math.sqrt(2) * sigma * density


def standard_errors(
    leads: np.ndarray, right: np.ndarray, index: np.ndarray,
    number: np.ndarray) -> np.ndarray:
  """Standard error of the mean lead of each form, clustered by fact.

  If all answers of a form agree, or those of each fact do in the same way, they
  show no variance. The standard error is then that of a share of as many
  independent answers as there are facts, after one more right and one more
  wrong answer.

  Args:
    leads: [n] answers less ignorance.
    right: [n] answers, 0 or 1.
    index: [n] fact of each question.
    number: [n] form of each question, 0 to F - 1.

  Returns:
    [F] standard errors, above 0.
  """
  found = []
  for form in range(number.max() + 1):
    rows = number == form
    fact = np.unique(index[rows], return_inverse=True)[1].reshape(-1)
    count, share = fact.max() + 1, right[rows].mean()
    varies = 0 < share < 1 and count > 1
    spread = lambda x, fact=fact: np.sum(np.bincount(fact, x - x.mean())**2)
    if varies and spread(right[rows]) > 1e-9:
      variance = count / (count - 1) * spread(leads[rows]) / rows.sum()**2
    else:
      smoothed = (share * count + 1) / (count + 2)
      variance = smoothed * (1 - smoothed) / count
    found.append(math.sqrt(variance))
  return np.array(found)


def guessing_errors(
    columns: np.ndarray, index: np.ndarray, number: np.ndarray) -> np.ndarray:
  """Standard error of the mean lead of each form for an ignorant model.

  Guesses at one fact agree in all its questions, at most. The measured
  ignorance has an error of its own. Where ignorance is 0, no guess is right,
  and there is no noise that could count as knowledge.

  Args:
    columns: as for `Share.of`.
    index: as for `Share.of`.
    number: as for `Share.of`.

  Returns:
    [F] standard errors.
  """
  found = []
  for form in range(number.max() + 1):
    rows = number == form
    fact = np.unique(index[rows], return_inverse=True)[1].reshape(-1)
    ignorance = columns[rows, 3]
    mean, asked = ignorance.mean(), np.bincount(fact)
    guessed = mean * (1 - mean) * np.sum(asked**2)
    measured = np.sum(np.bincount(fact, ignorance - mean)**2)
    found.append(math.sqrt(guessed + measured) / rows.sum())
  return np.array(found)


class Parts(NamedTuple):
  """Means of n questions, by form, [..., F], or [..., 2, F] for two models."""

  size: np.ndarray  # Share of the questions.
  leads: np.ndarray  # Of the base and of the unlearned model.
  room: np.ndarray  # What guesses leave open to each, 1 - ignorance.

  @property
  def weight(self) -> np.ndarray:
    """Weight of each form: its questions, and what guesses leave open."""
    return self.size * self.room.min(-2)


class Share(NamedTuple):
  """The known share as a function of means of the columns `table`.

  A form weighs as much as its questions and the lesser room of the two models,
  for both models alike: a form in which one of them guesses nearly all right
  says little.
  """

  table: np.ndarray  # [n, 5 F]: a form's mark, two leads, and two rooms.
  sigma: np.ndarray  # [F] of the noise that must not count as knowledge.
  counted: np.ndarray  # [F] 1 if the base leads.

  @classmethod
  def of(cls, columns: np.ndarray, index: np.ndarray,
         number: np.ndarray) -> Share:
    """The known share in some questions.

    Args:
      columns: [n, 4] answers of the base and of the unlearned model, and the
        ignorance of each.
      index: [n] fact of each question.
      number: [n] form of each question, 0 to F - 1.
    """
    leads, room = columns[:, :2] - columns[:, 2:], 1 - columns[:, 2:]
    marks = np.eye(number.max() + 1)[number]
    table = np.concatenate(
        [marks, *(marks * x[:, [i]] for x in (leads, room) for i in (0, 1))], 1)
    sigma = np.minimum(
        standard_errors(leads[:, 1], columns[:, 1], index, number),
        guessing_errors(columns, index, number))
    return cls(table, sigma, ((marks * leads[:, [0]]).sum(0) > 0).astype(float))

  def parts(self, means: np.ndarray) -> Parts:
    """[..., 5 F] means of `table` -> their parts."""
    size, *found = np.split(means, 5, -1)
    found = np.stack(found, -2) / np.where(size > 0, size, 1.0)[..., None, :]
    return Parts(size, found[..., :2, :], found[..., 2:, :])

  def __call__(
      self, means: np.ndarray, weight: np.ndarray | None = None,
      clip: bool = True) -> np.ndarray:
    """[..., 5 F] means -> [...] known share; nan without a lead or room.

    Args:
      means: of `table`.
      weight: [..., F] weights of the forms; None: their own.
      clip: whether leads are clipped at 0 form by form.
    """
    found = self.parts(means)
    weight = found.weight if weight is None else weight
    base, unlearned = np.moveaxis(found.leads, -2, 0)
    if clip:
      unlearned = positive_part(unlearned, self.sigma)
    # A form without room has no weight.
    room = np.where(found.room > 0, found.room, 1.0)
    known = (weight * unlearned / room[..., 1, :]).sum(-1)
    whole = (weight * base * self.counted / room[..., 0, :]).sum(-1)
    return np.where(whole > 0, known / np.where(whole > 0, whole, 1.0), np.nan)

  @property
  def slopes(self) -> np.ndarray:
    """[F] change of the known share with the mean lead of all questions."""
    found = self.parts(self.table.mean(0))
    weight, room = found.weight, np.where(found.room > 0, found.room, 1.0)
    whole = weight @ (found.leads[0] * self.counted / room[0])
    return weight / found.size / room[1] / whole  # No form is empty here.

  @property
  def lead(self) -> float:
    """Lead a question that is all of the base's knowledge."""
    return 1 / float(self.slopes @ self.table.mean(0)[:len(self.sigma)])


def difference(
    after: Share, before: Share
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
  """The gap between two known shares in the same questions.

  Both weigh the forms alike, so that a change of what is guessed is no gap.

  Args:
    after: one share.
    before: the one that is subtracted.

  Returns:
    The tables side by side, and the gap as a function of their means.
  """
  width = after.table.shape[1]

  def gap(means: np.ndarray) -> np.ndarray:
    sides = means[..., :width], means[..., width:]
    weight = np.minimum(*(share.parts(side).weight
                          for share, side in zip((after, before), sides)))
    return after(sides[0], weight) - before(sides[1], weight)

  return np.concatenate([after.table, before.table], 1), gap


def error_of_these_facts(
    columns: np.ndarray, index: np.ndarray, number: np.ndarray) -> float:
  """Standard error of the known share of these very facts.

  It leaves out that other facts might be known more or less. What remains is
  the luck of answers. The variance of a fact's total has three parts:

  * how its forms differ. A fact with one form gives its deviation from the
    mean of all facts instead;
  * guesses that agree in all forms, and the error of the measured ignorance.
    They are right for the variance of a guess at each fact, and answers cannot
    tell them from knowledge;
  * one more fact with a form that differs, so that it is never 0.

  Args:
    columns: as for `Share.of`.
    index: as for `Share.of`.
    number: as for `Share.of`.

  Returns:
    The error, relative to the base's knowledge.
  """
  facts, forms = index.max() + 1, number.max() + 1
  cell = index * forms + number
  weight = Share.of(columns, index, number).slopes[number]
  table = lambda x: np.bincount(cell, x * weight, facts * forms).reshape(
      facts, forms)
  asked = table(np.ones(len(cell)))  # [facts, forms]
  total = table(columns[:, 1] - columns[:, 3])
  size, used = asked.sum(1), (asked > 0).sum(1)
  mean = np.where(used > 1, total.sum(1) / np.maximum(used, 1),
                  total.sum() / max(used.sum(), 1))
  differ = np.where(asked > 0, (total - mean[:, None])**2, 0.0).sum(1)
  within = np.sum(differ * used / np.maximum(used - 1, 1))
  guessed = table(columns[:, 3]).sum(1)
  ignorance = guessed.sum() / size.sum()
  lucky = ignorance * (1 - ignorance) * np.sum(size**2) + np.sum(
      (guessed - size * ignorance)**2)
  return math.sqrt(within + lucky + asked.max()**2) / len(columns)
