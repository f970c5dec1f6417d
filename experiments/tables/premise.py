"""When does rounding bring knowledge back? One row per arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import pathlib

from scipy import stats

from experiments.tables import cells
from experiments.tables import quickstart
from experiments.tables import stored

# Folder in premise/ -> name of the arm.
_ARMS = {
    'audit': 'MANSU for NF4: the quickstart',
    'mansu_four': 'MANSU for NF4, FP4 and INT4',
    'circuit': 'circuit alone, without floor, projection and loop',
    'graddiff_1e-6': 'GradDiff, 1e-6', 'graddiff_1e-5': 'GradDiff, 1e-5',
    'graddiff_1e-4': 'GradDiff, 1e-4',
    'graddiff_bfloat16_1e-5': 'GradDiff, bfloat16 weights, 1e-5',
    'graddiff_bfloat16_1e-4': 'GradDiff, bfloat16 weights, 1e-4',
    'npo_1e-6': 'NPO, 1e-6', 'npo_1e-5': 'NPO, 1e-5', 'npo_1e-4': 'NPO, 1e-4',
    'npo_bfloat16_1e-4': 'NPO, bfloat16 weights, 1e-4',
    'lora': 'NPO, LoRA of rank 8'}
_SCHEMES = ('nf4', 'fp4', 'int4_g128', 'q4_k')
# An arm has forgotten if at most this share is known in some choice reading.
_FORGOTTEN = 0.5
_LEAST_ARMS = 4  # Of a rank correlation.

Arms = Mapping[str, stored.Run]


def premise(results: pathlib.Path) -> str:
  """Recovery by arm and quantizer, the edits, and what goes with recovery."""
  arms = find(results)
  return cells.blocks(recovery(arms), edits(arms), correlations(arms),
                      cells.code(arms.values()))


def find(results: pathlib.Path) -> dict[str, stored.Run]:
  """The least stored seed of each arm, by the arm's name."""
  found = {name: stored.find(results, f'premise/{folder}')
           for folder, name in _ARMS.items()}
  return {name: runs[0] for name, runs in found.items() if runs}


def recovery(arms: Arms) -> str:
  """Knowledge left in full precision, and what each quantizer brings back."""
  rows = []
  for name, run in arms.items():
    record = run.record
    known = [cells.number(_known(record, reading))
             for reading in stored.CHOICES]
    perplexity = cells.change(*(
        record['perplexity'][model]['fp'] for model in reversed(stored.MODELS)))
    brought = [cells.estimate(_brought_back(record, scheme), 2, True)
               for scheme in _SCHEMES]
    trained = record['accuracy']['forget']['unlearned']['fp']['value']
    heldout = record['accuracy']['retain_heldout']['unlearned']
    heldout = [cells.number(heldout.get(p, {}).get('value'))
               for p in ('fp', *_SCHEMES)]
    rows.append((name, cells.number(trained), *known, cells.number(
        quickstart.worst_known(record, 'fp')), heldout[0], perplexity,
                 *brought, ', '.join(heldout[1:])))
  return cells.table(
      ('arm', 'trained questions right', 'known, usual choices',
       'known, unseen choices', 'known, worst reading', 'held-out',
       'perplexity', *(f'{cells.precision(s)} brings back' for s in _SCHEMES),
       'held-out, quantized'), rows)


def _known(record: stored.Record, reading: str) -> float | None:
  """Share of the base's knowledge that is left in full precision."""
  return record['forgetting'].get(reading, {}).get('known', {}).get(
      'fp', {}).get('value')


def _brought_back(record: stored.Record, scheme: str) -> stored.Record:
  return record['properties']['Q'].get('by_scheme', {}).get(scheme, {})


