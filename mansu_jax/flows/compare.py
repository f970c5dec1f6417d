"""`--mode=compare`: several methods on one model and data, in one table.

A *cell* is the run of one method with one seed. It is an ordinary run in
WORKDIR/METHOD/sSEED, with the flags of the command and those of the method's
flagfile. A stopped comparison resumes; finished cells are read.
"""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
from typing import Any

from absl import logging

from mansu_jax.config import fields
from mansu_jax.config import run as run_config
from mansu_jax.flows import cells as cells_lib
from mansu_jax.models.io import loading
from mansu_jax.report import table
from mansu_jax.runtime import files
from mansu_jax.runtime import processes
from mansu_jax.runtime import workdir
from mansu_jax.stages.judge import differences
from mansu_jax.unlearn import loop

# Keys of a record whose figures have a precision.
_FIGURES = ('accuracy', 'forgetting', 'ptq_gap', 'ptq_gap_base',
            'ptq_gap_adjusted', 'perplexity', 'survival', 'attacks')


@workdir.locked
def run(config: run_config.RunConfig) -> str:
  """Runs every cell, and compares their records.

  Writes `table.md` and `table.json` after each cell. At the end the former also
  gets the differences of all methods from the first one, and
  `differences.json` holds them.

  Args:
    config: the configuration of a run in compare mode.

  Returns:
    The tables in Markdown, and a line for each cell that diverged or whose
    model collapsed.

  Raises:
    ValueError: bad input. Flags are checked before any long work.
  """
  cells = list(_cells(config))
  root = workdir.open_workdir(config, {
      path: loading.sha256([path]) for path in config.compare.flagfiles})
  records, failed = {}, {}
  for number, cell in enumerate(cells, 1):
    logging.info('Cell %d of %d: %s, seed %d', number, len(cells), cell.name,
                 cell.config.seed)
    try:
      records[cell] = cells_lib.record(cell)
    except loop.DivergedError as error:
      logging.warning('%s: %s', cell.root, error)
      failed[cell] = str(error)
    text = _text(cells, records, failed)
    processes.broadcast_from_primary(
        lambda text=text: files.write_text(root / 'table.md', text))
    processes.broadcast_from_primary(lambda: files.write_json(
        root / 'table.json', [
            row for cell in cells[:number] for row in _rows(
                cell, records.get(cell), failed.get(cell))]))
  found = processes.broadcast_from_primary(lambda: _differences(records))
  if found:
    text += '\n' + table.differences(found, next(iter(records)).name)
    processes.broadcast_from_primary(
        lambda: files.write_text(root / 'table.md', text))
  processes.broadcast_from_primary(
      lambda: files.write_json(root / 'differences.json', found))
  return text


def _differences(
    records: dict[cells_lib.Cell, dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """`{method: {measure: estimate}}` of all methods but the first finished one.

  Seeds count that both methods have finished.
  """
  by_method: dict[str, dict[int, differences.Run]] = {}
  for cell in records:
    by_method.setdefault(cell.name, {})[cell.config.seed] = (
        differences.read(cell.root))
  (_, reference), *others = by_method.items() or [('', {})]
  found = {}
  for method, runs in others:
    if seeds := sorted(runs.keys() & reference.keys()):
      try:
        found[method] = differences.between(
            *([side[seed] for seed in seeds] for side in (runs, reference)))
      except ValueError as error:
        logging.warning('No differences of %s: %s', method, error)
  p_values = differences.adjusted(found)
  return {method: {
      measure: one.estimate.record() | {
          'p_value': one.p_value, 'p_adjusted': p_values[method][measure]}
      for measure, one in of.items()} for method, of in found.items()}


def _cells(config: run_config.RunConfig) -> Iterator[cells_lib.Cell]:
  """The cells, seed by seed; their flags are checked."""
  fields.check(
      bool(config.compare.flagfiles and config.workdir),
      f'--mode=compare has --compare_flagfiles='
      f'{",".join(config.compare.flagfiles)} and --workdir={config.workdir};'
      ' wanted both. Give a flagfile for each method, and a folder.')
  for seed in range(config.seed, config.seed + config.compare.seeds):
    for path in config.compare.flagfiles:
      name = pathlib.Path(path).stem
      yield cells_lib.make(
          config, name, f'{name}/s{seed}', f'--flagfile={path}',
          f'--seed={seed}', where=path)


def _rows(
    cell: cells_lib.Cell, record: dict[str, Any] | None, error: str | None
) -> Iterator[dict[str, Any]]:
  """The rows of `table.json` of a cell: one a precision, with its figures.

  Args:
    cell: the cell.
    record: its record; None if it diverged.
    error: why it diverged.
  """
  row = {
      'method': cell.name, 'seed': cell.config.seed,
      'data': '+'.join(pathlib.PurePath(path.removeprefix('shipped:')).stem
                       for path in cell.config.data.forget),
      'workdir': f'{cell.name}/{cell.root.name}', 'diverged': error}
  if record is None:
    yield row | {'precision': None}
    return
  row['collapsed'] = cells_lib.collapsed(record)
  row['properties'] = record['properties']
  for precision in ('fp', *cell.config.quant_schemes):
    yield row | {'precision': precision} | {
        key: found for key in _FIGURES if (
            found := _at(record.get(key), precision)) is not None}


def _at(tree: Any, precision: str) -> Any:
  """The part of a tree of figures that is of a precision; None without any."""
  if not isinstance(tree, dict):
    return None
  if precision in tree:
    return tree[precision]
  found = {name: _at(part, precision) for name, part in tree.items()}
  return {name: part for name, part in found.items()
          if part is not None} or None


def _text(
    cells: list[cells_lib.Cell], records: dict[cells_lib.Cell, dict[str, Any]],
    failed: dict[cells_lib.Cell, str]) -> str:
  """The tables of the finished cells, and what went wrong with others."""
  names = list(dict.fromkeys(cell.name for cell in cells))
  rows = sorted(records, key=lambda cell: names.index(cell.name))
  found = rows and table.compare(
      [records[cell] for cell in rows], [cell.name for cell in rows]) or ''
  notes = [f'- {cell.name}, seed {cell.config.seed}, has no row: {error}'
           for cell, error in failed.items()]
  notes += [f'- {cell.name}, seed {cell.config.seed}, collapsed: it answers'
            ' less than half of the facts to keep that the base does.'
            for cell in rows if cells_lib.collapsed(records[cell])]
  return '\n'.join([found, *notes, '']) if notes else found
