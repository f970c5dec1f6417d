"""Training data -> pools of sequences with the base's reference states.

The base runs once over every sequence that training may see. Its final hidden
states, of width D, stand in for its vocabulary logits in the retain KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import generating
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import swapped_subjects
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import forget as forget_lib
from mansu_jax.unlearn import losses
from mansu_jax.unlearn import other_facts
from mansu_jax.unlearn import step_data
from mansu_jax.unlearn.forget import idk
from mansu_jax.unlearn.forget import term

LOGITS = 256  # Rows of logits at a time, for priors.
_PRIOR_PROMPTS = 2  # Other facts' prompts for each answer's prior.
_NEIGHBOUR_SHARE = 0.1  # Largest share of the retain set that is favoured.

Questions = Sequence[questions_lib.Question]


class Reference(NamedTuple):
  """What the base model answers to training's queries.

  Attributes:
    hidden: `(tokens, positions, segments), each [R, T] -> states [R, T, D]`.
    probabilities: final states [n, D] -> next-token probabilities [n, V].
    nll: final states [n, D], labels [n] -> -log p(label) [n].
    write: token ids of prompts, n -> at most n likeliest next tokens of each.
  """

  hidden: Callable[..., types.Array | np.ndarray]
  probabilities: Callable[[np.ndarray], np.ndarray]
  nll: Callable[[np.ndarray, np.ndarray], np.ndarray]
  write: Callable[[Sequence[Sequence[int]], int], list[list[int]]]


@functools.partial(jax.jit, static_argnums=0)
def base_states(config, params, tokens, positions, segments):
  """Final hidden states [R, T, D] of packed rows [R, T]."""
  return decoder.forward(
      config, params, tokens, positions=positions, segments=segments)


def reference_of(model: loading.LoadedModel) -> Reference:
  """Runs the base for its reference states and probabilities."""
  softmax = jax.jit(lambda params, states: jax.nn.softmax(
      decoder.unembed(model.config, params, states)))
  return Reference(
      hidden=functools.partial(base_states, model.config, model.params),
      probabilities=lambda states: sharding.to_host(
          softmax(model.params, states)),
      nll=functools.partial(_nll, model.config, model.params),
      write=functools.partial(_write, model))


@functools.partial(jax.jit, static_argnums=0)
def token_nll(config, params, states, labels):
  """-log p(label) of final hidden states [LOGITS, D]."""
  return losses.token_nll(decoder.unembed(config, params, states), labels)


def _write(
    model: loading.LoadedModel, prompts: Sequence[Sequence[int]], most: int
) -> list[list[int]]:
  return generating.make(model.config)(
      model.params, prompts, max_new_tokens=most,
      stop_ids=model.end_tokens)


def _nll(
    config: model_config.ModelConfig, params: types.Params, states: np.ndarray,
    labels: np.ndarray
) -> np.ndarray:
  """-log p(label) of each state, [n], a slice of logits at a time."""
  out = []
  for at in range(0, len(labels), LOGITS):
    pad = (0, max(0, at + LOGITS - len(labels)))
    out.append(sharding.to_host(token_nll(
        config, params, np.pad(states[at:at + LOGITS], (pad, (0, 0))),
        np.pad(labels[at:at + LOGITS], pad))))
  return np.concatenate(out)[:len(labels)]


def make_batches(
    options: run_config.UnlearnConfig, data: run_config.DataConfig,
    splits: splits_lib.Splits, model: loading.LoadedModel, *, seed: int,
    routed: bool = False,
    cache: checkpoints.NoCache = checkpoints.NoCache(),
    reference: Reference | None = None) -> batches_lib.Batches:
  """Encodes the training data and computes the base's reference states.

  Args:
    options: the loop's config.
    data: chat format and text window.
    splits: questions and texts.
    model: the base.
    seed: the run's.
    routed: whether the forget sequences run again, in rows of their own.
    cache: keeps the reference states, so that a resumed run skips them.
    reference: replaces the base's answers (planning); None runs the base.
  """
  maker = _PoolMaker(
      options, data, model, seed, cache, reference or reference_of(model))
  text = maker.text(splits.text)
  swapped, leaking, report = maker.swapped(splits)
  questions = inputs_lib.thin(
      splits.forget_train, options.forget_pool, seed) + leaking
  sequences = maker.encode(questions)
  prompts = None
  if options.prompt_weight:
    first = sequences.answer_mask.argmax(1)[:, None]  # It predicts the answer.
    prompts = maker.with_reference('prompts', batches_lib.make_spans(
        sequences.tokens, np.arange(sequences.tokens.shape[1]) < first))
  forget = maker.pool('forget', sequences, options.forget_batch, 0)
  marginals = partners = None
  needs = forget_lib.needs(options.loss)
  if needs is term.Needs.OTHER_ANSWERS:
    partners = swap_partners(questions, splits.forget_train)
  elif needs is term.Needs.GROUP_MARGINAL:
    ends = forget.spans.reference[:, 0]  # [n, D], ends of the prompts.
    marginals = other_facts.group_marginals(
        *grouping(questions, splits.forget_train),
        lambda rows: maker.reference.probabilities(ends[rows]))
  refusals = None
  if needs is term.Needs.REFUSALS:
    encoded = maker.encode(refused(questions, seed))
    refusals = maker.with_reference('refusals', batches_lib.make_spans(
        encoded.tokens, encoded.answer_mask))
  choices = None
  if options.choice_kl_weight:
    choices = choice_targets(questions, model.tokenizer, chat=data.chat)
  prior = None
  if needs is term.Needs.OTHER_PROMPTS:
    prior = maker.priors(forget.spans, questions, prior_prompts(
        questions, splits.forget_train, splits.retain_train, seed=seed))
  retain = retain_pool(
      options, splits.retain_train, forget, maker.retain, seed=seed)
  return batches_lib.Batches(
      forget=forget, retain=retain, text=text, swapped=swapped,
      swapped_report=report, prompts=prompts, partners=partners,
      marginals=marginals, choices=choices, prior=prior, refusals=refusals,
      routed=routed, questions=questions, steps=options.steps, seed=seed)


class _PoolMaker(NamedTuple):
  """Encodes questions and texts and adds the reference states."""

  options: run_config.UnlearnConfig
  data: run_config.DataConfig
  model: loading.LoadedModel
  seed: int
  cache: checkpoints.NoCache
  reference: Reference

  def encode(self, questions: Questions) -> batching.Sequences:
    return batching.encode_sequences(
        questions, self.model.tokenizer, chat=self.data.chat)

  def with_reference(
      self, name: str, spans: batches_lib.Spans) -> batches_lib.Spans:
    found = self.cache.get_or_compute(
        f'references_{name}', lambda: {'states': batches_lib.add_reference(
            spans, self.reference.hidden).reference},
        of_base=True, inputs=spans[:-1])  # All but the reference.
    return spans._replace(reference=found['states'])

  def pool(
      self, name: str, sequences: batching.Sequences, batch: int, salt: int
  ) -> batches_lib.Pool:
    return self.pool_of(self.with_reference(name, batches_lib.make_spans(
        sequences.tokens, sequences.answer_mask)), batch, salt)

  def pool_of(
      self, spans: batches_lib.Spans, batch: int, salt: int
  ) -> batches_lib.Pool:
    size = spans.length.size
    return batches_lib.Pool(
        spans=spans, even=size, sampler=batching.BatchSampler(
            size, min(batch, size), 4 * self.seed + salt))

  def priors(
      self, spans: batches_lib.Spans, questions: Questions,
      others: Sequence[Questions]) -> step_data.OtherPrompts:
    """What the base says after other facts' prompts.

    Args:
      spans: forget sequences.
      questions: their questions.
      others: K times the question whose prompt each answer follows.
    """
    found, states = [], []
    for k, partners in enumerate(others):
      sequences = self.encode(partners)
      swapped = self.with_reference(f'prior_{k}', batches_lib.swap_answers(
          batches_lib.make_spans(sequences.tokens, sequences.answer_mask),
          spans))
      row, column = np.nonzero(swapped.weight)
      nll = self.reference.nll(
          swapped.reference[row, column], swapped.labels[row, column])
      found.append(np.bincount(row, nll, minlength=len(partners)))
      states.append(swapped.reference[:, 0])
    _, relation = np.unique([q.asked for q in questions], return_inverse=True)
    return step_data.OtherPrompts(
        np.float32(np.mean(found, axis=0)), np.stack(states, axis=1),
        np.int32(relation))

  def retain(self, name: str, questions: Questions) -> batches_lib.Pool:
    return self.pool(
        name, self.encode(questions), self.options.retain_batch, 1)

  def text(self, documents: Sequence[Any]) -> batches_lib.Pool | None:
    if not documents or not self.options.text_batch:
      return None
    windows = batching.encode_text(
        documents, self.model.tokenizer, self.data.text_window)
    chosen = sample_rows(
        windows.length.size, self.options.text_pool, self.seed)
    return self.pool('text', windows.take(chosen), self.options.text_batch, 2)

  def swapped(
      self, splits: splits_lib.Splits
  ) -> tuple[batches_lib.Pool | None, list[questions_lib.Question],
             dict[str, int] | None]:
    if not self.options.swapped_batch:
      return None, [], None
    spans, leaking, report = swapped_subjects.spans(
        self.options, self.data, splits, self.model.tokenizer,
        functools.partial(self.with_reference, 'swapped'),
        self.reference.probabilities, self._written, seed=self.seed)
    return spans and self.pool_of(
        spans, self.options.swapped_batch, 3), leaking, report

  def _written(
      self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    return self.cache.get_or_compute_json(
        'continuations', lambda: self.reference.write(prompts, most),
        of_base=True, inputs=[*map(np.array, prompts), np.array(most)])


def retain_pool(
    options: run_config.UnlearnConfig, questions: Questions,
    forget: batches_lib.Pool,
    make_pool: Callable[[str, Questions], batches_lib.Pool], *, seed: int
) -> batches_lib.Pool:
  """Retain questions of every fact, and more of the forget set's neighbours.

  The neighbours are the facts whose base states are nearest to the forget
  set's. They join the pool in their remaining phrasings, up to
  `--unlearn_retain_pool` questions: a neighbour trained in few phrasings is
  lost in the others. `--unlearn_nearest_share` of each batch is drawn from the
  nearest sequences, at most a tenth of the retain set.
  """
  chosen = inputs_lib.thin(questions, options.retain_pool, seed)
  even = make_pool('retain', chosen)
  size, batch = even.even, even.sampler.batch
  if not options.nearest_share or batch == 1:
    return even
  nearest = lambda spans, count: batches_lib.nearest(
      *(np.asarray(s.reference[:, 0]) for s in (spans, forget.spans)), count)
  rows = nearest(even.spans, int(_NEIGHBOUR_SHARE * size))
  facts, ids = {chosen[i].fact for i in rows}, {q.id for q in chosen}
  more = inputs_lib.thin(
      [q for q in questions if q.fact in facts and q.id not in ids],
      options.retain_pool, seed)
  spans = even.spans
  if more:
    spans = batches_lib.join([spans, make_pool('retain_near', more).spans])
    rows = nearest(spans, min(
        int(_NEIGHBOUR_SHARE * len(questions)), len(rows) + len(more)))
  part = round(options.nearest_share * batch)
  part = min(max(1, part), batch - 1)  # At least one sequence of each kind.
  return batches_lib.Pool(
      spans=spans, even=size, sampler=batching.FavouringSampler(
          size, batch, even.sampler.seed, favoured=rows, part=part))


def swap_partners(
    questions: Questions, forget_set: Questions) -> list[np.ndarray]:
  """For each question, the questions of other facts to swap answers with."""
  return other_facts.swap_partners(
      *grouping(questions, forget_set), [q.fact for q in questions])


def prior_prompts(
    questions: Questions, forget_set: Questions, retain_set: Questions, *,
    seed: int) -> list[list[questions_lib.Question]]:
  """Questions about other facts, whose prompts give the answers' priors.

  Args:
    questions: the forget questions to train on.
    forget_set: all train questions of the forget set.
    retain_set: all train questions of the retain set.
    seed: of the draw.

  Returns:
    `_PRIOR_PROMPTS` lists with a question for each of `questions`.

  Raises:
    ValueError: there is no fact with another answer.
  """
  describe = lambda some: [
      (q.asked, q.form, q.fact, splits_lib.plain(q.answer)) for q in some]
  partners = other_facts.Partners(
      grouping(questions, forget_set)[0], describe(questions),
      describe(retain_set))
  every = [*questions, *retain_set]
  return [[every[i] for i in row] for row in other_facts.prior_partners(
      partners, [q.fact for q in questions], _PRIOR_PROMPTS,
      np.random.default_rng(seed))]


def choice_targets(
    questions: Questions, tokenizer: types.Tokenizer, *, chat: bool = False
) -> step_data.Choices:
  """First tokens of the choices of each question's fact."""
  encoded = tokenization.encode_questions(questions, tokenizer, chat=chat)
  first = [[ids[0] for ids in e.choices] for e in encoded]
  right = [row[q.answer_index] for q, row in zip(questions, first)]
  return other_facts.choice_targets(
      [q.fact for q in questions], right, first)


