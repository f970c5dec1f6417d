"""Controls of the hidden share, retain terms alone, and attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import pathlib

from experiments.tables import cells
from experiments.tables import quickstart
from experiments.tables import stored
from mansu_jax.report import words
from mansu_jax.statistics import gaps

_PRECISIONS = ('fp', 'nf4')
# Row -> the stored run. The first has nothing to hide; the next three hide by
# construction.
_CONTROLS = {
    'never taught': 'controls/never_taught',
    'layers 24 to 29, NPO': 'controls/last_layers',
    'attention of layers 20 to 23': 'controls/attention',
    'MLPs of layers 13 to 22': 'controls/mlps',
    'quickstart': 'quickstart', 'retain terms alone': 'retain_only'}
_GATES = {  # Gate -> its head.
    'base_quantized': 'quantized base', 'noise': 'noise of the same norm',
    'retained': 'retained facts', 'another_fact': "other facts' states"}
_ATTACKED = {
    'quickstart': 'quickstart', 'former quickstart, long': 'attacks',
    'never taught': 'controls/never_taught'}
_FORMER, _RETAIN_ONLY = 'former', 'retain_only'  # Its retain terms, alone.
_SPLITS = {'retain_heldout': 'held-out facts', 'retain': 'retained facts'}


def _runs(results: pathlib.Path, names: dict[str, str]) -> dict[
    str, stored.Run]:
  """The least stored seed of each, by row; absent ones left out."""
  found = {row: stored.find(results, name) for row, name in names.items()}
  return {row: runs[0] for row, runs in found.items() if runs}


def controls(results: pathlib.Path) -> str:
  """Hidden share and gates, by edit."""
  runs = _runs(results, _CONTROLS)
  rows = [(name, *_hidden_cells(run.record)) for name, run in runs.items()]
  table = cells.table(
      ('edit', 'right, fp', 'hidden share, fp', 'quantized', 'left, fp',
       'itself, fp', 'at the end, fp', 'after the block, fp',
       'attention alone, fp', 'base with its values, fp', *_GATES.values(),
       'gates hold', 'F', 'S'), rows)
  return cells.blocks(table, cells.code(runs.values()))


def _hidden_cells(record: stored.Record) -> Iterator[str]:
  """Own share, hidden shares and gates of one edit."""
  found = record['structure']
  shares, gates = found.get('hidden_share', {}), found.get('gates', {})
  yield cells.number(
      record['forgetting']['choice_unseen']['unlearned']['fp']['value'])
  scheme = next((p for p in shares if p != 'fp'), None)
  yield from (cells.estimate(shares.get(p)) for p in ('fp', scheme))
  yield cells.estimate(shares.get('fp', {}).get('left'))
  after = f'after_{found.get("mover_layer")}'
  yield from (cells.number(shares.get('fp', {}).get(name)) for name in (
      'own', 'block', after, 'looks', 'values'))
  yield from (cells.estimate(gates.get(gate)) for gate in _GATES)
  failed = [name.replace('_', ' ') for name, gate in gates.items()
            if gate['holds'] is not True]
  yield f'no: {", ".join(failed)}' if failed else 'yes' if gates else cells.NONE
  for letter in 'FS':
    yield words.verdict(record['properties'][letter]['passed'])


def retain_only(results: pathlib.Path) -> str:
  """What training on retained facts alone gains, beside a forget term."""
  ours = {run.seed: run for run in stored.find(results, _FORMER)}
  theirs = {run.seed: run for run in stored.find(results, _RETAIN_ONLY)}
  both = sorted(ours.keys() & theirs.keys())
  if not both:
    return cells.NOTHING
  run, control = ours[both[0]], theirs[both[0]]
  rows = []
  for split, label in _SPLITS.items():
    for p in _PRECISIONS:
      rows.append((
          f'{label}, {cells.precision(p)}', *(
              cells.estimate(_drop(one, split, p), 3, True)
              for one in (run, control)),
          cells.estimate(_more_lost(run, control, split, p), 3, True)))
  for p in _PRECISIONS:
    rows.append((f'perplexity, {cells.precision(p)}', *(
        cells.change(*(one.record['perplexity'][model][p]
                       for model in reversed(stored.MODELS)))
        for one in (run, control)), ''))
  return cells.blocks(cells.table(
      ('', 'former quickstart', 'retain terms alone', 'difference'), rows),
                      cells.code((run, control)))


def _drop(run: stored.Run, split: str, precision: str) -> stored.Record:
  """Accuracy drop from the base, as in the record."""
  found = run.record['properties']['R']
  key = 'by_precision' if split == 'retain_heldout' else 'trained'
  return found[key][precision]


def _more_lost(
    run: stored.Run, control: stored.Run, split: str, precision: str
) -> stored.Record:
  """What the run loses beyond the control, question by question."""
  right = [{line['id']: line for line in one.split(split)}
           for one in (run, control)]
  if right[0].keys() != right[1].keys():
    raise ValueError(
        f'{run.folder} and {control.folder} answer different questions of'
        f' {split}; wanted the same. Run both with the same data, seed and'
        ' numbers of questions.')
  ids = list(right[0])
  ours, theirs = (
      stored.right([own[i] for i in ids], 'unlearned', precision)
      for own in right)
  return gaps.mean_difference(
      theirs - ours, stored.facts([right[0][i] for i in ids]), largest=1.0,
      **quickstart.options([run])).record()


def attacks(results: pathlib.Path) -> str:
  """Accuracy on facts that an attack does not teach, before and after."""
  runs = _runs(results, _ATTACKED)
  rows = []
  for name, run in runs.items():
    for attack, by_precision in run.record.get('attacks', {}).items():
      unknown = run.record.get('attacks_unknown', {}).get(attack, {})
      for p, steps in by_precision.items():
        rows.append((name, attack, cells.precision(p), *_attack_cells(steps),
                     *_attack_cells(unknown.get(p, ()))))
  table = cells.table(
      ('run', 'attack', 'precision', 'untaught facts, before', 'best',
       'at step', 'facts never known, before', 'best', 'at step'), rows, 3)
  worst = [(name, *_worst_cells(run.record['attack_verdict']))
           for name, run in runs.items()
           if 'attack' in run.record.get('attack_verdict', {})]
  return cells.blocks(table, cells.table(
      ('run', 'worst comparison', 'gain', 'gain on facts never known',
       'difference', 'lower bound over all comparisons'), worst, 2),
                      cells.code(runs.values()))


def _worst_cells(found: stored.Record) -> Iterator[str]:
  """The comparison that decides, and its bound."""
  yield (f'{found["attack"]}, {cells.precision(found["precision"])}, step'
         f' {found["step"]}')
  for key in ('gain', 'gain_unknown', 'difference'):
    yield cells.estimate(found[key], 3, True)
  yield cells.signed((found['difference'] or {}).get('lower_of_all'))


def _attack_cells(steps: Sequence[stored.Record]) -> Iterator[str]:
  """Accuracy and guesses before the attack, and of the best step.

  The best step is the one at which most is known.
  """
  if not steps:
    yield from (cells.NONE,) * 3
    return
  best = max(steps[1:] or steps, key=lambda found: found['known'])
  for found in (steps[0], best):
    yield f'{cells.estimate(found)}, guessing {cells.number(found["guessed"])}'
  yield str(best['step'])
