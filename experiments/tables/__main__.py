"""Prints, writes and stores; see the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys

import experiments.tables
from experiments.tables import pages
from experiments.tables import rejudge
from experiments.tables import stored


def main(argv: Sequence[str]) -> int:
  """Runs a command; 0, or 2 for an error of the user."""
  try:
    if argv[:1] == ['store']:
      _store(argv[1:])
    elif argv[:1] == ['rejudge']:
      _rejudge(argv[1:])
    else:
      _tables(argv)
  except ValueError as error:
    print(f'experiments.tables: {error}', file=sys.stderr)
    return 2
  return 0


def _store(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser('experiments.tables store')
  parser.add_argument('run', type=pathlib.Path, help='workdir of a run')
  parser.add_argument('dest', type=pathlib.Path, help='folder to store it in')
  options = parser.parse_args(argv)
  stored.store(options.run, options.dest)


def _rejudge(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser('experiments.tables rejudge')
  parser.add_argument('folders', type=pathlib.Path, nargs='+', metavar='FOLDER',
                      help='folder of a stored run')
  rejudge.rejudge(parser.parse_args(argv).folders)


def _tables(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
      'experiments.tables', description=experiments.tables.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='*', metavar='NAME',
                      help=f'one of {", ".join(pages.TABLES)}')
  parser.add_argument('--write', action='store_true',
                      help='put the tables into the pages')
  options = parser.parse_args(argv)
  if unknown := set(options.names) - set(pages.TABLES):
    raise ValueError(
        f'There is no table {", ".join(sorted(unknown))}; wanted some of'
        f' {", ".join(pages.TABLES)}, `store` or `rejudge`.')
  names = options.names or list(pages.TABLES)
  if not options.write:
    for name in names:
      print(f'{name}\n\n{pages.TABLES[name](stored.RESULTS)}\n')
    return
  for page in pages.pages():
    text = page.read_text(encoding='utf-8')
    wanted = [name for name in pages.blocks(text) if name in names]
    page.write_text(pages.replaced(text, {
        name: pages.TABLES[name](stored.RESULTS) for name in wanted}),
                    encoding='utf-8')
    print(f'{page.relative_to(pages.ROOT)}: {", ".join(wanted) or "none"}')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
