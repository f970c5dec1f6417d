"""From scores to the circuit."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitConfig:
  """How scores become the circuit, the only weights that may change."""

  selection: str = _field(
      'attributed', 'attributed: highest |score|; random: as many nodes of'
      ' the same layers, drawn by the seed; all: every weight (baselines).',
      ('attributed', 'random', 'all'))
  budget: float = _field(
      0.01, 'Share of all model weights that the circuit may own, in (0, 1].')
  first_layer: int = _field(0, 'First layer that may hold the circuit.')
  last_layer: int = _field(-1, 'Last layer that may; negative: from the end.')
  per_layer_cap: float = _field(
      1.0, 'Largest share of a layer\'s nodes, or edges into it, it may hold.')
  contrast: float = _field(
      0.0, 'Rank by |forget score| minus this times |retain score|.')
  faithfulness: float = _field(
      0.8, 'Report the smallest prefix of the ranking this faithful.')
  curve_circuits: int = _field(
      5, 'To attribute alone: random circuits at each size of the curve of'
      ' faithfulness (0: none).', most=fields.MOST_DRAWS)
  random_circuits: int = _field(
      20, 'Random circuits for comparison, alike in each layer.',
      most=fields.MOST_DRAWS)
  pairs: int = _field(32, 'Pairs on which faithfulness is measured.')
  resamples: int = _field(
      100, 'Times that the circuit is selected again from resampled pairs, to'
      ' tell how firm it is; 0: not at all.', most=fields.MOST_DRAWS)
  edges: int = _field(
      200, 'Edges of a circuit of edges, before those that lead nowhere are'
      ' dropped.', most=10**9)
  edge_selection: str = _field(
      'greedy', 'greedy: from the logits down, the highest |score| that leads'
      ' there; top: the highest |score| anywhere.', ('greedy', 'top'))
  file: str = _field(
      '', 'To attribute alone, at level edge: a circuit of edges (JSON, as'
      ' EAP-IG and the Mechanistic Interpretability Benchmark write it) that is'
      ' measured on the pairs instead of one selected by our scores.')

  def __post_init__(self):
    fields.check_fields(self, 'circuit')
    fields.check_least(self, 'circuit', 1, 'random_circuits', 'pairs', 'edges')
    fields.check_least(self, 'circuit', 0, 'first_layer', 'contrast', 'resamples',
                 'curve_circuits')
    _check(0 < self.budget <= 1, f'--circuit_budget={self.budget} is outside'
           ' (0, 1]: it is a share of all model weights.')
    _check(0 < self.per_layer_cap <= 1, '--circuit_per_layer_cap='
           f'{self.per_layer_cap} is outside (0, 1].')
    _check(0 < self.faithfulness <= 1, '--circuit_faithfulness='
           f'{self.faithfulness} is outside (0, 1].')
