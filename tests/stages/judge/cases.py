"""Questions of splits and the answers of both models, by hand."""

import types

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import accuracy
from mansu_jax.eval import perplexity
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import verdict

SPLITS = ('forget', 'forget_paraphrase', 'forget_far', 'forget_unseen',
           'retain', 'retain_heldout')


def text(nll, tokens):
  return perplexity.TextLoss(
      window_nll=np.array([nll]), window_tokens=np.array([tokens]))


class Case:
  """Questions of splits and the answers of both models, by precision.

  Args:
    sizes: {split: facts}, with two questions a fact.
    right: {(model, precision): {split: share of facts answered}}; the first
      facts are the right ones. Splits that are not named are all right.
  """

  def __init__(self, sizes, right=None, texts=None, *, ignorance=0.25):
    self.questions, self.slices = [], {}
    for split in SPLITS:
      start = len(self.questions)
      for fact in range(sizes.get(split, 0)):
        for form in ('t1', 'q2'):
          self.questions.append(questions_lib.Question(
              id=f'{split}{fact}/{form}', fact=f'{split}{fact}',
              relation=f'relation{fact % 2}', prompt='p', answer='a',
              choices=('a', 'b', 'c', 'd'), use='near'))
      self.slices[split] = slice(start, len(self.questions))
    self.measured = {}
    for model in evaluation.MODELS:
      for precision in ('fp', 'nf4', 'int8'):
        shares = (right or {}).get((model, precision), {})
        correct = np.concatenate([
            np.repeat(np.arange(n) < shares.get(s, 1.0) * n, 2)
            for s, n in ((s, sizes.get(s, 0)) for s in SPLITS)])
        self.measured[model, precision] = evaluation.Measured(
            scores=accuracy.Scores(
                logprob=None, answer_logprob=None, correct=correct,
                correct_norm=~correct, margin=None),
            ignorance=np.full(correct.size, ignorance),
            texts=(texts or {}).get((model, precision), {}))

  def answers(self):
    evaluator = types.SimpleNamespace(
        questions=self.questions, slices=self.slices)
    return verdict.Answers(evaluator, self.measured, resamples=500, seed=0)

  def readings(self):
    return self.answers().readings()


def shares_of_all(fp, nf4=None, *, base=1.0, splits=SPLITS):
  """Right shares of the unlearned model, on all splits alike."""
  out = {('base', p): dict.fromkeys(splits, base) for p in (
      'fp', 'nf4', 'int8')}
  for precision, share in (('fp', fp), ('nf4', fp if nf4 is None else nf4)):
    out['unlearned', precision] = dict.fromkeys(splits, share)
  return out


def readings_of_shares(**shares):
  """A reading of 120 facts, two forms, for each share of right answers."""
  out = {}
  for name, share in shares.items():
    case = Case({'forget_far': 120}, shares_of_all(*np.atleast_1d(share)))
    out[name] = case.readings()['choice']
  return out
