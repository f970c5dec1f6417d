"""Where the circuit lies, its faithfulness, and its largest scores.

Circuits of nodes and of edges, from unlearning runs, audits and attribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import circuit_picture
from mansu_jax.report.charts import svg
from mansu_jax.report.charts import token_role_chart

Record = dict[str, Any]
_NOT_PATCHED = {
    'neuron': ' Attention is not patched.', 'head': ' MLPs are not patched.'}
_KV = (' Key/value heads are not patched as nodes of their own, but with the'
       ' query heads that share them; training may change their weights.')


def section(record: Record) -> document.Section:
  """Where the circuit lies and whether it carries the behaviour."""
  found = record['circuit']
  return document.Section('Circuit', (
      *map(document.Text, _remarks(record)),
      document.Plots((*_pictures(found), *_faithfulness_plot(found))),
      _table(found)))


def _remarks(record: Record) -> Iterator[str]:
  found = record['circuit']
  if 'pair' in record:
    yield ('Attribution ran on the base with this audit\'s flags. The circuit'
           ' shows where the base holds the forget facts, not which weights the'
           ' audited model\'s edit changed.')
  if found['selection'] == 'all':
    yield ('Every weight was trained. The circuit below is the attributed one,'
           ' on which CAD is measured.')
  if warning := found.get('random', {}).get('warning'):
    yield warning


def has_edges_only(found: Record) -> bool:
  """Whether the circuit is of edges alone.

  An unlearning run at level edge edits the weights of nodes, and its record
  counts these by kind.
  """
  return not isinstance(found['nodes'], dict)


def random_kind(found: Record) -> str:
  """How random circuits are drawn, in words."""
  return ('selected the same way' if found['level'] == 'edge' else
          'of the same shape')


def random_comparison(found: Record) -> str:
  """Faithfulness of random circuits in words; '' where none were run."""
  random, kind = found['random'], random_kind(found)
  if random['mean'] is None:
    return ''
  if random.get('same') == random['circuits']:
    return (f'all random circuits {kind} are identical to the circuit, so there'
            ' is no comparison')
  return (f'random circuits {kind} have a mean of'
          f' {words.number(random["mean"], 2)} and a maximum of'
          f' {words.number(random["max"], 2)}')


def name(found: Record) -> str:
  """The circuit's nodes and edges, counted, in words."""
  edges = found.get('edges')
  if has_edges_only(found):
    return (f'{words.count(edges, "edge")} between'
            f' {words.count(found["nodes"], "node")}')
  nodes = words.listing([
      f'{n:,} {k.replace("_", " ")}' for k, n in found['nodes'].items() if n])
  if edges is None:
    return nodes
  return f'{nodes} at the ends of {words.count(edges, "edge")}'


def _table(found: Record) -> document.Table:
  return document.Table(
      ('circuit', 'value'), (
          *_size_rows(found), *_pair_rows(found), *_faithfulness_rows(found)),
      labels=2, caption='Size and faithfulness of the circuit. Faithfulness:'
      ' share of the metric\'s difference between clean and corrupted prompts'
      ' that remains when everything outside the circuit gets its activations'
      ' from the corrupted prompt; 1 is all of it, 0 none. Compare it with the'
      ' random circuits.')


def _size_rows(found: Record) -> Iterator[tuple[str, str]]:
  yield 'selection', found['selection']
  yield 'level', found['level']
  if layers := found.get('layers'):
    mover = (f'layer {layers["mover_layer"]} moves the answer to the last'
             f' token, found with {layers["source"]} questions')
    if layers['mover_layer'] is None:
      mover = f'no mover layer: {layers["source"]}'
    yield 'layers', f'{layers["first"]} to {layers["last"]}; {mover}'
  if has_edges_only(found):
    yield 'edges', (
        f'{found["edges"]:,} of {found["candidates"]:,} candidates'
        f' ({found["edges_before_pruning"]:,} before edges on no path from the'
        ' input to the logits were pruned)')
    yield 'nodes', f'{found["nodes"]:,}'
  else:
    yield 'nodes', name(found)
    yield 'share of all weights', words.percent(found['share_of_weights'])
    yield ('share of the total |score|',
           words.percent(found['share_of_absolute_score']))


def _pair_rows(found: Record) -> Iterator[tuple[str, str]]:
  parts = [str(found['pairs'])]
  if skipped := found.get('pairs_skipped'):
    parts.append(f'{skipped} of the file dropped, because their prompts differ'
                 ' in token length')
  if as_ids := found.get('pairs_as_ids'):
    parts.append(f'{as_ids} of the file given as token ids')
  yield 'attribution pairs', '; '.join(parts)
  if 'no_curve' in found:
    yield 'faithfulness by size', f'not measured: {found["no_curve"]}'


