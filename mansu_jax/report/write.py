"""A record -> `record.json`, `report.md`, `report.html` and `plots/`."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from mansu_jax import files
from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import measures
from mansu_jax.report import page
from mansu_jax.report import properties
from mansu_jax.report import provenance
from mansu_jax.report import structure
from mansu_jax.report import words


def write(record: dict[str, Any], root: pathlib.Path) -> None:
  """Writes a run's record and its report.

  A figure that is not finite becomes null in `record.json`, which is strict
  JSON, and its place is listed under `not_finite`.

  Args:
    record: as `stages.results.make_record` makes it.
    root: an existing folder.
  """
  record = as_json(record)
  files.write_json(root / 'record.json', record)
  report = make_report(record)
  (root / 'plots').mkdir(exist_ok=True)
  for plot in report.plots():
    files.write_text(root / 'plots' / f'{plot.name}.svg', plot.svg)
  files.write_text(root / 'report.md', markdown.render(report))
  files.write_text(root / 'report.html', page.render(report))


def as_json(record: dict[str, Any]) -> dict[str, Any]:
  """The record as a reader of `record.json` will find it."""
  places: list[str] = []
  clean = _finite(record, '', places)
  if places:
    clean['not_finite'] = places
  return json.loads(json.dumps(clean, allow_nan=False))


def _finite(value: Any, place: str, places: list[str]) -> Any:
  if isinstance(value, dict):
    return {k: _finite(v, f'{place}/{k}', places) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(v, f'{place}/{i}', places) for i, v in enumerate(value)]
  if isinstance(value, float) and not math.isfinite(value):
    places.append(place.removeprefix('/'))
    return None
  return value


def make_report(record: dict[str, Any]) -> document.Report:
  """The report's content, from a record in its JSON form."""
  config, model = record['config'], record['model']
  state = record['verdict']['passed']
  title = (f'Unlearning {words.verdict(state)}: {config["method"]} on'
           f' {model.get("name", config["model"])}, seed {config["seed"]}')
  sections = [
      document.Section('Four properties', (properties.cards(record),)),
      measures.accuracy(record), measures.gaps(record),
      measures.perplexity(record), measures.damage(record),
      structure.survival(record), structure.circuit(record),
      structure.training(record), structure.erasure(record),
      provenance.samples(record), *provenance.provenance(record)]
  if places := record.get('not_finite'):
    sections.insert(1, document.Section('Not finite', (document.Text(
        'These figures were infinite or not a number, and stand as not'
        f' measured below: {words.listing(places)}.'),)))
  return document.Report(
      title, state, properties.sentence(record), tuple(sections))
