"""Training curves, retain KL, and swapped-subject prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]


class _Curve(NamedTuple):
  """One metric of the training history."""

  key: str
  title: str
  unit: str
  caption: str
  scale: float = 1.0


_CURVES = (
    _Curve('forget_nll', 'Forget NLL', 'nats per answer',
           'Negative log-likelihood of the answers to forget, on each step\'s'
           ' batch.'),
    _Curve('retain_kl', 'Retain KL to the base', 'nats per token',
           'KL divergence from the full-precision base on each step\'s retain'
           ' facts; lower is better.'),
    _Curve('moved', 'Weights changed', '% of all weights',
           'Share of weights that differ from the base\'s.', 100.0),
    _Curve('probe', 'Forget probe', '% right',
           'Share of a sample of the forget set\'s training questions that the'
           ' model answers, by first tokens in full precision.', 100.0))
_OF_WEIGHTS = ('moved', 'probe')  # Not measured at a step's view.


def section(record: Record) -> document.Section:
  """Training curves and the retain KL at the end."""
  plots = tuple(_plots(record))
  swapped = record.get('swapped_prompts')
  trained = record.get('trained', {})
  return document.Section('Training', (
      document.Plots(plots) if plots else
      document.Text('No training steps are recorded.'),
      *_length(record),
      document.Text(_retain_kl(record['retain_kl'])),
      *((document.Text(_rounded(trained)),)
        if 'theta_0' in trained else ()),
      *((document.Text(_swapped(swapped)),) if swapped else ())))


def _length(record: Record) -> Iterator[document.Text]:
  """Why training took fewer steps than it may, if it did."""
  options, done = record['config']['unlearn'], len(
      record['history'].get('step', ()))
  most = record.get('trained', {}).get('most_steps', 0)
  if not 0 < done < most:
    return
  if options['stop_forget'] and (
      record['history']['probe'][-1] <= options['stop_forget']):
    reason = ('the probe reached --unlearn_stop_forget='
              f'{options["stop_forget"]:g}')
  else:
    reason = ('the probe no longer fell'
              f' (--unlearn_patience={options["patience"]})')
  yield document.Text(
      f'Training ended after {done} of at most {most} steps, since'
      f' {reason}.')


def _retain_kl(found: Record) -> str:
  measured = found['measured_nats_per_sequence']
  predicted = found['fisher_estimate_nats_per_sequence']
  estimate = (
      'the diagonal Fisher gives no estimate' if predicted is None else
      f'the diagonal Fisher predicts {words.significant(predicted)}')
  by_precision = ', '.join(
      f'{precision} {words.significant(value)}'
      for precision, value in found['seen_by_view'].items())
  if measured is None:
    final = 'Retain KL of the final weights was not measured.'
  else:
    final = (
        'Retain KL of the final weights, on the'
        f' {words.count(found["sequences"], "retain sequence")} of the Fisher'
        f' estimate: {words.significant(measured)} nats per sequence;'
        f' {estimate}.')
  return (
      f'{final} Retain KL in training, in nats per token, as the'
      ' mean over the last tenth of the steps at each precision:'
      f' {by_precision}.')


def _rounded(found: Record) -> str:
  return (
      f'Trained weights are stored in {found["dtype"]} between steps. theta_0'
      f' is {found["theta_0"]}, which changes'
      f' {words.percent(found["base_rounded"])} of the weights before the first'
      ' step.')


def _swapped(found: Record) -> str:
  others = (f' {found["about_retained"]} of them ask about retained subjects.'
            if found.get('about_retained') else '')
  forgotten = (', which training forgets there'
               if found.get('forgotten') else '')
  written = (' The base continued the open ones about forgotten subjects by'
             f' {found["written"]} tokens, which training preserves, too.'
             if found.get('written') else '')
  return (
      'Swapped-subject prompts ask retain questions and open ones about the'
      f' {found["subjects"]} forgotten subjects, and training preserves the'
      f' base\'s answers to them. {found["kept"]} prompts were used.{others}'
      f'{written}'
      f' {found["leaking"]} were dropped because the base completes them with a'
      f' forget answer{forgotten}, and {found["asked_elsewhere"]} because the'
      ' forget or evaluation questions contain them. Forget facts without a'
      f' subject: {found["facts_without_subject"]}.')


def _plots(record: Record) -> Iterator[document.Plot]:
  for curve in _CURVES:
    if series := _series(record, curve):
      yield document.Plot(f'training_{curve.key}', svg.line_chart(
          curve.title, series, x_label='step', y_label=curve.unit),
                          curve.caption)


def _series(record: Record, curve: _Curve) -> list[svg.Series]:
  """A metric by step; one line per precision of the training view."""
  history = record['history']
  values = [
      (view, (step, value * curve.scale)) for view, step, value in zip(
          history.get('view', []), history.get('step', []),
          history.get(curve.key, [])) if value is not None]
  if not values:
    return []
  if curve.key in _OF_WEIGHTS or not any(view for view, _ in values):
    return [svg.Series('', 'unlearned', [point for _, point in values])]
  names = ['fp', *record['config']['quant_schemes']]
  by_view = [[point for view, point in values if view == i]
             for i in range(len(names))]
  return [
      svg.Series(name, svg.STYLES[i % len(svg.STYLES)], points)
      for i, (name, points) in enumerate(zip(names, by_view)) if points]