def _faithfulness_rows(found: Record) -> Iterator[tuple[str, str]]:
  yield 'faithfulness', words.number(found.get('faithfulness'))
  if 'edge_faithfulness' in found:
    yield ('faithfulness of the edges alone',
           words.number(found['edge_faithfulness']))
  if 'faithfulness_of_none' in found:
    yield ('faithfulness of the empty circuit',
           words.number(found['faithfulness_of_none']))
  if random := found.get('random'):
    same = random.get('same')
    circuits = words.count(random['circuits'], 'random circuit')
    yield (f'faithfulness of {circuits}',
           f'mean {words.number(random["mean"])},'
           f' maximum {words.number(random["max"])}'
           + (f'; {same} of them identical to the circuit' if same else ''))
  if prefix := found.get('smallest_faithful_prefix'):
    kind = 'edges' if 'edges' in prefix else 'nodes'
    candidates = f'{prefix["candidates"]:,} candidate {kind}'
    yield (f'smallest prefix of the ranking with faithfulness'
           f' {prefix["target"]:g}',
           f'{prefix[kind]:,} of {candidates}' if prefix[kind] >= 0 else
           f'none: all {candidates} together do not reach it')


def _pictures(found: Record) -> Iterator[document.Plot]:
  """The circuit's chart, and bars by layer for records without a summary."""
  summary = found.get('summary')
  if not summary:
    yield from _layer_bars(found)
    return
  yield document.Plot(
      'circuit', circuit_picture.draw(f'Circuit of {name(found)}', summary),
      _caption(found, summary))
  if token_roles := summary.get('token_roles'):
    yield document.Plot(
        'token_roles',
        token_role_chart.draw('Scores by layer and token role', token_roles),
        'Sum of the scores of all heads, and of all neurons, of a layer, in the'
        ' circuit or not, by the token at which they act. Changed tokens: from'
        ' the first to the last token that differs between the clean and the'
        ' corrupted prompt (the subject, in prompts about facts). Last token:'
        ' the model predicts the answer there. Areas are |sums| on one scale.')


def _layer_bars(found: Record) -> Iterator[document.Plot]:
  for kind, n in found['nodes'].items():
    if n:
      nodes = kind.replace('_', ' ')
      bars = [svg.Bar(layer - 0.4, layer + 0.4, count)
              for layer, count in enumerate(found['by_layer'][kind])]
      yield document.Plot(f'circuit_{kind}', svg.bar_chart(
          f'Circuit by layer: {nodes}', bars, x_label='layer',
          y_label=f'number of {nodes}', integers=True),
                          f'The circuit\'s {n:,} {nodes} by layer.')


def _caption(found: Record, summary: Record) -> str:
  text = ('Mark areas are |scores|, on one scale for heads and another for'
          ' MLPs; colours are signs.')
  if 'edges' in summary:
    drawn = len(summary['edges'])
    which = 'All' if drawn == found['edges'] else (
        f'The {drawn} edges of largest |score| among')
    return text + (f' {which} {found["edges"]:,} edges are drawn, wider and'
                   ' darker with larger |score|: through the heads, or below'
                   ' the MLPs where neither end is a head.')
  if found['level'] == 'head':
    text += (' MLPs are no candidates at this level; a ring is the summed'
             ' |score| of all neurons of an MLP.')
  elif any(summary['mlp']['neurons']):
    text += (' An MLP\'s ring is the summed |score| of all its neurons; its'
             ' disc is that of its neurons in the circuit, coloured by the sign'
             ' of their sum. Bars count these neurons.')
  if not any(map(any, summary['heads']['held'])):
    text += ' The circuit contains no head.'
  return text


def _faithfulness_plot(found: Record) -> Iterator[document.Plot]:
  random = found.get('random')
  if found.get('faithfulness') is None or not random:
    return
  rows = [svg.Row('this circuit', [svg.Dot(found['faithfulness'])]),
          svg.Row('random, mean', [svg.Dot(random['mean'], style='null')]),
          svg.Row('random, maximum', [svg.Dot(random['max'], style='null')])]
  chart = svg.dot_chart(
      'Faithfulness', rows, label='share of the behaviour',
      rules=[svg.Rule(0.0, 'none'), svg.Rule(1.0, 'all')], width=svg.NARROW)
  yield document.Plot('faithfulness', chart, _patching(found))


def _patching(found: Record) -> str:
  """What the patched run corrupts."""
  if has_edges_only(found):
    return ('Share of the behaviour that remains when every edge outside the'
            ' circuit carries its value from the corrupted prompt.')
  return ('Share of the behaviour that remains when all candidate nodes outside'
          ' the circuit get their activations from the corrupted prompt.'
          + _NOT_PATCHED.get(found['level'], '')
          + _KV * ('kv_heads' in found['nodes']))


def largest(record: Record) -> document.Section:
  """The circuit's largest scores, by name."""
  found = record['circuit']
  kind = 'edge' if found['level'] == 'edge' else 'node'
  names = ('a3.h0<q> is the query input of that head' if kind == 'edge' else
           'm3.n7 is neuron 7 of that MLP, and a3.kv0 is key/value head 0 of'
           ' layer 3')
  rows = tuple(
      (entry['name'], words.significant(entry['score'], 4),
       words.percent(entry['resamples'])) for entry in found['largest'])
  return document.Section('Largest scores', (document.Table(
      (kind, 'score', 'selected in resamples'), rows,
      caption=f'The {kind}s of the circuit with the largest |score|, the'
      ' estimated effect on the metric (difference of logits). A positive score'
      ' supports the right answer. Selected in resamples: share of the'
      f' resamples of facts whose circuit contains the {kind}. m3 is the MLP of'
      f' layer 3, a3.h0 is attention head 0 of layer 3, {names}.'),))
