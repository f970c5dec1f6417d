"""Configuration of circuit selection."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=fields.RUN_MODES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitConfig:
  """How scores become the circuit: the only weights that may change."""

  selection: str = _field(
      'attributed', 'Nodes of the circuit. attributed: the nodes with the'
      ' highest absolute score per weight; random: nodes drawn by --seed, as'
      ' many of each kind in each layer; all: every weight (for the other'
      ' methods than mansu).',
      ('attributed', 'random', 'all'))
  budget: float = _field(
      0.01, 'Largest share of all model weights that the circuit may contain,'
      ' in (0, 1].')
  first_layer: int | None = _field(
      None, 'First layer that the circuit may use, counted from 0. auto: in a'
      ' run that edits a circuit, a third of the layers below the last layer of'
      ' the circuit; otherwise 0.')
  last_layer: int | None = _field(
      None, 'Last layer that the circuit may use. Negative numbers count from'
      ' the last layer, -1. auto: in a run that edits a circuit, the layer that'
      ' moves the answer to the last token, found on the base with training'
      ' questions; otherwise -1.')
  per_layer_cap: float = _field(
      1.0, 'Largest share of the nodes of a layer that the circuit may contain,'
      ' in (0, 1]. At --attribution_level=edge: of the edges into a layer.')
  contrast: float = _field(
      0.0, 'Weight of the retain scores. Edges are ranked by |forget score| -'
      ' contrast * |retain score|, and nodes by this difference per weight. 0:'
      ' rank by the forget scores alone.')
  faithfulness: float = _field(
      0.8, 'Target faithfulness, in (0, 1]. The report gives the smallest'
      ' prefix of the ranking that reaches it.')
  curve_circuits: int = _field(
      5, 'Random circuits at each size of the faithfulness curve; 0: none.',
      modes=('attribute',), maximum=fields.MAX_DRAWS)
  random_circuits: int = _field(
      20, 'Random circuits to compare the faithfulness with. Those of nodes'
      ' have as many nodes of each kind in each layer as the circuit; those of'
      ' edges are selected like the circuit, by scores permuted among the edges'
      ' into each layer.', maximum=fields.MAX_DRAWS)
  pairs: int = _field(
      32, 'Largest number of prompt pairs that measure faithfulness.')
  resamples: int = _field(
      100, 'Bootstrap resamples of the facts behind the prompt pairs. The'
      ' circuit is selected again from each to measure its stability. 0: skip.',
      maximum=fields.MAX_DRAWS)
  edges: int = _field(
      200, 'Edges to select, at --attribution_level=edge. The circuit drops'
      ' selected edges that lie on no path from the input to the logits.',
      maximum=10**9)
  edge_selection: str = _field(
      'greedy', 'Order of selection, at --attribution_level=edge. greedy: start'
      ' at the logits and always add the highest absolute score that connects'
      ' to the circuit; top: the highest absolute scores anywhere.',
      ('greedy', 'top'))
  file: str = _field(
      '', 'JSON file of an edge circuit, in the format of EAP-IG and of the'
      ' Mechanistic Interpretability Benchmark. It is measured instead of a'
      ' selected circuit, at --attribution_level=edge.', modes=('attribute',))

  def __post_init__(self):
    fields.check_fields(self, 'circuit')
    fields.check_minimum(
        self, 'circuit', 1, 'random_circuits', 'pairs', 'edges')
    fields.check_minimum(
        self, 'circuit', 0, 'contrast', 'resamples', 'curve_circuits')
    fields.check(
        self.first_layer is None or self.first_layer >= 0,
        f'--circuit_first_layer={self.first_layer} must be at least 0.')
    fields.check(0 < self.budget <= 1, f'--circuit_budget={self.budget} is'
                 ' outside (0, 1]: it is a share of all model weights.')
    fields.check_share(self, 'circuit', 'per_layer_cap', 'faithfulness')
