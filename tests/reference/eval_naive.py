"""Loop-written NumPy: a toy model's forward pass and naive scoring.

One sequence a choice, one token at a time, in float64.
"""

import math


def hidden_states(params, ids):
  """The model of tests/eval/toy_model.py on one sequence, row by row."""
  states = [
      [float(e) + float(p) for e, p in zip(params['embed'][t], row)]
      for t, row in zip(ids, params['place'])]
  for _ in range(2):
    queries = [_times(x, params['query']) for x in states]
    keys = [_times(x, params['key']) for x in states]
    values = [_times(x, params['value']) for x in states]
    new = []
    for t, x in enumerate(states):
      scores = [_dot(queries[t], keys[s]) / 4 for s in range(t + 1)]
      top = max(scores)
      weights = [math.exp(s - top) for s in scores]
      total = sum(weights)
      mixed = list(x)
      for s in range(t + 1):
        for d in range(len(x)):
          mixed[d] += weights[s] / total * values[s][d]
      up = _times(mixed, params['up'])
      mixed = [a + math.tanh(b) for a, b in zip(mixed, up)]
      size = math.sqrt(sum(a * a for a in mixed) / len(mixed))
      new.append([a / size for a in mixed])
    states = new
  return states


def next_logprob(params, ids, token):
  """log p(token | ids)."""
  state = hidden_states(params, ids)[-1]
  logits = [_dot(state, row) for row in params['embed']]
  top = max(logits)
  norm = top + math.log(sum(math.exp(v - top) for v in logits))
  return logits[token] - norm


def choice_logprob(params, prompt, choice):
  """Summed log-probability of a choice after a prompt."""
  return sum(
      next_logprob(params, prompt + choice[:i], choice[i])
      for i in range(len(choice)))


def _dot(a, b):
  return sum(float(x) * float(y) for x, y in zip(a, b))


def _times(x, matrix):
  return [
      sum(x[i] * float(matrix[i][j]) for i in range(len(x)))
      for j in range(len(matrix[0]))]