def refused(questions: Questions, seed: int) -> list[questions_lib.Question]:
  """The questions with drawn refusals as answers, among all as choices."""
  drawn = np.random.default_rng(seed).integers(
      len(idk.REFUSALS), size=len(questions))
  return [dataclasses.replace(
      q, answer=idk.REFUSALS[i], choices=idk.REFUSALS)
          for q, i in zip(questions, drawn)]


def check_forget_term(
    options: run_config.UnlearnConfig, splits: splits_lib.Splits,
    tokenizer: types.Tokenizer, *, seed: int, chat: bool) -> None:
  """Raises ValueError if the forget term lacks other facts or choices."""
  forget_set = splits.forget_train
  questions = inputs_lib.thin(forget_set, options.forget_pool, seed)
  needs = forget_lib.needs(options.loss)
  if needs is term.Needs.OTHER_ANSWERS:
    swap_partners(questions, forget_set)
  elif needs is term.Needs.GROUP_MARGINAL:
    other_facts.group_marginals(
        *grouping(questions, forget_set),
        lambda rows: np.zeros((len(rows), 1)))
  elif needs is term.Needs.OTHER_PROMPTS:
    prior_prompts(questions, forget_set, splits.retain_train, seed=seed)
  if options.choice_kl_weight:
    choice_targets(questions, tokenizer, chat=chat)


def grouping(
    questions: Questions, forget_set: Questions
) -> tuple[list[str], list[str], list[str]]:
  """Group, relation (as it is asked) and template of each question.

  Groups come from the whole forget set, so that they do not depend on which
  questions are drawn. A template is the last part of a question's id.
  """
  groups = dict(zip(
      [(q.asked, q.fact) for q in forget_set],
      other_facts.confusable_groups(*zip(*(
          (q.asked, q.fact, q.answer, q.choices) for q in forget_set)))))
  return ([groups[q.asked, q.fact] for q in questions],
          [q.asked for q in questions],
          [q.form for q in questions])


def sample_rows(size: int, limit: int, seed: int) -> np.ndarray:
  """At most `limit` rows of `size`, drawn without replacement, sorted."""
  rng = np.random.default_rng(seed)
  return np.sort(rng.permutation(size)[:limit])
