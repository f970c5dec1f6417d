"""The verdict as a few lines for the terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from mansu_jax.report.sections import audit
from mansu_jax.report.sections import properties
from mansu_jax.report import words

Record = dict[str, Any]

_WIDTH = 80
_WANTED = {'F': '>=', 'R': '<=', 'Q': '<='}


def lines(record: Record) -> list[str]:
  """About a dozen lines of at most 80 columns, but for paths."""
  config = record['config']
  out, whole = _head(record)
  for letter, entry in record['properties'].items():
    out.append(_property(letter, entry))
    if letter == 'Q' and entry.get('value') is not None:
      out.append(_gap_line(record, entry))
    for unmet in properties.unmet_checks(entry):
      out += textwrap.wrap(unmet, _WIDTH, initial_indent=' ' * 4,
                           subsequent_indent=' ' * 6)
  out += _accuracies(record)
  folder = config.get('workdir') or '.'
  out.append(f'report: {folder.rstrip("/")}/report.html')
  paths = (*range(1, whole), len(out) - 1)  # These stay whole.
  return [line if i in paths else _cut(line) for i, line in enumerate(out)]


def _head(record: Record) -> tuple[list[str], int]:
  """Verdict and models, and how many lines of them end in a path."""
  config, model = record['config'], record['model']
  state = words.verdict(record['verdict']['passed']).upper()
  if not audit.is_audit(record):
    return [f'{state}: {config["method"]} on'
            f' {model.get("name", config["model"])}, seed {config["seed"]}'], 1
  audited, base = audit.names(record)
  return [f'{state}: audit, seed {config["seed"]}', f'  model {audited}',
          f'  base  {base}', f'  {audit.moved(record)}',
          *(f'  {line}' for line in filter(None, [
              audit.beyond_rounding(record)])),
          *(_survival(*item) for item in record['survival'].items())], 3


def _survival(scheme: str, found: Record) -> str:
  return (f'  {scheme}: {words.percent(found["changed_codes"])} of all weights'
          f' changed code, {words.percent(found["moved_unchanged"])} moved and'
          ' did not')


def _cut(line: str) -> str:
  return line if len(line) <= _WIDTH else line[:_WIDTH - 3] + '...'


def _property(letter: str, entry: Record) -> str:
  state = words.verdict(entry.get('passed'))
  text = properties.headline(letter, entry)
  if entry.get('value') is None and entry.get('reason'):
    text = entry['reason']
  elif letter in _WANTED and entry.get('threshold') is not None:
    text = (properties.bound(letter, entry)
            + f', wanted {_WANTED[letter]} {entry["threshold"]:g}')
  if worst := entry.get('worst_form'):
    text += f'; {worst["form"]} {words.number(worst["value"], 2)}'
  return f'  {letter} {state:12}  {text}'


def _gap_line(record: Record, entry: Record) -> str:
  """What the gap is to be read beside."""
  base = record['ptq_gap_base'].get(entry['scheme'])
  adjusted = record['ptq_gap_adjusted'].get(entry['scheme'])
  return (f'    detectable {words.number(entry["smallest_detectable"])};'
          f' base\'s own {words.signed((base or {}).get("value"))},'
          f' adjusted {words.estimate(adjusted, 3, True)}')


def _accuracies(record: Record) -> list[str]:
  """A line a split: fp and the leading quantizer, base -> unlearned."""
  if audit.is_audit(record) and not record['accuracy']:
    return [f'  accuracy {words.MISSING}: there are no questions']
  scheme = record['config']['quant_schemes'][0]
  out = [f'  {"accuracy, base -> unlearned":30}{"fp":16}{scheme}']
  for split in words.SPLITS:
    found = record['accuracy'].get(split)
    cells = [words.MISSING] if found is None else [
        ' -> '.join(_value(found[m].get(p)) for m in ('base', 'unlearned'))
        for p in ('fp', scheme)]
    out.append(f'    {split:28}' + ''.join(f'{c:16}' for c in cells).rstrip())
  return out + _others(record)


def _others(record: Record) -> list[str]:
  """A line for each quantizer beside the leading one."""
  schemes = record['config']['quant_schemes'][1:]
  if not schemes or not record['ptq_gap']:
    return []
  width = max(map(len, schemes)) + 2
  out = ['  other quantizers: gap (its upper bound), forget_far,'
         ' retain_heldout']
  for scheme in schemes:
    gap = record['ptq_gap'][scheme]
    cells = [f'{words.signed(gap["value"])} ({words.signed(gap["upper"])})']
    for split in ('forget_far', 'retain_heldout'):
      found = record['accuracy'].get(split)
      cells.append(words.MISSING if found is None else ' -> '.join(
          _value(found[m].get(scheme)) for m in ('base', 'unlearned')))
    out.append(f'    {scheme:{width}}' + ''.join(f'{c:18}' for c in cells
                                                 ).rstrip())
  return out


def _value(entry: Record | None) -> str:
  return words.number((entry or {}).get('value'))
