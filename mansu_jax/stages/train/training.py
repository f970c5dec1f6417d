"""Pools with reference states -> Fisher -> the unlearn loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.models import decoder
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import memory
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import swapped_subjects
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import fisher as fisher_lib
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import losses
from mansu_jax.unlearn import objective
from mansu_jax.unlearn import other_facts

_NEAR = 0.1  # Share of all retain sequences that counts as near.


class Base(NamedTuple):
  """What training asks of the base.

  Attributes:
    hidden: `(tokens, positions, segments), each [R, T] -> states [R, T, D]`.
    say: final states [n, D] to probabilities [n, V].
  """

  hidden: Callable[..., types.Array | np.ndarray]
  say: Callable[[np.ndarray], np.ndarray]


@functools.partial(jax.jit, static_argnums=0)
def base_states(config, params, tokens, positions, segments):
  """Final hidden states [R, T, D] of packed rows [R, T]."""
  return decoder.forward(
      config, params, tokens, positions=positions, segments=segments)


def ask_base(model: Any) -> Base:
  """The base as training asks it."""
  softmax = jax.jit(lambda params, states: jax.nn.softmax(
      decoder.unembed(params, states)))
  return Base(
      hidden=functools.partial(base_states, model.config, model.params),
      say=lambda states: sharding.to_host(softmax(model.params, states)))


def make_batches(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, model: Any,
    cache: checkpoints.NoCache = checkpoints.NoCache(),
    base: Base | None = None) -> batches_lib.Batches:
  """Encodes the training data and keeps the base's states on it.

  Args:
    config: the run's.
    inputs: its data.
    model: the base.
    cache: the stages of a run that can go on.
    base: what answers for it; None: itself.
  """
  options, seed, chat = config.unlearn, config.seed, config.data.chat
  hidden, say = base or ask_base(model)

  def refer(name, spans):
    found = cache.get_or_compute(f'references_{name}', lambda: {
        'states': batches_lib.add_reference(
            spans, hidden, packing.fill_rows).reference})
    return spans._replace(reference=found['states'])

  def referenced(name, sequences, mask):
    return refer(name, batches_lib.make_spans(sequences.tokens, mask))

  def pool(name, sequences, batch, salt):
    return pool_of(
        referenced(name, sequences, sequences.answer_mask), batch, salt)

  def pool_of(spans, batch, salt):
    size = spans.length.size
    return batches_lib.Pool(
        spans=spans, even=size, sampler=batching.BatchSampler(
            size, min(batch, size), 4 * seed + salt))

  forget_questions = inputs_lib.thin(
      inputs.splits.forget_train, options.forget_pool, seed)
  forget = batching.encode_sequences(
      forget_questions, model.tokenizer, chat=chat)
  text = prompts = partners = swapped = account = None
  if inputs.splits.text and options.text_batch:
    windows = batching.encode_text(
        inputs.splits.text, model.tokenizer, config.data.text_window)
    text = pool('text', windows.take(_sample(
        windows.length.size, options.text_pool, seed)), options.text_batch, 2)
  if options.swapped_batch:
    spans, account = swapped_subjects.spans(
        options, config.data, inputs.splits, model.tokenizer,
        functools.partial(refer, 'swapped'), say, seed=seed)
    swapped = pool_of(spans, options.swapped_batch, 3)
  if options.prompt_weight:
    first = forget.answer_mask.argmax(1)[:, None]  # Predicts the answer.
    prompts = referenced(
        'prompts', forget, np.arange(forget.tokens.shape[1]) < first)
  forget_pool = pool('forget', forget, options.forget_batch, 0)
  table = None
  if options.loss == 'answer_swap':
    partners = swap_partners(
        forget_questions, inputs.splits.forget_train)
  elif options.loss == 'group_marginal':
    ends = forget_pool.spans.reference[:, 0]  # [n, D], prompt ends.
    table = other_facts.group_marginals(
        *_grouping(forget_questions, inputs.splits.forget_train),
        lambda rows: say(ends[rows]))
  others = None
  if options.choice_kl_weight:
    others = choice_targets(forget_questions, model.tokenizer, chat=chat)
  retain = _retain_pool(
      config, inputs.splits.retain_train, forget_pool,
      lambda name, questions: pool(name, batching.encode_sequences(
          questions, model.tokenizer, chat=chat), options.retain_batch, 1))
  return batches_lib.Batches(
      forget=forget_pool, marginals=table, choices=others,
      retain=retain, text=text, swapped=swapped, swapped_account=account,
      prompts=prompts, partners=partners, fill=packing.fill_rows,
      steps=options.steps, seed=seed)


def _retain_pool(
    config: run_config.RunConfig,
    questions: Sequence[questions_lib.Question], forget: batches_lib.Pool,
    pool: Callable[[str, Sequence[questions_lib.Question]], batches_lib.Pool]
) -> batches_lib.Pool:
  """Retain questions, evenly over facts, and more of those that are near.

  Facts that are near in the even pool join it in their other phrasings, as far
  as `--unlearn_retain_pool` allows: trained in few, a near fact is kept in
  those and lost in the rest. `--unlearn_nearest_share` of each batch is drawn
  from the nearest of all these, at most as many as a tenth of the whole set.
  """
  options, seed = config.unlearn, config.seed
  chosen = inputs_lib.thin(questions, options.retain_pool, seed)
  even = pool('retain', chosen)
  size, batch = even.even, even.sampler.batch
  if not options.nearest_share or batch == 1:
    return even
  nearest = lambda spans, count: batches_lib.nearest(
      *(np.asarray(s.reference[:, 0]) for s in (spans, forget.spans)), count)
  rows = nearest(even.spans, int(_NEAR * size))
  facts, ids = {chosen[i].fact for i in rows}, {q.id for q in chosen}
  more = inputs_lib.thin(
      [q for q in questions if q.fact in facts and q.id not in ids],
      options.retain_pool, seed)
  spans = even.spans
  if more:
    spans = batches_lib.join([spans, pool('retain_near', more).spans])
    rows = nearest(
        spans, min(int(_NEAR * len(questions)), len(rows) + len(more)))
  part = round(options.nearest_share * batch)
  part = min(max(1, part), batch - 1)  # Some of both.
  return batches_lib.Pool(
      spans=spans, even=size, sampler=batching.FavouringSampler(
          size, batch, even.sampler.seed, favoured=rows, part=part))


def swap_partners(
    questions: Sequence[questions_lib.Question],
    everything: Sequence[questions_lib.Question]) -> list[np.ndarray]:
  """Sequences of other facts, of the same group and template if possible."""
  return other_facts.swap_partners(
      *_grouping(questions, everything), [q.fact for q in questions])


def choice_targets(
    questions: Sequence[questions_lib.Question], tokenizer: Any, *,
    chat: bool = False) -> objective.Choices:
  """First tokens of the choices of each question's fact."""
  encoded = tokenization.encode_questions(questions, tokenizer, chat=chat)
  first = [[ids[0] for ids in e.choices] for e in encoded]
  right = [row[q.answer_index] for q, row in zip(questions, first)]
  return other_facts.choice_targets(
      [q.fact for q in questions], right, first)


