"""Sample answers, and all that is needed to trust or repeat the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words

Record = dict[str, Any]

_NOT_REPEATED = ('workdir', 'resume')


def samples(record: Record) -> document.Section:
  """Free continuations before and after."""
  title = 'Free answers'
  if not record['samples']:
    return document.Section(title, (document.Text(
        'No question was answered freely (--eval_generations=0).'),))
  names = list(record['samples'][0]['continuations'])
  rows = tuple(
      (s['split'], s['prompt'], s['answer'], *(
          s['continuations'].get(n, words.MISSING).strip() or '(nothing)'
          for n in names)) for s in record['samples'])
  columns = ('split', 'prompt', 'right answer',
             *(n.replace('_', ', ') for n in names))
  return document.Section(title, (
      document.Text('Greedy continuations of a few questions of each split,'
                    ' drawn by the seed and not chosen.'),
      document.Table(columns, rows, labels=len(columns))))


def provenance(record: Record) -> list[document.Section]:
  """Model, data, quantizers, environment, stages and flags."""
  return [_model(record), _data(record), _quantizers(record),
          _environment(record), _stages(record), _flags(record)]


def of_attribution(record: Record) -> list[document.Section]:
  """The same of attribution alone, which quantizes nothing."""
  return [_model(record), _data(record), _environment(record),
          _stages(record), _flags(record)]


def _pairs(name: str, values: dict[str, Any]) -> document.Table:
  rows = tuple((key, _plain(value)) for key, value in values.items())
  return document.Table((name, ''), rows, labels=2)


def _plain(value: Any) -> str:
  if value is None or value in ('', {}):
    return 'none'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, dict):
    return ', '.join(f'{k} {_plain(v)}' for k, v in value.items())
  if isinstance(value, (list, tuple)):
    return ', '.join(map(_plain, value)) or 'none'
  if isinstance(value, str) and value.isspace():
    return repr(value)
  return f'{value:,}' if isinstance(value, int) else str(value)


def _model(record: Record) -> document.Section:
  source = {k: v for k, v in record['model'].items() if k != 'config'}
  note = source.get('weights_note', '')
  text = f'fp ("full precision") means the weights as loaded: {note}.'
  if 'dequantised' in note:
    text += (' So this full precision is itself the decoded values of a'
             ' quantized file, and the base is not the model as it was'
             ' trained.')
  audited = ()
  if 'pair' in record:
    audited = (_pairs('unlearned model', record['pair']),)
  return document.Section('Model', (
      document.Text(text), _pairs('base' if audited else 'model', source),
      *audited,
      _pairs('shape', record['model'].get('config', {})),
      *(_tokenization(record['tokenization'])
        if 'tokenization' in record else ())))


def _tokenization(found: Record) -> Iterator[document.Block]:
  yield _pairs('tokenization', found)
  if not found:
    return
  text = ('Questions were asked plainly: the prompt, a space and the answer,'
          ' without a chat template.')
  if found.get('chat'):
    text = ('Questions were asked in chat form (--data_chat): each prompt is a'
            ' user\'s turn of the model\'s chat template, and the answer opens'
            ' the assistant\'s. General text was not wrapped.')
    if written := found.get('asked_as_written'):
      text += (f' {words.count(written, "question")} held special tokens of the'
               ' tokenizer already and stayed as written.')
  yield document.Text(text)


def _data(record: Record) -> document.Section:
  data = record['data']
  counted = tuple(
      (split, *(str(data[k][split]) if data[k].get(split) else 'none'
                for k in ('questions', 'facts')))
      for split in data.get('questions', {}))
  hashes = tuple(sorted(data['sha256'].items()))
  asked = (document.Table(('split', 'questions asked', 'facts'), counted),)
  return document.Section('Data', (
      *(asked if 'questions' in data else ()),
      document.Table(('file', 'sha256'), hashes, labels=2)))


def _quantizers(record: Record) -> document.Section:
  stored = f'Exported in {record["config"]["export_dtype"]}'
  if 'pair' in record:
    stored = f'Both models as {record["pair"]["compared_as"]} holds them'
  rows = tuple(
      (name, found['code_book'],
       str(found['block']),
       _plain(found.get('double_quantization')),
       words.listing(found.get('skipped', [])), _edits(found))
      for name, found in record['quantizers'].items())
  return document.Section('Quantizers', (
      document.Table(
          ('quantizer', 'code book', 'weights a scale', 'double quantization',
           'not quantized', 'edits'), rows, labels=6),
      *(document.Text(text) for name, found in record['quantizers'].items()
        for text in _remarks(record, name, found)),
      document.Text(f'{stored}; storage type decides codes.' + (
          '' if 'pair' in record else ' Guaranteed: the floor let no weight'
          ' move that this quantizer would not see move, with the scale of each'
          ' block held. The others are measured.'))))


def _edits(found: Record) -> str:
  known = {True: 'guaranteed', False: 'measured'}
  return known.get(found.get('guaranteed'), words.MISSING)


def _remarks(record: Record, name: str, found: Record) -> Iterator[str]:
  """What a quantizer does otherwise than its name says, and what it saw."""
  note = record['model'].get('weights_note', '')
  if f'dequantised from {name.upper()} ' in note:
    yield (f'The base\'s weights are decoded {name} values already: {name} takes'
           ' nothing from the base, and shows nothing of what another format'
           ' would take.')
  if instead := found.get('instead'):
    kinds = {}
    for leaf, other in instead.items():
      kinds.setdefault(other, []).append(leaf)
    yield f'{name} cannot cut the rows of some matrices: ' + '; '.join(
        f'{words.listing(leaves)} get {other}'
        for other, leaves in kinds.items()) + ', as in llama.cpp.'
  if seen := found.get('calibration'):
    yield (f'{name} was calibrated on {seen["tokens"]:,} tokens, in'
           f' {words.count(seen["windows"], "window")} spread over'
           f' {words.count(seen["documents"], "document")}.')


def _environment(record: Record) -> document.Section:
  values = dict(record['environment'])
  earlier = {f'before, {i}': each for i, each in enumerate(
      values.pop('earlier', []), 1)}
  return document.Section('Environment', (
      _pairs('environment', values | earlier),))


def _stages(record: Record) -> document.Section:
  def row(name, stages, peak):
    seconds = sum(s['seconds'] for s in stages)
    compiling = [s.get('compile_seconds') for s in stages]
    rates = [s.get('tokens_per_second') for s in stages]
    rate = f'{rates[0]:,.0f}' if len(rates) == 1 and rates[0] else ''
    return (name, words.duration(seconds), words.duration(
        None if None in compiling else sum(compiling)), rate, words.size(peak))

  stages = record['stages']
  peaks = [s['peak_bytes'] for s in stages if s.get('peak_bytes')]
  rows = [row(s['name'], [s], s.get('peak_bytes')) for s in stages]
  rows.append(row('all', stages, max(peaks, default=None)))
  return document.Section('Stages', (
      document.Table(('stage', 'time', 'of which compiling', 'tokens a second',
                      'peak memory so far'), tuple(rows)),
      document.Text('Tokens are those that models were run on, without the time'
                    ' to compile. Peak memory is of the fullest device where'
                    ' they tell, else of the process. In a resumed run a restored'
                    ' stage shows what restoring it took.')))


def flags(config: Record) -> Iterator[str]:
  """The flags that repeat a run, without its workdir."""
  for name, value in config.items():
    if isinstance(value, dict):
      for field, inner in value.items():
        yield from _flag(f'{name}_{field}', inner, repeated=name == 'data')
    elif name not in _NOT_REPEATED:
      yield from _flag(name, value)


def _flag(name: str, value: Any, *, repeated: bool = False) -> Iterator[str]:
  if isinstance(value, bool):
    yield f'--{"" if value else "no"}{name}'
  elif isinstance(value, (list, tuple)) and repeated:
    yield from (f'--{name}={item}' for item in value)
  elif isinstance(value, (list, tuple)):
    yield f'--{name}={",".join(map(str, value))}'
  else:
    yield f'--{name}={value}'


def _flags(record: Record) -> document.Section:
  return document.Section('Flags', (
      document.Text('The same as flags.txt; python -m mansu_jax.main'
                    ' --flagfile=flags.txt --workdir=DIR repeats the run.'),
      document.Code('\n'.join(flags(record['config'])))))
