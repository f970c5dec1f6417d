"""What attribution gives: the scores of the pairs, then the circuit."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models import config as model_config
from mansu_jax.runtime import files
from mansu_jax.stages.circuit import stability

Pairs = list[pairs_lib.AttributionPair]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeScores:
  """Scores of edges.

  Attributes:
    means: mean scores of the pairs, [S, G].
    sums: scores by group of facts; None: pairs will not be resampled.
  """

  means: np.ndarray
  sums: stability.GroupScores | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
  """The attribution pairs and their scores.

  Attributes:
    answered: whether the model answers each pair, bool [P].
    metric_clean: metric of each pair's clean prompt, [P].
    metric_corrupt: metric of each pair's corrupted prompt, [P].
    pairs: the answered pairs, which all scores are of.
    means: mean scores by kind of node.
    token_roles: mean of `eap_ig.PairScores.token_roles`, [L, 2, P].
    each: scores of each pair; None: nodes will not be resampled.
    edges: scores of edges; None at other levels, and for `--circuit_file`.
    groups: group of each fact, for resampling.
    others: pairs of other phrasings, by use.
    contrast: mean scores on retain pairs, of nodes by kind or of edges
      [S, G]; None without `--circuit_contrast`.
  """

  answered: np.ndarray
  metric_clean: np.ndarray
  metric_corrupt: np.ndarray
  pairs: Pairs
  means: dict[str, np.ndarray]
  token_roles: np.ndarray
  each: eap_ig.PairScores | None = None
  edges: EdgeScores | None = None
  groups: dict[str, int] = dataclasses.field(default_factory=dict)
  others: dict[str, Pairs] = dataclasses.field(default_factory=dict)
  contrast: Any = None

  def metric(self) -> dict[str, float]:
    """The record's `metric`: means over the answered pairs, and counts."""
    return {'clean': float(self.metric_clean[self.answered].mean()),
            'corrupt': float(self.metric_corrupt[self.answered].mean()),
            'answered': len(self.pairs), 'pairs': int(self.answered.size)}

  def arrays(self, config: model_config.ModelConfig) -> dict[str, np.ndarray]:
    """The arrays of `attribution.npz`."""
    out = {
        'neuron': self.means['neurons'], 'head': self.means['heads'],
        'kv_head': self.means['kv_heads'], 'token_role': self.token_roles,
        'token_role_names': np.array(eap_ig.TOKEN_ROLES),
        'answered': self.answered, 'metric_clean': self.metric_clean,
        'metric_corrupt': self.metric_corrupt}
    if self.edges is not None:
      out |= {'edge': self.edges.means.astype(np.float32),
              'src_names': np.array(edges_lib.source_names(config)),
              'dst_names': np.array(edges_lib.target_names(config))}
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """A circuit, with its report.

  Attributes:
    circuit: the nodes whose weights may change; None if a circuit of edges is
      the result itself.
    ranking: all candidate nodes, best first; None likewise.
    means: mean scores by kind of node.
    report: JSON-able report (sizes, faithfulness, pairs).
    selected: the selection with its scores, to repeat it on other pairs; None
      if pairs are not resampled.
    edges: the circuit of edges, at level edge.
    movable: which units of each leaf are at the end of an edge, by leaf name
      [L, nodes]; None: all units of the circuit.
  """

  circuit: graph.Circuit | None
  ranking: select.Ranking | None
  means: dict[str, np.ndarray]
  report: dict[str, Any]
  selected: stability.Selected | None = None
  edges: edge_circuit.EdgeCircuit | None = None
  movable: dict[str, np.ndarray] | None = None


def write(
    found: Found, config: model_config.ModelConfig, root: pathlib.Path) -> None:
  """Writes `circuit.json`, in the format that `--circuit_file` reads for edges.

  A circuit of nodes that was made from edges names these in `circuit.json`;
  `circuit_edges.json` then holds the edges in that format.

  Args:
    found: the circuit.
    config: the model's config.
    root: the workdir.
  """
  edges = found.edges and edge_circuit.to_json(found.edges, config)
  if found.circuit is None:
    fields = edges
  else:
    fields = graph.to_json(found.circuit, found.means)
    if edges:
      fields['edges'] = edge_circuit.named(found.edges, config)
      files.write_json(root / 'circuit_edges.json', edges)
  files.write_json(root / 'circuit.json', fields | {'report': found.report})
