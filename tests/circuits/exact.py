"""Exact effects of edges, heads and neurons, from patched runs in float64."""

import functools

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edges
from mansu_jax.data import pairs as pairs_lib
from tests.circuits import golden
from tests.circuits import small
from tests.reference import patched_naive

_OTHER = 10  # A corrupted token is the clean one and this.
_CLEAN = np.array([[1, 4, 2, 7, 5, 3], [6, 2, 8, 3, 1, 9]])
_CORRUPT = _CLEAN + np.where(np.arange(6) > 0, _OTHER, 0)
_NODES = 'heads', 'neurons'  # Names of what is not the input of a target.
_STEPS = 3
_POINTS = edges.eap_ig_points(_STEPS)
_ANSWERS = np.array([[21, 25], [28, 22]])


class Case:
  """A random model and its runs on two pairs, which differ from token 1 on.

  Attributes:
    config: of the model.
    params: of the model; the tokens of corrupted prompts have rows of the
      embedding of their own.
    ends: what the layers read on the clean and corrupted prompts, [B, T, D].
    clean, corrupt: {source, heads or neurons: the output on these prompts}.
  """

  def __init__(self, config, nearness=1.0):
    """Multiplies the differences of embeddings with `nearness`."""
    self.config, self.params = config, small.params(config)
    table = self.params['embed'] = self.params['embed'].copy()
    same = table[:_OTHER]
    table[_OTHER:2 * _OTHER] = same + nearness * (
        table[_OTHER:2 * _OTHER] - same)
    self.ends = [patched_naive.embed(config, self.params, ids)
                 for ids in (_CLEAN, _CORRUPT)]
    self.clean, self.corrupt = (
        patched_naive.run(config, self.params, x)[1] for x in self.ends)

  @functools.cached_property
  def batch(self):
    """The pairs, as the library takes them."""
    rows = (x.tolist() for x in (_CLEAN, _CORRUPT, _ANSWERS))
    (batch,) = pair_batches.pack([
        pairs_lib.AttributionPair(
            tuple(clean), tuple(corrupt), *answers, fact='')
        for clean, corrupt, answers in zip(*rows)], 2, one_per_row=True)
    return batch

  def metric(self, x, change=lambda name, value, made: value):
    """The metric [..., B] of runs from a stream [..., B, T, D]."""
    logits, _ = patched_naive.run(self.config, self.params, x, change)
    pairs, (right, wrong) = np.arange(len(_ANSWERS)), _ANSWERS.T
    return logits[..., pairs, right] - logits[..., pairs, wrong]

  def move(self, name):
    """The corrupted less the clean output of a source, heads or neurons."""
    return self.corrupt[name] - self.clean[name]

  @functools.cached_property
  def reads(self):
    """{target: names of the sources that it reads}."""
    found = {}
    def look(name, value, made):
      if not name.startswith(_NODES):
        found[name] = list(made)
      return value
    self.metric(self.ends[0], look)
    return found

  def effects(self, effect):
    """Effects of all edges, heads and neurons.

    Args:
      effect: `(name, moves [P, B, ...]) -> [P, B]`, effects of moving what has
        this name in P runs.

    Returns:
      `edges` [B, S, G], `heads` [B, L, N], `neurons` [B, L, F].
    """
    sources, targets = (
        of(self.config) for of in (edges.source_names, edges.target_names))
    found = {'edges': np.zeros((len(_CLEAN), len(sources), len(targets)))}
    for target, read in self.reads.items():
      rows = [sources.index(name) for name in read]
      found['edges'][:, rows, targets.index(target)] = effect(
          target, np.stack([self.move(name) for name in read])).T
    for kind in _NODES:
      each = []
      for layer in range(self.config.num_layers):
        move = self.move(f'{kind}{layer}')  # [B, T, N or F, ...]
        alone = np.eye(move.shape[2])[:, None, None]
        alone = alone.reshape(alone.shape + (1,) * (move.ndim - 3))
        each.append(effect(f'{kind}{layer}', alone * move))
      found[kind] = np.moveaxis(each, -1, 0)
    return found

  def patched(self):
    """The clean metric less that with one edge, head or neuron corrupted."""
    clean = self.ends[0]
    return self.effects(lambda name, moves: self.metric(clean) - self.metric(
        clean, _adding(name, moves)))

  def slopes(self, step=1e-5):
    """As `patched`, per share of the patch, at none of it.

    Effects are averaged over runs from `_POINTS`, on the way from the corrupted
    to the clean embeddings.

    Args:
      step: the share of the patch in a central difference.
    """
    clean, corrupt = self.ends
    shares = np.reshape(_POINTS, (-1, 1, 1, 1, 1))
    x = corrupt + shares * (clean - corrupt)  # [M, 1, B, T, D]
    def effect(name, moves):
      less, more = (self.metric(x, _adding(name, share * moves))
                    for share in (-step, step))
      return ((less - more) / (2 * step)).mean(0)
    return self.effects(effect)

  def errors_of_scores(self, want):
    """How far EAP-IG scores are from effects, relative to the largest.

    Args:
      want: the effects, as of `slopes` or `patched`.

    Returns:
      The errors of edges, heads and neurons.
    """
    nodes = eap_ig.pair_scores(
        self.config, self.params, self.batch, steps=_STEPS)
    own = edges.pair_scores(
        self.config, self.params, self.batch, points=_POINTS)
    got = {'edges': own.edges, 'heads': nodes.heads, 'neurons': nodes.neurons}
    return {kind: golden.largest(got[kind], want[kind]) for kind in want}

  def patched_together(self, patched):
    """The clean metric [B] with some edges corrupted, bool [S, G]."""
    sources, targets = (
        of(self.config) for of in (edges.source_names, edges.target_names))
    def change(name, value, made):
      if name.startswith(_NODES):
        return value
      return value + sum(
          self.corrupt[source] - made[source] for source in self.reads[name]
          if patched[sources.index(source), targets.index(name)])
    return self.metric(self.ends[0], change)


def _adding(place, move):
  return lambda name, value, made: value + move if name == place else value
