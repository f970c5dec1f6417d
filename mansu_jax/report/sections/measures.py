"""What was measured: accuracy, gaps, perplexity, and where the damage is."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report.charts import svg
from mansu_jax.report import words

Record = dict[str, Any]

_MODELS = ('base', 'unlearned')
_SHOWN = 15  # Rows of a table of groups.


def precisions(record: Record) -> list[str]:
  """fp, then the quantizers, the leading one first."""
  return ['fp', *record['config']['quant_schemes']]


def legend(record: Record) -> list[svg.Key]:
  """Colour tells the model, a hollow mark a quantized one."""
  quantized = '/'.join(precisions(record)[1:])
  return [
      svg.Key('base, fp', 'base'), svg.Key(f'base, {quantized}', 'base', True),
      svg.Key('unlearned, fp', 'unlearned'),
      svg.Key(f'unlearned, {quantized}', 'unlearned', True)]


def accuracy(record: Record) -> document.Section:
  """All splits, models and precisions."""
  blocks: list[document.Block] = [document.Text(
      'Multiple choice by summed log-probability; intervals are 95 %,'
      ' bootstrapped by fact. acc_norm divides by the length of the answer.')]
  missing = record['data'].get('missing_splits') or [
      s for s in words.SPLITS if s not in record['accuracy']]
  if missing:
    blocks.append(document.Text(
        f'The data have no questions for {words.listing(missing)}: nothing was'
        ' measured there, and what rests on it is inconclusive.'))
  if record['accuracy']:
    blocks += _accuracy_blocks(record)
  return document.Section('Accuracy', tuple(blocks))


def _accuracy_blocks(record: Record) -> list[document.Block]:
  rows, dots = [], []
  for split, by_model in record['accuracy'].items():
    cells = [(m, p, by_model[m].get(p) or {}) for m in _MODELS
             for p in precisions(record)]
    dots.append(svg.Row(split, [
        svg.Dot(e.get('value'), e.get('interval'), m, p != 'fp')
        for m, p, e in cells]))
    rows += [(
        words.SPLITS.get(split, split), m, p, words.number(e.get('value')),
        words.interval(e.get('interval')), words.number(e.get('acc_norm')),
        str(e.get('n', words.MISSING))) for m, p, e in cells]
  chart = svg.dot_chart(
      'Accuracy by split', dots, label='accuracy', legend=legend(record),
      span=(0.0, 1.0))
  caption = ('Accuracy of both models with 95 % intervals; hollow marks are'
             ' quantized.')
  return [
      document.Plots((document.Plot('accuracy', chart, caption),)),
      document.Table(
          ('split', 'model', 'precision', 'accuracy', '95 % interval',
           'acc_norm', 'questions'), tuple(rows), labels=3)]


_GAPS = (
    ('ptq_gap', 'gap', 'unlearned'),
    ('ptq_gap_base', 'base\'s own gap', 'base'),
    ('ptq_gap_adjusted', 'base-adjusted gap', 'null'))


def gaps(record: Record) -> document.Section:
  """What quantization brings back, beside what it does to the base."""
  title = 'What quantization brings back'
  if not record['ptq_gap']:
    return document.Section(title, (document.Text(
        'Not measured: the forget set has no near or far questions.'),))
  rows = tuple(
      (scheme, *(words.estimate(record[key].get(scheme), 3, True)
                 for key, _, _ in _GAPS)) for scheme in record['ptq_gap'])
  tests = tuple(
      (scheme, words.signed(gap.get('upper')),
       words.number(gap.get('smallest_detectable')),
       words.number(gap.get('discordant')),
       words.significant(gap.get('mcnemar_p')),
       str(gap.get('n', words.MISSING)))
      for scheme, gap in record['ptq_gap'].items())
  return document.Section(title, (
      document.Text(
          'On forget_paraphrase and forget_far together. The property rests on'
          ' the one-sided upper 95 % bound of the gap; McNemar counts'
          ' questions as independent, the intervals do not.'),
      document.Plots((document.Plot(
          'ptq_gap', _gap_chart(record),
          'Gaps with 95 % intervals, by quantizer.'),)),
      document.Table(('quantizer', *(name for _, name, _ in _GAPS)), rows),
      document.Table(
          ('quantizer', 'upper bound of the gap', 'smallest detectable',
           'share discordant', 'McNemar p', 'questions'), tests)))


def _gap_chart(record: Record) -> str:
  dots = []
  for scheme in record['ptq_gap']:
    entries = [record[key].get(scheme) or {} for key, _, _ in _GAPS]
    dots.append(svg.Row(scheme, [
        svg.Dot(e.get('value'), e.get('interval'), style)
        for e, (_, _, style) in zip(entries, _GAPS)]))
  bound = record['properties']['Q'].get('threshold')
  rules = [svg.Rule(0.0, 'no gap')]
  if bound is not None:
    rules.append(svg.Rule(bound, f'threshold {bound:g}'))
  return svg.dot_chart(
      'Gap: accuracy quantized less full precision', dots,
      label='difference of accuracy; + is recovery',
      legend=[svg.Key(name, style) for _, name, style in _GAPS], rules=rules)


def perplexity(record: Record) -> document.Section:
  """Overall and by kind of text, with ratios to the base."""
  title = 'Perplexity of text that was not trained on'
  by_kind = {'all kinds': record['perplexity'],
             **record['perplexity_by_text']}
  if not any(by_kind['all kinds'].get(m) for m in _MODELS):
    return document.Section(title, (document.Text(
        'Not measured: no held-out text was given (--data_heldout_text).'),))
  rows, dots = [], []
  for kind, by_model in by_kind.items():
    points = []
    for precision in precisions(record):
      base, after = (by_model.get(m, {}).get(precision) for m in _MODELS)
      change = words.ratio(after, base)
      rows.append((kind, precision, words.number(base, 2),
                   words.number(after, 2), words.number(change, 4)))
      points.append(svg.Dot(change, None, 'unlearned', precision != 'fp'))
    dots.append(svg.Row(kind, points))
  chart = svg.dot_chart(
      'Perplexity of the unlearned model relative to the base', dots,
      label='ratio at the same precision; 1 is unchanged',
      legend=legend(record)[2:], rules=[svg.Rule(1.0, 'as the base')])
  return document.Section(title, (
      document.Plots((document.Plot(
          'perplexity', chart, 'Ratios by kind of text, each to the base at'
          ' the same precision.'),)),
      document.Table(
          ('text', 'precision', 'base', 'unlearned', 'ratio'), tuple(rows),
          labels=2)))


def damage(record: Record) -> document.Section:
  """Accuracy by relation and by form of question, worst first."""
  blocks: list[document.Block] = []
  for key, what in (('accuracy_by_relation', 'relation'),
                    ('accuracy_by_form', 'form of question')):
    for kept in (True, False):
      groups = [(split, name, entry)
                for split, entries in record[key].items()
                for name, entry in entries.items()
                if kept != split.startswith('forget')]
      if groups:
        blocks += _group_blocks(record, groups, what, kept)
  return document.Section('Where the damage is', tuple(blocks) or (
      document.Text('Not measured: there are no evaluation questions.'),))


def _worst(record: Record, kept: bool, entry: Record) -> float:
  """The largest loss of what should be kept, else the most that is left."""
  return max(
      entry['base'][p] - entry['unlearned'][p] if kept else
      entry['unlearned'][p] for p in precisions(record))


def _group_blocks(record, groups, what, kept):
  """A chart and a table of the worst groups."""
  ordered = sorted(groups, key=lambda g: -_worst(record, kept, g[2]))
  rows, dots = [], []
  for split, name, entry in ordered[:_SHOWN]:
    cells = []
    for p in precisions(record):
      before, after = entry['base'][p], entry['unlearned'][p]
      cells += [f'{before:.3f} → {after:.3f}', words.signed(after - before)]
    rows.append((split, name, *cells, str(entry['n'])))
    dots.append(svg.Row(f'{name} ({split})', [
        svg.Dot(entry[m]['fp'], None, m) for m in _MODELS]))
  side = 'kept' if kept else 'forgotten'
  order = 'largest loss' if kept else 'most that is left'
  more = len(groups) - len(rows)
  caption = (f'What should be {side}, by {what}; {order} (at any precision)'
             ' first.' + f' {more} more are in record.json.' * (more > 0))
  chart = svg.dot_chart(
      f'Accuracy by {what}: what should be {side}', dots, label='accuracy, fp',
      legend=[svg.Key(m, m) for m in _MODELS], span=(0.0, 1.0), joined=True)
  heads = [head for p in precisions(record)
           for head in (f'{p}: base → unlearned', f'{p}: change')]
  slug = f'damage_{what.split()[0]}_{side}'
  return [document.Plots((document.Plot(slug, chart, caption),)),
          document.Table(('split', what, *heads, 'questions'), tuple(rows),
                         labels=2)]
