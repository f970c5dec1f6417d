"""Which tables there are, and their blocks in the pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import pathlib
import re

from experiments.tables import ablations
from experiments.tables import controls
from experiments.tables import guides
from experiments.tables import lab
from experiments.tables import pooled
from experiments.tables import premise
from experiments.tables import quickstart

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ('README.md', 'experiments/RESULTS.md', 'docs/attribution.md',
         'docs/data.md', 'docs/deployment.md', 'docs/scaling.md')
TABLES: Mapping[str, Callable[[pathlib.Path], str]] = {
    'screen': quickstart.screen, 'first': quickstart.first,
    'quickstart': quickstart.quickstart,
    'premise': premise.premise, 'controls': controls.controls,
    'retain_only': controls.retain_only, 'attacks': controls.attacks,
    'test': pooled.test, 'ablations': ablations.ablations,
    'former_defaults_test': functools.partial(
        pooled.test, relations=pooled.FORMER_DEFAULTS),
    'former_test': functools.partial(pooled.test, relations=pooled.FORMER),
    'lab': lab.lab, 'families': guides.families,
    'stability': guides.stability, 'plans': guides.plans,
    'tofu': guides.tofu, 'deployment': guides.deployment}
_BLOCK = re.compile(
    r'^<!-- table: (\w+) -->\n(.*?)^<!-- end -->$', re.DOTALL | re.MULTILINE)


def pages() -> list[pathlib.Path]:
  """The pages that have tables."""
  return [ROOT / name for name in PAGES]


def blocks(text: str) -> dict[str, str]:
  """The tables of a page as they stand, by name.

  Args:
    text: of the page, with tables between `<!-- table: NAME -->` and
      `<!-- end -->`.

  Raises:
    ValueError: a name is unknown or occurs twice, or a block has no end.
  """
  found = _BLOCK.findall(text)
  names = [name for name, _ in found]
  started = re.findall(r'^<!-- table: (.*?) -->', text, re.MULTILINE)
  if started != names or len(set(names)) < len(names):
    raise ValueError(
        f'The page begins the tables {started} and has the whole blocks'
        f' {names}; wanted each once, each with `<!-- end -->` on a line of'
        ' its own. Correct the comments.')
  if unknown := set(names) - set(TABLES):
    raise ValueError(
        f'The page has the tables {sorted(unknown)}; wanted some of'
        f' {list(TABLES)}. Correct the names.')
  return {name: body.strip('\n') for name, body in found}


def replaced(text: str, tables: Mapping[str, str]) -> str:
  """The page with other tables in its blocks.

  Args:
    text: of the page.
    tables: the new ones by name. Blocks of other names stay.
  """
  blocks(text)

  def block(match: re.Match[str]) -> str:
    name = match[1]
    return match[0] if name not in tables else (
        f'<!-- table: {name} -->\n{tables[name]}\n<!-- end -->')

  return _BLOCK.sub(block, text)
