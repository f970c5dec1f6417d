"""Has the knowledge gone, or only the answer? CAD, AS-NC and readability."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report.charts import svg
from mansu_jax.report import words

Record = dict[str, Any]

_NULLS = {
    'prompt_halves': 'base on two halves of the prompts',
    'base_quantized': 'base against the quantized base',
    'random_circuits': 'random circuits of the same shape',
    'suppression': 'output-suppression control',
    'guessing': 'guessing',
}
_CURVES = {  # Of the chart by layer: name and style.
    'base': ('base', 'base'), 'unlearned': ('unlearned', 'unlearned'),
    'suppression': ('suppression control', 'null')}
_ALIKE = 0.02  # Shares of moved weights that are as good as the same.
_UNDONE = {
    'circuit': 'the circuit', 'rest': 'all but the circuit',
    'random': 'a random circuit', 'best_half': 'the better half of the circuit',
    'random_half': 'a random half of the circuit'}


def erasure(record: Record) -> document.Section:
  """CAD and AS-NC, readability and copy-back, with all their nulls."""
  return document.Section('Structural erasure', (
      *_divergences(record), *_readability(record), *_copy_back(record)))


def _divergences(record: Record) -> Iterator[document.Block]:
  parts = [('cad', 'CAD', 'on the circuit, forget pairs', 'above'),
           ('as_nc', 'AS-NC', 'off the circuit, retain pairs', 'below')]
  rows, plots = [], []
  for key, name, where, side in parts:
    found = record.get(key)
    if not found:
      continue
    rows += _rows(name, where, found)
    plots.append(document.Plot(
        key, _null_chart(name, where, found),
        f'{name} should lie {side} the 95 % level of each null that has one,'
        f' and its paired difference from the others {side} zero.'))
  yield document.Text(
      'CAD is 0 where the circuit\'s scores are unchanged, 1 where they are'
      ' gone, above 1 where they are reversed; AS-NC is the same off the'
      ' circuit, where low is good. Neither means anything without its nulls.')
  yield _control(record)
  why = record['properties']['S'].get('reason')
  if not rows:
    yield document.Text('CAD and AS-NC were not measured:'
                        f' {(why or "they were skipped").rstrip(".")}.')
    return
  if why:
    yield document.Text(f'{why[:1].upper()}{why[1:].rstrip(".")}.')
  for key, *_ in parts:
    nulls = (record.get(key) or {}).get('nulls', {})
    if warning := nulls.get('random_circuits', {}).get('warning'):
      yield document.Text(warning)
  above = record['properties']['S'].get('checks', {}).get(
      'cad_above_random_circuits')
  if above is not None and above is not True:
    yield document.Text(
        'Random circuits of the same shape score about as high. Scores sum to'
        ' what the output says, so that they fade wherever the answer does,'
        ' erased or hidden: this CAD says that the answer has gone, and not'
        ' that it went from this circuit.')
  yield document.Plots(tuple(plots))
  yield document.Table(
      ('measure', 'what', 'value [95 % interval]', 'level or pairs'),
      tuple(rows), labels=2)


def _control(record: Record) -> document.Text:
  found = record.get('suppression_control')
  if not found:
    return document.Text(
        'There is no output-suppression control in this run (an edit that only'
        ' hides the answers, matched in what is forgotten): compare with one'
        ' before erasure is claimed.')
  shares = (f'{words.percent(found["answered"])} against'
            f' {words.percent(found["wanted"])}, by first tokens')
  what = ('The output-suppression control is the base with its last layer\'s'
          ' down projection changed, so that')
  if not found.get('matched', True):
    return document.Text(
        f'{what} it would answer as few of the forgotten questions as the'
        f' unlearned model. It does not come to that ({shares}), so it is'
        ' compared with nothing here.')
  return document.Text(
      f'{what} it answers as few of the forgotten questions as the unlearned'
      f' model ({shares}) and all that leads to them is as it was. Its CAD is'
      ' not 0 for that: scores sum to what the output says, so an answer that'
      ' is only hidden takes some of them along. Readability, below, looks at'
      ' the states instead. It is in full precision, also where it is compared'
      ' with a quantized model.')


def _rows(name: str, where: str, found: Record) -> Iterator[tuple[str, ...]]:
  yield (name, where, words.estimate(found),
         words.count(found['pairs'], 'pair'))
  for null, values in found['nulls'].items():
    yield (name, f'null: {_NULLS.get(null, null)}', *_null_cells(values))
  for precision, other in found.get('by_precision', {}).items():
    yield name, f'the same under {precision}', words.estimate(other), ''
    for null, values in other['nulls'].items():
      if null != 'prompt_halves':  # Of the base alone: the same.
        yield (name, f'{precision}, null: {_NULLS.get(null, null)}',
               *_null_cells(values))


def _null_cells(values: Record) -> tuple[str, str]:
  if 'difference_interval' in values and 'value' in values:
    return (words.number(values['value']),
            'paired difference'
            f' {words.interval(values["difference_interval"], 3, True)}')
  level = next((k for k in ('level_95', 'level_5') if k in values), None)
  if level is None:
    return words.number(values.get('value')), ''
  return (f'mean {words.number(values["mean"])}',
          f'{level.removeprefix("level_")} % level'
          f' {words.number(values[level])}'
          f' ({words.count(values["draws"], "draw")})')


def _null_chart(name: str, where: str, found: Record) -> str:
  rows = [svg.Row(name, [svg.Dot(found['value'], found['interval'])])]
  for null, values in found['nulls'].items():
    level = values.get('level_95')
    middle = values.get('mean', values.get('value'))
    bounds = None if level is None else sorted((middle, level))
    rows.append(svg.Row(
        _NULLS.get(null, null), [svg.Dot(middle, bounds, 'null')]))
  return svg.dot_chart(
      f'{name}: {where}', rows, label='0 unchanged, 1 gone, above 1 reversed',
      legend=[svg.Key('after unlearning, 95 % interval', 'unlearned'),
              svg.Key('nulls, mean to their 95 % level', 'null')])


def _readability(record: Record) -> Iterator[document.Block]:
  found = record.get('readability')
  if not found:
    return
  if 'value' not in found:
    yield document.Text(f'Readability was not measured: {found["reason"]}.')
    return
  hidden = found['hidden']
  yield document.Text(
      'Readability: how much of what the base holds a linear lens can still'
      ' read in the states, in the best layer, at a prompt\'s last token; 1 is'
      ' all, 0 no more than guessing. The lens of every layer is fitted on'
      f' {found["fitted_on"]:,} retained questions and never sees what is'
      ' forgotten. Here'
      f' {words.estimate(found)}; the best layer ({hidden["layer"]}) reads'
      f' {words.signed(hidden["value"])}'
      f' {words.interval(hidden["interval"], 3, True)} more than the last one'
      f' says{_guessed(hidden)}.{_avoided(found)} It finds what is hidden in the'
      ' layers after those that bring answers to the last token (where the'
      ' base\'s curve rises), and neither what a model keeps at other tokens,'
      ' nor what no linear map finds.')
  yield document.Text(_verdict(found))
  yield document.Plots((document.Plot(
      'readability', _layers_chart(found),
      'Forgotten questions that each layer answers, 0 being the embedding. An'
      ' answer that is hidden late is there in the layers before.'),))
  rows = [('unlearned', words.estimate(found),
           words.count(found['questions'], 'question'))]
  rows += [(f'unlearned, {precision}', words.estimate(other),
            f'the best layer less the last'
            f' {words.signed(other["hidden"]["value"])}'
            f'{_guessed(other["hidden"])}')
           for precision, other in found['by_precision'].items()]
  rows += [(f'null: {_NULLS.get(null, null)}', *_null_cells(values))
           for null, values in found['nulls'].items()]
  yield document.Table(
      ('readability of', 'value [95 % interval]', 'level or questions'),
      tuple(rows), labels=1)


_CHECKS = {  # What did not hold, of readability.
    'within_guessing': 'what is read is no more than guessing gives',
    'not_avoided': 'right answers are not avoided, which tells them as well',
    'below_prompt_halves': 'less is read than in the base',
    'below_base_quantized': 'less is read than in the quantized base',
    'below_suppression': 'less is read than in the suppression control'}
_VERDICTS = {True: 'nothing is to be read', False: 'something is to be read',
             'inconclusive': 'whether anything is to be read is open'}


def _verdict(found: Record) -> str:
  """At each precision, whether nothing is to be read, and why not."""
  parts = []
  for precision, one in (('full precision', found), *found.get(
      'by_precision', {}).items()):
    fails = [f'{_CHECKS.get(name, name)}'
             f' ({"no" if held is False else "open"})'
             for name, held in one['checks'].items() if held is not True]
    parts.append(f'{precision}: {_VERDICTS[one["passed"]]}'
                 + (f'; {", ".join(fails)}' if fails else ''))
  return ('The verdict of readability, which is beside the four properties.'
          f' {". ".join(part[:1].upper() + part[1:] for part in parts)}.')


def _avoided(found: Record) -> str:
  """What the layer that answers the least does."""
  least = found.get('avoided')
  if least is None:
    return ''
  return (f' The layer that answers the least ({least["layer"]}) answers'
          f' {words.estimate(least)}, where guessing gives'
          f' {words.number(least["guessing_level_5"])} or more (5 % level).')


def _guessed(hidden: Record) -> str:
  """What guessing would make of what is hidden."""
  level = hidden.get('guessing_level_95')
  return '' if level is None else (
      f' (guessing: up to {words.signed(level)}, 95 % level)')


def _layers_chart(found: Record) -> str:
  series = [
      svg.Series(name, style, list(enumerate(found['by_layer'][model])))
      for model, (name, style) in _CURVES.items()
      if model in found['by_layer']]
  return svg.line_chart(
      'What each layer knows', series, x_label='layer',
      y_label='share answered')


def _copy_back(record: Record) -> Iterator[document.Block]:
  found = record.get('copy_back')
  if not found:
    return
  yield document.Text(
      'Copying the base\'s weights back, on the circuit alone and off it alone:'
      ' the share of what was forgotten that comes back. ' + (
          'The edit lies in the circuit, so that undone there it is the base,'
          ' and off it there is nothing to undo.' if found['confined'] else
          'Where the circuit holds what was erased, it brings the answers back'
          ' and the rest does not.'))
  halves = found.get('best_half_less_random', {})
  if halves:
    yield document.Text(
        'Of the circuit, the half that attribution ranks highest less the mean'
        ' of random halves with as many nodes in each layer, by what comes'
        ' back: '
        + '; '.join(f'{precision} {_comes_back(less, True)}'
                    + (f' (as much on {less["as_much"]} of them)'
                       if 'as_much' in less else '')
                    for precision, less in halves.items())
        + '.' + _moved(found))
  rows = []
  for precision, parts in found['by_precision'].items():
    rows += [
        (precision, _UNDONE.get(_kind(name), name),
         words.number(part['answered']), _comes_back(part))
        for name, part in parts.items() if 'share' in part
        and not (found['confined'] and name in ('circuit', 'rest'))]
  if not rows:
    return
  yield document.Table(
      ('precision', 'undone on', 'share answered',
       'comes back [95 % interval]'), tuple(rows), labels=2)


def _moved(found: Record) -> str:
  """What the halves' difference says, by how alike they are in what moved."""
  told, alike = '', False
  if moved := found.get('moved'):  # Older records have none.
    best, *others = moved.values()
    told = (f' It holds {words.percent(best)} of the weights that moved, they'
            f' {words.percent(min(others))} to {words.percent(max(others))},'
            ' the nearest of many drawn.')
    alike = abs(best - sum(others) / len(others)) < _ALIKE
  return told + (
      ' Above 0, the forgetting rests more on the nodes whose scores are large'
      f'{"" if alike else ", or on more changes there"}; below 0, less.')


def _kind(name: str) -> str:
  """`random_half` of `random_half_3`."""
  return name.rstrip('0123456789').rstrip('_')


def _comes_back(part: Record, sign: bool = False) -> str:
  return words.estimate(part | {'value': part['share']}, sign=sign)