def edits(arms: Arms) -> str:
  """Size of each edit, and what of it each quantizer changes and keeps."""
  changed = [
      (name, cells.percent(_size(run.record, '')), *(
          cells.percent(_flipped(run.record, s)) for s in _SCHEMES))
      for name, run in arms.items()]
  kept = [
      (name, *(cells.number(measure(run.record, s))
               for measure in (_cosine, _carried) for s in _SCHEMES))
      for name, run in arms.items()]
  heads = lambda what: (f'{what}, {cells.precision(s)}' for s in _SCHEMES)
  return cells.blocks(
      cells.table(('arm', 'size of the edit', *heads('codes changed')),
                  changed),
      cells.table(('arm', *heads('cosine'), *heads('carried')), kept))


def _size(record: stored.Record, scheme: str) -> float | None:
  """Norm of the edit, relative to that of the base's weights."""
  del scheme  # The edit is the same for all quantizers.
  return record['movement']['total']['relative']


def _flipped(record: stored.Record, scheme: str) -> float | None:
  """Share of all weights whose code the edit changes."""
  return record['survival'].get(scheme, {}).get('changed_codes')


def _cosine(record: stored.Record, scheme: str) -> float | None:
  """Cosine of the quantized edit with the edit."""
  return record['survival'].get(scheme, {}).get('cosine')


def _carried(record: stored.Record, scheme: str) -> float | None:
  """Share of the edit, along its own direction, that quantization keeps."""
  return record['survival'].get(scheme, {}).get('carried')


_EXPLAIN: dict[str, Callable[[stored.Record, str], float | None]] = {
    'size of the edit': _size, 'codes changed': _flipped, 'cosine': _cosine,
    'carried': _carried}


def correlations(arms: Arms) -> str:
  """Spearman's rank correlation of recovery with each measure of the edit.

  By quantizer, and over all pairs of an arm and a quantizer. Over all arms, and
  over those that have forgotten: where nothing was forgotten, nothing can come
  back. Also over those of these whose weights are float32.
  """
  rows = []
  groups = {'all arms': arms, 'arms that forgot': forgotten(arms)}
  if len(float32 := {name: run for name, run in forgotten(arms).items()
                     if 'bfloat16' not in name}) < len(forgotten(arms)):
    groups['of these, without bfloat16'] = float32
  for label, some in groups.items():
    for name, find_one in _EXPLAIN.items():
      found = [_correlation(some, find_one, schemes) for schemes in (
          *((scheme,) for scheme in _SCHEMES), _SCHEMES)]
      if any(found):
        rows.append((label, name, *(one or cells.NONE for one in found)))
  return cells.table(
      ('arms', 'recovery with', *map(cells.precision, _SCHEMES), 'all'), rows, 2
  ) if rows else ''


def forgotten(arms: Arms) -> dict[str, stored.Run]:
  """The arms that have forgotten in full precision."""
  return {name: run for name, run in arms.items() if min(
      x for reading in stored.CHOICES
      if (x := _known(run.record, reading)) is not None) <= _FORGOTTEN}


def correlation(
    arms: Arms, name: str, schemes: Sequence[str] = _SCHEMES) -> str:
  """Rank correlation of recovery with a measure over arms and quantizers."""
  return _correlation(arms, _EXPLAIN[name], schemes).partition(' ')[0]


def _correlation(
    arms: Arms, measure: Callable[[stored.Record, str], float | None],
    schemes: Sequence[str]) -> str | None:
  """`rho (number of pairs)`; None for too few."""
  pairs = [pair for s in schemes for pair in _pairs(arms, measure, s)]
  if len(pairs) < _LEAST_ARMS or any(
      len(set(column)) < 2 for column in zip(*pairs)):
    return None
  found = stats.spearmanr(*zip(*pairs))
  return f'{cells.signed(float(found.statistic), 2)} (n = {len(pairs)})'


def _pairs(
    arms: Arms, measure: Callable[[stored.Record, str], float | None],
    scheme: str) -> Iterator[tuple[float, float]]:
  for run in arms.values():
    pair = (_brought_back(run.record, scheme).get('value'),
            measure(run.record, scheme))
    if None not in pair:
      yield pair