def check_forget_term(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    tokenizer: Any) -> None:
  """Raises ValueError where the forget term lacks other facts or choices."""
  options, everything = config.unlearn, inputs.splits.forget_train
  questions = inputs_lib.thin(everything, options.forget_pool, config.seed)
  if options.loss == 'answer_swap':
    swap_partners(questions, everything)
  elif options.loss == 'group_marginal':
    other_facts.group_marginals(*_grouping(questions, everything),
                          lambda rows: np.zeros((len(rows), 1)))
  if options.choice_kl_weight:
    choice_targets(questions, tokenizer, chat=config.data.chat)


def _grouping(
    questions: Sequence[questions_lib.Question],
    everything: Sequence[questions_lib.Question]
) -> tuple[list[str], list[str], list[str]]:
  """Group, relation and template of each question.

  Groups are those of all forget questions, whichever are drawn; templates the
  last part of the questions' ids.
  """
  kin = dict(zip(
      [(q.relation, q.fact) for q in everything],
      other_facts.confusable_groups(*zip(*(
          (q.relation, q.fact, q.answer, q.choices) for q in everything)))))
  return ([kin[q.relation, q.fact] for q in questions],
          [q.relation for q in questions],
          [q.id.rsplit('/', 1)[-1] for q in questions])


def _sample(num: int, limit: int, seed: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return np.sort(rng.permutation(num)[:limit])


def fisher_spans(
    config: run_config.RunConfig, batches: batches_lib.Batches
) -> batches_lib.Spans:
  """The `--fisher_sequences` retain sequences of the Fisher."""
  return batches.retain.spans.take(_sample(
      batches.retain.even, config.fisher.sequences, config.seed))


def circuit_fisher(
    config: run_config.RunConfig, edit: edits.Edit,
    batches: batches_lib.Batches,
    cache: checkpoints.NoCache = checkpoints.NoCache()
) -> types.PyTree | None:
  """Diagonal Fisher of the retain facts on the circuit's slices.

  None where nothing is projected. `cache`: the stages of a run that can go on.
  """
  if not edit.grids or config.edit.projection == 'none':
    return None
  options = config.fisher
  examples = jax.tree.map(jnp.asarray, fisher_spans(config, batches))
  if options.labels == 'model':
    examples = examples._replace(labels=fisher_lib.draw_labels(
        jax.random.key(config.seed),
        edit.unembed(None, edit.base, examples.reference)))

  def make():
    progress.count_tokens(examples.length.sum())
    return fisher_lib.diagonal_fisher(
        log_prob_of(edit), edit.theta, edit.base, examples,
        chunk=fisher_chunk(config, edit.theta))

  return cache.get_or_compute('fisher', make) if cache else make()


def fisher_chunk(config: run_config.RunConfig, theta: types.PyTree) -> int:
  """Examples whose gradients are live at once: as many as devices have room.

  Each has a gradient and its square, on the devices that have its row.
  """
  own = 2 * sum(memory.bytes_of(x) for x in jax.tree.leaves(theta))
  parts = sharding.num_row_shards()
  return parts * memory.fitting(-(-config.fisher.chunk // parts), own)


def log_prob_of(edit: edits.Edit) -> fisher_lib.LogProb:
  """The log-probability of a sequence's answer, as the Fisher takes it."""
  # Not `edit` itself: what is compiled is cached with all it closes over.
  forward, unembed = edit.forward, edit.unembed

  def log_prob(theta, view, example):
    hidden = forward(theta, view, example.tokens[None])[0]  # [T, D]
    logits = unembed(theta, view, hidden[example.where])
    return -jnp.sum(losses.token_nll(logits, example.labels) * example.weight)

  return log_prob


def unlearn(
    config: run_config.RunConfig, edit: edits.Edit,
    fisher: types.PyTree | None, batches: batches_lib.Batches, model: Any,
    **rest: Any) -> types.PyTree:
  """Runs the loop.

  Args:
    config: the run's.
    edit: what is trained.
    fisher: from `circuit_fisher`.
    batches: from `make_batches`.
    model: the base.
    **rest: `visit`, `keep` and `log_every` of `loop.run`.

  Returns:
    `{'theta': trained pytree, 'history': {metric: [steps]}}`; the history's
    `view` is the number of each step's view in `edit.views`.
  """
  options, names = config.unlearn, _view_names(config, edit)
  problem = make_problem(config, edit, fisher)
  theta, history = loop.run(
      problem, batches, steps=options.steps,
      total_weights=tree_paths.count(model.params),
      max_retain_kl=options.max_retain_kl, **rest)
  numbers = [list(edit.views).index(name) for name in names]
  return {'theta': theta, 'history': {
      key: np.array([row[key] for row in history]) for key in history[0]
  } | {'view': np.resize(numbers, len(history))}}


def make_problem(
    config: run_config.RunConfig, edit: edits.Edit,
    fisher: types.PyTree | None) -> loop.Problem:
  """What the loop is handed; arguments as of `unlearn`."""
  return loop.Problem(
      theta=edit.theta,
      tx=edits.make_transform(config, edit, fisher),
      loss=objective.make_loss(config.unlearn, edit.forward, edit.unembed),
      views=[edit.views[name] for name in _view_names(config, edit)],
      base=edit.base, codes_changed=functools.partial(
          edits.codes_changed, edit.grids[0], edit.theta
      ) if edit.grids else None)


def _view_names(config: run_config.RunConfig, edit: edits.Edit) -> list[str]:
  """The views in the order in which steps take them, round after round."""
  full, *quantized = edit.views
  return [full] * config.unlearn.fp_steps + quantized
