"""Writes a run's `record.json`, `report.md`, `report.html` and `plots/`.

`python -m mansu_jax.report.write WORKDIR [FOLDER]` renders the report of
WORKDIR/record.json again, into FOLDER or WORKDIR.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
from typing import Any

from absl import app

from mansu_jax.report import document
from mansu_jax.report import former_keys
from mansu_jax.report import markdown
from mansu_jax.report import page
from mansu_jax.report import words
from mansu_jax.report.sections import accuracy
from mansu_jax.report.sections import attacks
from mansu_jax.report.sections import attribution
from mansu_jax.report.sections import audit
from mansu_jax.report.sections import circuit
from mansu_jax.report.sections import curve
from mansu_jax.report.sections import erasure
from mansu_jax.report.sections import forgetting
from mansu_jax.report.sections import movement
from mansu_jax.report.sections import perplexity
from mansu_jax.report.sections import properties
from mansu_jax.report.sections import provenance
from mansu_jax.report.sections import ptq_gap
from mansu_jax.report.sections import question_groups
from mansu_jax.report.sections import stability
from mansu_jax.report.sections import survival
from mansu_jax.report.sections import training
from mansu_jax.runtime import files
from mansu_jax.runtime import processes

Record = dict[str, Any]


def write(record: Record, root: pathlib.Path) -> None:
  """Writes a record and its report.

  `record.json` is strict JSON: null replaces figures that are not finite, and
  `not_finite` lists their keys. Collective: every process must call it; the
  first process writes its own record.

  Args:
    record: From `stages.judge.results.make_record` or an attribution.
    root: An existing folder.
  """
  record = as_json(record)
  processes.broadcast_from_primary(lambda: _write(record, root))


def _write(record: Record, root: pathlib.Path) -> None:
  files.write_json(root / 'record.json', record)
  write_report(make_report(record), root)
  if (root / 'model').is_dir() and not (
      audit.is_audit(record) or attribution.is_attribution(record)):
    files.write_text(root / 'model' / 'README.md', model_card(record))


def write_report(report: document.Report, root: pathlib.Path) -> None:
  """Writes `report.md`, `report.html` and `plots/` into an existing folder."""
  (root / 'plots').mkdir(exist_ok=True)
  for plot in report.plots():
    files.write_text(root / 'plots' / f'{plot.name}.svg', plot.svg)
  files.write_text(root / 'report.md', markdown.render(report))
  files.write_text(root / 'report.html', page.render(report))


def model_card(record: Record) -> str:
  """The `README.md` of an exported model: the verdict, and what was measured.

  Args:
    record: Of an unlearning run, in its JSON form.
  """
  record = former_keys.rename(record)
  if 'name' in record['model']:
    record |= {'model': record['model'] | {
        'name': words.model_name(record['model'])}}
  sections = [  # The plots are not beside the card.
      document.Section(title, tuple(
          block for block in blocks if not isinstance(block, document.Plots)))
      for title, blocks in _measured(record)]
  report = document.Report(
      _title(record), record['verdict']['passed'], properties.sentence(record),
      tuple(section for section in sections if section.blocks))
  head = ['tags:', '- machine-unlearning', '- mansu']
  if record['model'].get('kind') == 'hub':
    head.append(f'base_model: {record["model"]["name"]}')
  return '\n'.join(['---', *head, '---', '', markdown.render(report)])


def as_json(record: Record) -> Record:
  """The record as `record.json` holds it."""
  not_finite: list[str] = []
  clean = _finite(record, '', not_finite)
  if not_finite:
    clean['not_finite'] = not_finite
  return json.loads(json.dumps(clean, allow_nan=False))


def _finite(value: Any, key: str, not_finite: list[str]) -> Any:
  """The value with None for figures that are not finite; lists their keys."""
  if isinstance(value, dict):
    return {k: _finite(v, f'{key}/{k}', not_finite) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(v, f'{key}/{i}', not_finite) for i, v in enumerate(value)]
  if isinstance(value, float) and not math.isfinite(value):
    not_finite.append(key.removeprefix('/'))
    return None
  return value


def make_report(record: Record) -> document.Report:
  """The report of a record in its JSON form."""
  record = former_keys.rename(record)
  if attribution.is_attribution(record):
    title, sections = attribution.title(record), _attribution(record)
    state, sentence = None, attribution.sentence(record)
  else:
    make = _audit if audit.is_audit(record) else _unlearning
    title, sections = make(record)
    state, sentence = record['verdict']['passed'], properties.sentence(record)
  if not_finite := record.get('not_finite'):
    sections.insert(1, document.Section('Figures that are not finite', (
        document.Text(
            'These figures of record.json are infinite or not a number; the'
            ' report shows them as not measured:'
            f' {words.listing(not_finite)}.'),)))
  return document.Report(title, state, sentence, tuple(sections))


def _title(record: Record) -> str:
  """Title of an unlearning run."""
  config, model = record['config'], record['model']
  return (f'Unlearning {words.verdict(record["verdict"]["passed"])}:'
           f' {config["method"]} on {model.get("name", config["model"])}, seed'
           f' {config["seed"]}')


def _unlearning(record: Record) -> tuple[str, list[document.Section]]:
  """Title and sections of an unlearning run."""
  included = {
      question_groups.section: True,
      survival.section: True,
      movement.section: 'movement' in record,  # From 0.1 on.
      circuit.section: True,
      stability.section: 'stability' in record['circuit'],
      training.section: True, erasure.section: True, provenance.samples: True}
  return _title(record), [
      *_measured(record),
      *(make(record) for make, include in included.items() if include),
      *provenance.provenance(record)]


def _measured(record: Record) -> list[document.Section]:
  """What an unlearning run says about its model."""
  included = {
      properties.section: True, forgetting.section: 'forgetting' in record,
      accuracy.section: True, ptq_gap.section: True,
      attacks.section: 'attack_verdict' in record, perplexity.section: True}
  return [make(record) for make, include in included.items() if include]


def _audit(record: Record) -> tuple[str, list[document.Section]]:
  """Title and sections of an audit; omits sections without a measurement."""
  asked, found = bool(record['accuracy']), bool(record['circuit'])
  included = {
      forgetting.section: bool(record.get('forgetting')),
      accuracy.section: asked, ptq_gap.section: bool(record['ptq_gap']),
      attacks.section: bool(record.get('attacks')),
      perplexity.section: bool(record['perplexity']['unlearned']),
      question_groups.section: asked, survival.section: True,
      movement.section: True, circuit.section: found,
      stability.section: 'stability' in record['circuit'],
      erasure.section: found or 'hidden_share' in record.get('structure', {}),
      provenance.samples: bool(record['samples'])}
  return audit.title(record), [
      audit.compared(record), properties.section(record),
      *audit.not_measured(record),
      *(make(record) for make, include in included.items() if include),
      *provenance.provenance(record)]


def _attribution(record: Record) -> list[document.Section]:
  """Sections of an attribution."""
  makers = {
      'stability': stability.section, 'curve': curve.section,
      'largest': circuit.largest}
  return [
      attribution.attributed(record), circuit.section(record),
      *(make(record) for key, make in makers.items()
        if key in record['circuit']), *provenance.of_attribution(record)]


def main(argv: list[str]) -> int:
  """Renders the report of a workdir again."""
  if len(argv) not in (2, 3):
    print('usage: python -m mansu_jax.report.write WORKDIR [FOLDER]',
          file=sys.stderr)
    return 2
  source, root = pathlib.Path(argv[1]), pathlib.Path(argv[-1])
  path = source / 'record.json'
  if not path.is_file():
    print(f'mansu_jax.report.write: no record.json in {argv[1]!r}; give the'
          ' workdir of a finished run.', file=sys.stderr)
    return 2
  root.mkdir(parents=True, exist_ok=True)
  write(json.loads(path.read_text(encoding='utf-8')), root)
  return 0


if __name__ == '__main__':
  app.run(main)
