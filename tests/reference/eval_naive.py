"""Scores one sequence a choice, token by token, in float64 NumPy."""

import numpy as np


def choice_logprob(hidden_of, unembedding, prompt, choice):
  """Summed log-probability of a choice after a prompt.

  Args:
    hidden_of: token ids -> hidden states [T, D] under causal attention.
    unembedding: [V, D].
    prompt: token ids.
    choice: token ids.
  """
  total = 0.0
  for i in range(len(choice)):
    hidden = np.asarray(hidden_of(prompt + choice[:i]), np.float64)[-1]
    logits = np.asarray(unembedding, np.float64) @ hidden
    top = logits.max()
    norm = top + np.log(sum(np.exp(v - top) for v in logits))
    total += logits[choice[i]] - norm
  return total
