"""The objective of unlearning, one token at a time, in float64."""

import math

import numpy as np


def log_softmax(row):
  top = max(row)
  norm = top + math.log(sum(math.exp(v - top) for v in row))
  return [v - norm for v in row]


def sequence_nll(logits, tokens, predicted):
  """-log p of what follows each position of `predicted`, summed."""
  return -sum(log_softmax(logits[t])[tokens[t + 1]] for t in predicted)


def kl(reference, logits):
  """KL of one row of logits to another, in nats."""
  p, q = log_softmax(reference), log_softmax(logits)
  return sum(math.exp(a) * (a - b) for a, b in zip(p, q))


def choice_kl(logits, right, wrong):
  """KL(uniform over `wrong` || softmax over `wrong` and `right`), nats."""
  log_q = dict(zip([right, *wrong], log_softmax(
      [logits[t] for t in [right, *wrong]])))
  return sum(-math.log(len(wrong)) - log_q[t] for t in wrong) / len(wrong)


def mean_kl(references, rows):
  """Mean over rows."""
  return sum(kl(a, b) for a, b in zip(references, rows)) / len(rows)


def npo(nll, nll_base, beta):
  """(2 / beta) log(1 + (p / p_0)^beta) of a sequence (Zhang et al. 2024)."""
  return 2 / beta * math.log(1 + math.exp(nll_base - nll) ** beta)


def simnpo(nll, length, beta, margin=0.0):
  """-(2 / beta) log sigmoid(-(beta / length) log p - margin)."""
  return 2 / beta * math.log(1 + math.exp(-(beta / length) * nll + margin))


def satimp(nll, saturation, importance):
  """-p^saturation (1 - p)^importance (-log p) of a token (Yang et al. 2025).

  With importance 0 it is WGA (Wang et al. 2025).
  """
  p = math.exp(-nll)
  return -p**saturation * (1 - p)**importance * nll


def undial(reference, logits, label, strength):
  """Cross-entropy of a row to another, the label's logit lowered."""
  lowered = [x - strength * (i == label) for i, x in enumerate(reference)]
  target, log_q = log_softmax(lowered), log_softmax(logits)
  return -sum(math.exp(a) * b for a, b in zip(target, log_q))


def unlikelihood(nll):
  """-log(1 - p)."""
  return -math.log(1 - math.exp(-nll))


def squared_gradients(gradient, examples):
  """Mean over examples of the squared gradient of each."""
  total = None
  for example in examples:
    square = np.square(np.asarray(gradient(example), np.float64))
    total = square if total is None else total + square
  return total / len(examples)


def guess_nll(logits, tokens, relation):
  """-log p of each answer after its own and after the others' prompts."""
  own, guess = [], []
  for j, token in enumerate(tokens):
    others = [-log_softmax(logits[i])[token] for i in range(len(tokens))
              if relation[i] == relation[j] and tokens[i] != token]
    own.append(-log_softmax(logits[j])[token])
    guess.append(sum(others) / len(others) if others else None)
  return own, guess


def excess(nll, nll_prior, slope):
  """Half the square of log p above its prior; linear beyond `slope`."""
  over = max(0.0, nll_prior - nll)
  return over**2 / 2 if over <= slope else slope * over - slope**2 / 2
