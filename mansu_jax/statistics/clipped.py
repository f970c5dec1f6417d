"""Accuracy above ignorance, clipped at 0 form by form, noise not counted."""

from __future__ import annotations

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


class Share(NamedTuple):
  """The known share as a function of means of the columns `table`."""

  # [n, 2 + 3 F]: what guesses leave open for the two models, then a form's mark
  # and the leads of the two models.
  table: np.ndarray
  sigma: np.ndarray  # [F] of the noise that must not count as knowledge.
  counted: np.ndarray  # [F] 1 if the base leads.
  lead: float  # Lead a question that is all of the base's knowledge.

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
    leads = columns[:, :2] - columns[:, 2:]
    base, unlearned = leads[:, [0]], leads[:, [1]]
    marks = np.eye(number.max() + 1)[number]
    room = 1 - columns[:, 2:]
    table = np.concatenate(
        [room, marks, marks * unlearned, marks * base], 1)
    of_base = (marks * base).mean(0)
    counted = (of_base > 0).astype(np.float64)
    sigma = np.minimum(
        standard_errors(unlearned[:, 0], columns[:, 1], index, number),
        guessing_errors(columns, index, number))
    lead = _full_lead(room.mean(0), of_base @ counted)
    return cls(table, sigma, counted, float(lead))

  def __call__(self, means: np.ndarray) -> np.ndarray:
    """[..., 2 + 3 F] means -> [...] known share; nan without a lead or room."""
    size, left, base = np.split(means[..., 2:], 3, -1)
    mean = left / np.where(size > 0, size, 1.0)
    known = (size * positive_part(mean, self.sigma)).sum(-1)
    lead = _full_lead(means[..., :2], base @ self.counted)
    return np.where(lead > 0, known / np.where(lead > 0, lead, 1.0), np.nan)


def _full_lead(room: np.ndarray, lead: np.ndarray | float) -> np.ndarray:
  """Lead of the unlearned model if it knew what the base knows.

  Args:
    room: [..., 2] 1 - ignorance of the base and of the unlearned model.
    lead: [...] of the base.
  """
  base, unlearned = room[..., 0], room[..., 1]
  return lead * unlearned / np.where(base > 0, base, np.inf)


def error_of_these_facts(
    columns: np.ndarray, index: np.ndarray, number: np.ndarray) -> float:
  """Standard error of the known share of these very facts.

  It leaves out that other facts might be known more or less. What remains is
  the luck of answers. The variance of a fact's total has three parts:

  * how its forms differ. A fact with one form gives its deviation from the
    mean of all facts instead;
  * guesses that agree in all forms. They are right for the variance of a guess
    at each fact, and answers cannot tell them from knowledge;
  * one more fact with a form that differs, so that it is never 0.

  Args:
    columns: as for `Share.of`.
    index: as for `Share.of`.
    number: as for `Share.of`.

  Returns:
    The error, relative to the base's lead.
  """
  facts, forms = index.max() + 1, number.max() + 1
  cell = index * forms + number
  table = lambda x: np.bincount(cell, x, facts * forms).reshape(facts, forms)
  asked = table(np.ones(len(cell)))  # [facts, forms]
  total = table(columns[:, 1] - columns[:, 3])
  size, used = asked.sum(1), (asked > 0).sum(1)
  mean = np.where(used > 1, total.sum(1) / used, total.sum() / used.sum())
  differ = np.where(asked > 0, (total - mean[:, None])**2, 0.0).sum(1)
  within = np.sum(differ * used / np.maximum(used - 1, 1))
  ignorance = table(columns[:, 3]).sum(1) / size
  lucky = np.sum(size**2 * ignorance * (1 - ignorance))
  lead = len(columns) * Share.of(columns, index, number).lead
  return math.sqrt(within + lucky + asked.max()**2) / lead
