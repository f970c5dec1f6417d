"""Renders a report as one self-contained HTML page."""

from __future__ import annotations

import html

from mansu_jax.report import document
from mansu_jax.report import words

_LONG = 36  # Characters from which a label cell wraps.
_MARKS = {True: '✓', False: '✗', 'inconclusive': '?'}
_STYLE = '''
:root{color-scheme:light dark;--text:#1b2430;--soft:#5b6675;--line:#dfe4ea;
--page:#f5f7f9;--card:#fff;--passed:#14713f;--failed:#b3261e;
--inconclusive:#8a5a00}
@media screen and (prefers-color-scheme:dark){:root{--text:#e8edf4;
--soft:#a3afbf;--line:#2d3643;--page:#0f1319;--card:#171c24;--passed:#5fd08f;
--failed:#ff8a80;--inconclusive:#f0b95b}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.55
system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 8px}
h2{font-size:18px;margin:40px 0 10px;padding-top:14px;
border-top:1px solid var(--line)}
p{margin:8px 0;max-width:76ch}
.lead{font-size:17px}
.badge{display:inline-block;padding:1px 10px;border-radius:12px;
border:1.5px solid currentColor;font-size:13px;font-weight:600;
white-space:nowrap}
.passed{color:var(--passed)}.failed{color:var(--failed)}
.inconclusive{color:var(--inconclusive)}
.cards{display:grid;grid-template-columns:
repeat(auto-fit,minmax(min(400px,100%),1fr));gap:14px;margin:16px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:14px 16px;break-inside:avoid}
.card h3{display:flex;justify-content:space-between;align-items:flex-start;
gap:8px;font-size:15px;
margin:0 0 6px}
.card .value{font-size:20px;font-weight:600;font-variant-numeric:tabular-nums}
.card p,.card ul{margin:4px 0}.card ul{padding-left:18px}
.soft,.card li,figcaption,caption{color:var(--soft);font-size:13px}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;background:var(--card);font-size:13.5px;
min-width:min(100%,640px);border:1px solid var(--line)}
caption{caption-side:top;text-align:left;padding:0 0 8px;max-width:90ch}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;
vertical-align:top;white-space:nowrap;font-variant-numeric:tabular-nums}
th{font-weight:600;white-space:normal;vertical-align:bottom}.l{text-align:left}
.w{white-space:pre-wrap;overflow-wrap:anywhere;min-width:10em}
tr{break-inside:avoid}
.plots{display:flex;flex-wrap:wrap;gap:14px;margin:14px 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);
border-radius:8px;padding:6px;break-inside:avoid;max-width:100%}
figure svg{display:block;max-width:100%;height:auto}
figcaption{padding:2px 10px 8px;max-width:700px;width:0;min-width:100%}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:12px;overflow-x:auto;font-size:12.5px;line-height:1.5}
@media print{:root{--page:#fff}main{max-width:none;padding:0}
pre,.l{white-space:pre-wrap;overflow-wrap:anywhere}h2{break-after:avoid}}
'''


def _text(block: document.Text) -> str:
  return f'<p>{html.escape(block.text)}</p>'


def _cell(tag: str, text: str, label: bool) -> str:
  """A table cell; long labels wrap, figures do not."""
  wraps = label and (len(text) > _LONG or '\n' in text)
  names = 'l w' if wraps else 'l' if label else ''
  kind = names and f' class="{names}"'
  return f'<{tag}{kind}>{html.escape(text)}</{tag}>'


def _table(block: document.Table) -> str:
  row = lambda tag, cells: '<tr>' + ''.join(
      _cell(tag, cell, i < block.labels) for i, cell in enumerate(cells)
  ) + '</tr>'
  caption = html.escape(block.caption)
  caption = caption and f'<caption>{caption}</caption>'
  body = '\n'.join(row('td', cells) for cells in block.rows)
  return (f'<div class="scroll"><table>{caption}<thead>'
          f'{row("th", block.columns)}</thead>\n<tbody>{body}</tbody>'
          '</table></div>')


def _bullets(block: document.Bullets) -> str:
  items = ''.join(f'<li>{html.escape(item)}</li>' for item in block.items)
  return f'<ul>{items}</ul>'


def _plots(block: document.Plots) -> str:
  figures = '\n'.join(
      f'<figure>{plot.svg.strip()}<figcaption>{html.escape(plot.caption)}'
      '</figcaption></figure>' for plot in block.items)
  return f'<div class="plots">{figures}</div>'


def _badge(state: bool | str) -> str:
  word = words.verdict(state)
  return f'<span class="badge {word}">{_MARKS.get(state, "?")} {word}</span>'


def _card(card: document.Card) -> str:
  notes = ''.join(f'<li>{html.escape(note)}</li>' for note in card.notes)
  return (
      f'<section class="card"><h3>{card.letter}: {html.escape(card.title)}'
      f'{_badge(card.state)}</h3>'
      f'<p class="value">{html.escape(card.headline)}</p>'
      f'<p class="soft">{html.escape(card.threshold)}</p>'
      f'<p>{html.escape(card.meaning)}</p>'
      f'{f"<ul>{notes}</ul>" if notes else ""}</section>')


def _cards(block: document.Cards) -> str:
  return f'<div class="cards">{"".join(map(_card, block.items))}</div>'


def _code(block: document.Code) -> str:
  return f'<pre>{html.escape(block.text.rstrip())}</pre>'


_BLOCKS = {
    document.Text: _text,
    document.Bullets: _bullets,
    document.Table: _table,
    document.Plots: _plots,
    document.Cards: _cards,
    document.Code: _code,
}


def render(report: document.Report) -> str:
  """The report as an HTML document that loads nothing."""
  title = html.escape(report.title)
  parts = []
  for section in report.sections:
    parts.append(f'<h2>{html.escape(section.title)}</h2>')
    parts += [_BLOCKS[type(block)](block) for block in section.blocks]
  body = '\n'.join(parts)
  badge = '' if report.state is None else f'{_badge(report.state)} '
  return (
      '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
      f'<title>{title}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n'
      f'<h1>{title}</h1>\n<p class="lead">{badge}'
      f'{html.escape(report.sentence)}</p>\n{body}\n</main></body></html>\n')
