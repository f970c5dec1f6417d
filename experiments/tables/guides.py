"""Tables of the guides: families, stability of circuits, plans, deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import json
import pathlib

from experiments.tables import cells
from experiments.tables import stored
from mansu_jax.report import words

_GIB = 2**30
# Folders of the circuits whose stability is shown.
_CIRCUITS = ('stability/nodes', 'stability/neurons', 'stability/edges')
_PHRASINGS = {'near': 'near phrasings', 'far': 'far phrasings'}
# Columns of the deployment check, with the questions that they are about.
_ANSWERED = {
    'far, usual choices': 'forget_far', 'unseen choices': 'forget_unseen',
    'reverse': 'forget_reverse', 'held-out': 'retain_heldout'}


def stability(results: pathlib.Path) -> str:
  """Which circuit other facts and phrasings select; a column per circuit."""
  runs = [stored.Run(results / name) for name in _CIRCUITS
          if (results / name / 'record.json').is_file()]
  if not runs:
    return cells.NOTHING
  columns = [dict(_stability_cells(run.record['circuit'])) for run in runs]
  table = cells.table(
      ('', *(_circuit(run.record) for run in runs)),
      ((row, *(column[row] for column in columns)) for row in columns[0]))
  return cells.blocks(table, cells.code(runs))


def _circuit(record: stored.Record) -> str:
  """Size and layers of a circuit."""
  found, config = record['circuit'], record['config']['circuit']
  if found['level'] == 'edge':
    return f'{found["edges"]} of {found["candidates"]:,} edges'
  sizes = words.listing([
      f'{len(nodes):,} {name.replace("_", " ")}' if isinstance(nodes, list)
      else f'{nodes:,} {name.replace("_", " ")}'
      for name, nodes in found['nodes'].items()])
  return (f'{sizes}, {cells.percent(found["share_of_weights"])} of the weights,'
          f' layers {config["first_layer"]} to {config["last_layer"]}')


def _stability_cells(found: stored.Record) -> Iterator[tuple[str, str]]:
  """Rows of one circuit: shares selected again, then faithfulness."""
  again = found['stability']
  drawn = lambda entry: cells.estimate(entry | {'value': entry['mean']})
  yield 'share selected again: resampled facts', drawn(
      again['resamples']['kept'])
  yield 'disjoint halves of the facts', drawn(again['halves']['kept'])
  for name, label in _PHRASINGS.items():
    yield label, cells.estimate(again['phrasings'][name]['kept'])
  yield 'random circuits', drawn(again['random']['kept'])
  halves = again['halves']
  yield 'faithfulness: on its own pairs', cells.estimate(
      halves['own_faithfulness'])
  yield 'circuit of the other half', cells.estimate(halves['faithfulness'])
  yield 'random circuits there', cells.number(found['random']['mean'])
  for name, label in _PHRASINGS.items():
    entry = again['phrasings'][name]
    yield f'on {label}', cells.estimate(entry['faithfulness'])
    yield f'random circuits on {label}', cells.estimate(
        entry['random_faithfulness'])


def plans(results: pathlib.Path) -> str:
  """Memory and seconds of planned runs; of `plans.json`, see `planned`."""
  return _of_file(results / 'plans.json', planned)


def planned(found: stored.Record) -> str:
  """Memory and seconds of planned runs, by model and devices.

  Args:
    found: what `experiments.plan_table` writes.
  """
  rows = []
  names = tuple(found['plans'][0]['stages'])
  for plan in found['plans']:
    stages = plan['stages']
    rows.append((
        plan['model'], plan['topology'], ', '.join(plan['schemes']),
        cells.number(plan['memory'] / _GIB), *(
            cells.number(stages[name]['bytes'] / _GIB, 1) for name in names),
        'yes' if plan['fits'] else 'no',
        cells.number(plan['seconds_of_a_step']),
        cells.number(sum(s['seconds'] for s in stages.values()), 0)))
  environment = found['environment']
  return cells.blocks(cells.table(
      ('model', 'devices', 'schemes', 'GiB of each', *names, 'fits',
       's a step', 's in all'), rows, 3),
                      f'Code: {environment["commit"][:7]}; libtpu'
                      f' {environment["libtpu"]}.')


def families(results: pathlib.Path) -> str:
  """Errors of the model families; of `family_parity.json`, see `measured`."""
  return _of_file(results / 'family_parity.json', measured)


def measured(found: stored.Record) -> str:
  """Errors of the model families against references; a row each.

  Args:
    found: what `experiments.family_parity` writes.
  """
  rows = [(
      name, str(entry['cases']), *(
          f'{entry[key]:.0e}' for key in (
              'logits', 'padding', 'gradients', 'scores')),
      *(cells.percent(entry[key]) for key in ('bfloat16', 'bfloat16_of_torch')),
      str(entry['nf4_differing'])) for name, entry in found['families'].items()]
  environment = found['environment']
  return cells.blocks(cells.table(
      ('family', 'forms', 'logits', 'logits, padded', 'gradients', 'scores',
       'bfloat16', 'the same, torch', 'NF4 weights that differ'), rows),
                      f'Code: {environment["commit"][:7]}; torch'
                      f' {environment["torch"]}, transformers'
                      f' {environment["transformers"]}, bitsandbytes'
                      f' {environment["bitsandbytes"]}.')


def tofu(results: pathlib.Path) -> str:
  """Models of the TOFU benchmark; of `tofu.json`, see `benchmarked`."""
  return _of_file(results / 'tofu.json', benchmarked)


def benchmarked(found: stored.Record) -> str:
  """Measures of the TOFU benchmark; a row per model and precision.

  Args:
    found: what `experiments.tofu measure` writes.
  """
  rows = [(
      f'{name}, {cells.precision(p)}', f'{one["forget_p"]:.1e}', *(
          cells.number(one[key]) for key in (
              'forget_ks', 'forget_truth_ratio', 'utility',
              'forget_probability', 'retain_probability', 'forget_rouge',
              'retain_rouge')))
          for name, by_precision in found['models'].items()
          for p, one in by_precision.items()]
  commit = found['environment']['commit']
  asked_by = {one.get('commit') or commit for by_precision in found[
      'models'].values() for one in by_precision.values()}
  earlier = sorted(one[:7] for one in asked_by - {commit})
  asked = f'; asked in part by {words.listing(earlier)}' if earlier else ''
  return cells.blocks(cells.table(
      ('model', 'forget quality, p', 'KS', 'forget truth ratio', 'utility',
       'probability, to forget', 'to keep', 'ROUGE-L, to forget', 'to keep'),
      rows), f'Code: {commit[:7]}{asked}.')


def deployment(results: pathlib.Path) -> str:
  """Answers of a model in use; of `deployment.json`, see `deployed`."""
  return _of_file(results / 'deployment.json', deployed)


def deployed(found: stored.Record) -> str:
  """Simulated and real answers of a model; a row per quantizer.

  Args:
    found: what `mansu_jax.deployment.check` writes.
  """
  both = lambda entry: f'{entry["simulated"]:.2f} / {entry["real"]:.2f}'
  rows = []
  for name, scheme in found['schemes'].items():
    weights, rounded = scheme['weights'], scheme.get('rounded_activations')
    rows.append((
        name, *(
            both(scheme['accuracy'][split]) for split in _ANSWERED.values()),
        f'{len(scheme["differing"])} of {scheme["n"]:,}',
        cells.NONE if weights is None else f'{weights["differing"]:,}',
        cells.estimate(scheme['difference'], 3, True),
        cells.estimate(rounded and rounded['difference'], 3, True)))
  versions = ', '.join(
      f'{name} {version}' for name, version in found['versions'].items())
  return cells.blocks(cells.table(
      ('scheme', *_ANSWERED, 'answers that differ', 'weights that differ',
       'real - simulated', 'the same, activations in 8 bits'), rows),
                      f'Code: {found["environment"]["commit"][:7]};'
                      f' {versions}.')


def _of_file(
    path: pathlib.Path, make: Callable[[stored.Record], str]) -> str:
  """The table of a file of figures, if it is stored."""
  if not path.is_file():
    return cells.NOTHING
  return make(json.loads(path.read_text('utf-8')))
