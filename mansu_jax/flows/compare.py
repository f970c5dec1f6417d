"""`--mode=compare`: several methods on one model and data, in one table.

A *cell* is the run of one method with one seed. It is an ordinary run in
WORKDIR/METHOD/sSEED, with the flags of the command and those of the method's
flagfile. A stopped comparison resumes; finished cells are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import pathlib
from typing import Any

from absl import logging

from mansu_jax.config import fields
from mansu_jax.config import run as run_config
from mansu_jax.flows import cells as cells_lib
from mansu_jax.models.io import loading
from mansu_jax.report import comparison
from mansu_jax.report import markdown
from mansu_jax.report import table
from mansu_jax.report import write as report_lib
from mansu_jax.runtime import files
from mansu_jax.runtime import processes
from mansu_jax.runtime import workdir
from mansu_jax.stages.judge import differences
from mansu_jax.unlearn import loop

# Keys of a record whose figures have a precision.
_FIGURES = ('accuracy', 'forgetting', 'ptq_gap', 'ptq_gap_base',
            'ptq_gap_adjusted', 'perplexity', 'survival', 'attacks')
_OF_THE_RUN = ('properties', 'structure', 'cad', 'as_nc', 'stages')


@workdir.locked
@cells_lib.compiled_once()
def run(config: run_config.RunConfig) -> str:
  """Runs every cell, and compares their records.

  Writes `table.md`, `table.json` and a report after each cell. At the end table
  and report also get the differences of all methods from the first one, and
  `differences.json` holds them.

  Args:
    config: the configuration of a run in compare mode.

  Returns:
    The tables in Markdown, and a line for each cell that diverged or whose
    model collapsed.

  Raises:
    ValueError: bad input, found before any long work.
  """
  checked = cells_lib.check(processes.raise_on_all(lambda: _cells(config)))
  root = workdir.open_workdir(config, {
      path: loading.sha256([path]) for path in config.compare.methods.values()})
  records, failed = {}, {}
  for number, cell in enumerate(checked.cells, 1):
    logging.info('Cell %d of %d: %s, seed %d', number, len(checked.cells),
                 cell.name, cell.config.seed)
    try:
      records[cell] = cells_lib.record(checked, cell)
    except loop.DivergedError as error:
      logging.warning('%s: %s', cell.root, error)
      failed[cell] = str(error)
    _write(root, config, records, failed, checked.cells[:number], None)
  first, *_ = config.compare.methods
  found = processes.broadcast_from_primary(
      lambda: _differences(first, records))
  return _write(root, config, records, failed, checked.cells, found)


def _write(
    root: pathlib.Path, config: run_config.RunConfig,
    records: Mapping[cells_lib.Cell, dict[str, Any]],
    failed: Mapping[cells_lib.Cell, str], done: Sequence[cells_lib.Cell],
    found: dict[str, Any] | None) -> str:
  """Writes the tables and the page; returns the tables in Markdown.

  Args:
    root: the workdir.
    config: of the comparison.
    records: of the finished cells.
    failed: why others diverged.
    done: both, in order.
    found: from `_differences`; None before the end.
  """
  first, *others = config.compare.methods
  by_method = {name: [records[cell] for cell in records if cell.name == name]
               for name in (first, *others)}
  notes = _notes(done, records, failed)
  if others and found == {}:  # pylint: disable=g-explicit-bool-comparison
    notes.append(f'No differences: {first} and the others have no seed in'
                 ' common that both have finished without a collapse.')
  tables = table.tables(
      [record for own in by_method.values() for record in own],
      [name for name, own in by_method.items() for _ in own]) if records else []
  less_first = comparison.differences(found, first) if found else None
  listed = ''.join(f'- {note}\n' for note in notes)
  text = '\n'.join(part for part in (
      *(f'{markdown.table(one)}\n' for one in tables), listed,
      less_first and f'{markdown.table(less_first)}\n') if part)

  def write():
    files.write_text(root / 'table.md', text)
    files.write_json(root / 'table.json', [
        row for cell in done
        for row in _rows(cell, records.get(cell), failed.get(cell))])
    files.write_json(root / 'differences.json', found or {})
    if records:
      report_lib.write_report(comparison.make_report(
          by_method, tables, notes, less_first), root)

  processes.broadcast_from_primary(write)
  return text


def _notes(
    done: Sequence[cells_lib.Cell],
    records: Mapping[cells_lib.Cell, dict[str, Any]],
    failed: Mapping[cells_lib.Cell, str]) -> list[str]:
  """What went wrong, a sentence each."""
  return [f'{cell.name}, seed {cell.config.seed}, has no row: {error}'
          for cell, error in failed.items()] + [
              f'{cell.name}, seed {cell.config.seed}, collapsed: it answers'
              ' less than half of the held-out facts that the base does.'
              for cell in done if cell in records and table.collapsed(
                  records[cell])]


def _differences(
    first: str, records: dict[cells_lib.Cell, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
  """`{method: {measure: estimate}}` of all methods less the first one.

  Seeds count that both methods have finished without a collapse.
  """
  by_method: dict[str, dict[int, differences.Run]] = {first: {}}
  for cell, record in records.items():
    if not table.collapsed(record):
      by_method.setdefault(cell.name, {})[cell.config.seed] = (
          differences.read(cell.root))
  found, reference = {}, by_method.pop(first)
  for method, runs in by_method.items():
    if seeds := sorted(runs.keys() & reference.keys()):
      found[method] = differences.between(
          *([side[seed] for seed in seeds] for side in (runs, reference)))
  p_values = differences.adjusted(found)
  return {method: {
      measure: one.estimate.record() | {
          'p_value': one.p_value, 'p_adjusted': p_values[method][measure]}
      for measure, one in of.items()} for method, of in found.items()}


def _cells(config: run_config.RunConfig) -> list[cells_lib.Cell]:
  """The cells, seed by seed; their flags are checked."""
  fields.check(
      bool(config.compare.flagfiles and config.workdir),
      f'--mode=compare has --compare_flagfiles='
      f'{",".join(config.compare.flagfiles)} and --workdir={config.workdir};'
      ' wanted both. Give a flagfile for each method, and a folder.')
  return [
      cells_lib.make(config, name, f'{name}/s{seed}', f'--flagfile={path}',
                     seed=seed, where=path)
      for seed in range(config.seed, config.seed + config.compare.seeds)
      for name, path in config.compare.methods.items()]


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
  row['collapsed'] = table.collapsed(record)
  row |= {key: record.get(key) for key in _OF_THE_RUN}
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
