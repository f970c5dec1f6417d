"""A record -> `record.json`, `report.md`, `report.html` and `plots/`."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from mansu_jax.report.sections import attribution
from mansu_jax.report.sections import audit
from mansu_jax.report.sections import circuit
from mansu_jax.report import document
from mansu_jax.report.sections import erasure
from mansu_jax.report import markdown
from mansu_jax.report.sections import measures
from mansu_jax.report.sections import movement
from mansu_jax.report import page
from mansu_jax.report.sections import properties
from mansu_jax.report.sections import provenance
from mansu_jax.report.sections import stability
from mansu_jax.report.sections import structure
from mansu_jax.report import words
from mansu_jax.runtime import files
from mansu_jax.runtime import processes


def write(record: dict[str, Any], root: pathlib.Path) -> None:
  """Writes a run's record and its report.

  A figure that is not finite becomes null in `record.json`, which is strict
  JSON, and its place is listed under `not_finite`. Of several processes the
  first writes, its own record; all must ask.

  Args:
    record: as `stages.results.make_record` makes it.
    root: an existing folder.
  """
  record = as_json(record)
  processes.broadcast_from_primary(lambda: _write(record, root))


def _write(record: dict[str, Any], root: pathlib.Path) -> None:
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
  if attribution.is_attribution(record):
    title, sections = attribution.title(record), _attribution(record)
    state, sentence = None, attribution.sentence(record)
  else:
    make = _audit if audit.is_audit(record) else _unlearning
    title, sections = make(record)
    state, sentence = record['verdict']['passed'], properties.sentence(record)
  if places := record.get('not_finite'):
    sections.insert(1, document.Section('Not finite', (document.Text(
        'These figures were infinite or not a number, and stand as not'
        f' measured below: {words.listing(places)}.'),)))
  return document.Report(title, state, sentence, tuple(sections))


def _properties(record: dict[str, Any]) -> document.Section:
  return document.Section('Four properties', (properties.cards(record),))


def _unlearning(
    record: dict[str, Any]) -> tuple[str, list[document.Section]]:
  """Title and sections of a run that unlearns."""
  config, model = record['config'], record['model']
  title = (f'Unlearning {words.verdict(record["verdict"]["passed"])}:'
           f' {config["method"]} on {model.get("name", config["model"])}, seed'
           f' {config["seed"]}')
  moved = [movement.movement] if 'movement' in record else []  # From 0.1 on.
  firm = [stability.section] if 'stability' in record['circuit'] else []
  makers = (
      _properties, measures.accuracy, measures.gaps, measures.perplexity,
      measures.damage, structure.survival, *moved, circuit.section, *firm,
      structure.training, erasure.erasure, provenance.samples)
  return title, [
      *(make(record) for make in makers), *provenance.provenance(record)]


def _audit(record: dict[str, Any]) -> tuple[str, list[document.Section]]:
  """The same of an audit, without sections on what was not measured."""
  asked, found = bool(record['accuracy']), bool(record['circuit'])
  makers = {
      measures.accuracy: asked, measures.gaps: bool(record['ptq_gap']),
      measures.perplexity: bool(record['perplexity']['unlearned']),
      measures.damage: asked, structure.survival: True,
      movement.movement: True, circuit.section: found,
      stability.section: 'stability' in record['circuit'],
      erasure.erasure: found, provenance.samples: bool(record['samples'])}
  return audit.title(record), [
      audit.compared(record), _properties(record),
      *audit.not_measured(record),
      *(make(record) for make, measured in makers.items() if measured),
      *provenance.provenance(record)]


def _attribution(record: dict[str, Any]) -> list[document.Section]:
  """Sections of attribution alone."""
  makers = {
      'stability': stability.section, 'curve': circuit.curve,
      'largest': circuit.largest}
  return [
      attribution.attributed(record), circuit.section(record),
      *(make(record) for key, make in makers.items()
        if key in record['circuit']), *provenance.of_attribution(record)]
