"""Attribution pairs -> scores -> circuit, with its faithfulness."""

from __future__ import annotations

from absl import logging
import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import stability as stability_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.circuit import circuit_summary
from mansu_jax.stages.circuit import edge_attribution
from mansu_jax.stages.circuit import edge_ends
from mansu_jax.stages.circuit import edge_file
from mansu_jax.stages.circuit import node_circuit
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import scoring
from mansu_jax.stages.circuit import settings as settings_lib

Settings = settings_lib.Settings
Scored = outputs.Scored
Found = outputs.Found


def run(
    settings: Settings, splits: splits_lib.Splits, model: loading.LoadedModel,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> Found:
  """Scores the pairs and finds the circuit; frees the scores on return.

  Args:
    settings: the stage's settings.
    splits: the questions to make pairs from.
    model: the base model.
    cache: cache of finished stages.

  Raises:
    eap_ig.TooFewAnswered: as `score`.
    ValueError: as `score` and `find`.
  """
  return find(settings, model, score(settings, splits, model, cache), cache)


def run_if_possible(
    settings: Settings, splits: splits_lib.Splits, model: loading.LoadedModel,
    cache: checkpoints.NoCache = checkpoints.NoCache(), *, cad_pairs: int
) -> tuple[Found | None, str]:
  """As `run`, for an audit, whose data may allow no circuit.

  Args:
    settings: the stage's settings.
    splits: the questions to make pairs from.
    model: the base model.
    cache: keeps the results for a resumed audit.
    cad_pairs: as for `prompt_pairs.why_none`.

  Returns:
    The circuit and an empty text, or None and the reason.

  Raises:
    ValueError: as `find`.
  """
  why = prompt_pairs.why_none(
      settings, splits, model.tokenizer, cad_pairs=cad_pairs)
  if why:
    return None, why
  try:
    return run(settings, splits, model, cache), ''
  except eap_ig.TooFewAnswered as error:
    logging.warning('No circuit was attributed: %s', error)
    return None, str(error)


def score(
    settings: Settings, splits: splits_lib.Splits, model: loading.LoadedModel,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> Scored:
  """Makes the attribution pairs and scores nodes, or nodes and edges.

  Args:
    settings: the stage's settings.
    splits: the questions to make pairs from.
    model: the base model.
    cache: cache of finished stages.

  Raises:
    eap_ig.TooFewAnswered: the pairs do not elicit the knowledge.
    ValueError: as `prompt_pairs.forget_pairs` and `retain_pairs`.
  """
  pairs = prompt_pairs.forget_pairs(settings, splits, model.tokenizer)
  by_edge = settings.attribution.level == 'edge'
  nodes = cache.get_or_compute('attribution', lambda: scoring.mean_node_scores(
      settings.attribution, model, pairs,
      keep_each=settings.circuit.resamples > 0 and not by_edge))
  answered = _answered(pairs, nodes)
  others = prompt_pairs.other_phrasings(settings, splits, model.tokenizer)
  groups = _groups(settings, answered, others)
  each = nodes.get('each')
  return Scored(
      answered=nodes['answered'], metric_clean=nodes['metric_clean'],
      metric_corrupt=nodes['metric_corrupt'], pairs=answered,
      means=nodes['means'], token_roles=nodes['token_roles'],
      each=each and eap_ig.PairScores(**each), groups=groups, others=others,
      edges=_score_edges(settings, model, answered, groups, cache),
      contrast=_score_contrast(settings, splits, model, cache))


def find(
    settings: Settings, model: loading.LoadedModel, scored: Scored,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> Found:
  """Selects the circuit, and measures its faithfulness and stability.

  Args:
    settings: the stage's settings.
    model: the base model.
    scored: the pairs and their scores.
    cache: cache of finished stages.

  Raises:
    ValueError: the circuit is empty, nothing is within the budget, or the pairs
      do not allow to measure faithfulness.
  """
  if settings.attribution.level != 'edge':
    found = node_circuit.find(settings, model, scored, cache)
  elif settings.for_edit:
    found = edge_ends.find(settings, model, scored, cache)
  elif settings.circuit.file:
    found = edge_file.find(settings, model, scored)
  else:
    found = edge_attribution.find(settings, model, scored)
  found.report['summary']['token_roles'] = circuit_summary.by_role(
      scored.token_roles)
  if settings.layers is not None:
    found.report['layers'] = settings.layers.record(
        settings.circuit, model.config.num_layers)
  found.report.update(prompt_pairs.describe_file(
      settings.attribution, model.tokenizer, chat=settings.chat))
  return found


def _answered(
    pairs: prompt_pairs.Pairs, scores: dict[str, np.ndarray]
) -> prompt_pairs.Pairs:
  """The pairs that the model answers."""
  return [p for p, is_answered in zip(pairs, scores['answered']) if is_answered]


def _groups(
    settings: Settings, pairs: prompt_pairs.Pairs,
    others: dict[str, prompt_pairs.Pairs]) -> dict[str, int]:
  """Groups of facts for resampling; a few groups where edges are scored."""
  facts = [p.fact for some in (pairs, *others.values()) for p in some]
  if settings.attribution.level == 'edge':
    return stability_lib.group_facts(
        facts, stability_lib.GROUPS, settings.seed)
  # Runs that edit use seed 0, so new records compare with earlier ones.
  return stability_lib.group_facts(
      facts, seed=0 if settings.for_edit else settings.seed)


def _score_edges(
    settings: Settings, model: loading.LoadedModel, pairs: prompt_pairs.Pairs,
    groups: dict[str, int], cache: checkpoints.NoCache
) -> outputs.EdgeScores | None:
  """Scores of edges, by group of facts if pairs will be resampled."""
  options = settings.circuit
  if settings.attribution.level != 'edge' or options.file:
    return None
  resamples = options.resamples and options.selection != 'random'
  if settings.for_edit and not resamples:
    return outputs.EdgeScores(means=cache.get_or_compute(
        'edges', lambda: {'edges': scoring.mean_edge_scores(
            settings.attribution, model, pairs)})['edges'])
  sums = scoring.answered_sums(pairs, groups, **cache.get_or_compute(
      'edge_sums', lambda: scoring.edge_sums(
          settings.attribution, model, pairs, groups)))
  return outputs.EdgeScores(
      means=scoring.unflatten(sums.sums.mean(), model.config), sums=sums)


def _score_contrast(
    settings: Settings, splits: splits_lib.Splits, model: loading.LoadedModel,
    cache: checkpoints.NoCache) -> dict[str, np.ndarray] | np.ndarray | None:
  """Mean scores on retain pairs, of nodes or edges; None without contrast."""
  if not settings.circuit.contrast:
    return None
  pairs = prompt_pairs.retain_pairs(settings, splits, model.tokenizer)
  nodes = cache.get_or_compute('contrast', lambda: scoring.mean_node_scores(
      settings.attribution, model, pairs))
  if settings.attribution.level != 'edge':
    return nodes['means']
  return cache.get_or_compute('edges_contrast', lambda: {
      'edges': scoring.mean_edge_scores(
          settings.attribution, model, _answered(pairs, nodes))})['edges']
