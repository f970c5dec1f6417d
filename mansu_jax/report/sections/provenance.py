"""Sample answers, and the model, data and settings of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words

Record = dict[str, Any]

_NOT_REPEATED = ('workdir', 'resume')


def samples(record: Record) -> document.Section:
  """Greedy continuations before and after unlearning."""
  title = 'Sample answers'
  if not record['samples']:
    return document.Section(title, (document.Text(
        'No sample answers were generated (--eval_generations=0).'),))
  names = list(record['samples'][0]['continuations'])
  rows = tuple(
      (s['split'], s['prompt'], s['answer'], *(
          s['continuations'].get(n, words.MISSING).strip() or '(nothing)'
          for n in names)) for s in record['samples'])
  columns = ('split', 'prompt', 'right answer',
             *(n.replace('_', ', ') for n in names))
  return document.Section(title, (document.Table(
      columns, rows, labels=len(columns),
      caption='Greedy continuations of a few questions of each split. The'
      ' seed draws the questions; nobody chose them.'),))


def provenance(record: Record) -> list[document.Section]:
  """Model, data, quantizers, environment, stages and flags."""
  return [_model(record), _data(record), _quantizers(record),
          _environment(record), _stages(record), _flags(record)]


def of_attribution(record: Record) -> list[document.Section]:
  """The same without quantizers, which attribution does not use."""
  return [_model(record), _data(record), _environment(record),
          _stages(record), _flags(record)]


def _key_values(
    name: str, values: dict[str, Any], caption: str) -> document.Table:
  rows = tuple((key, _plain(value)) for key, value in values.items())
  return document.Table((name, 'value'), rows, labels=2, caption=caption)


def _plain(value: Any) -> str:
  """A JSON value as text."""
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
  text = f'Full precision (fp) means the weights as loaded: {note}.'
  if 'dequantised' in note:
    text += (' These are decoded from a quantized file, so the base differs'
             ' from the original model.')
  blocks = [document.Text(text)]
  if 'pair' in record:
    blocks += [_key_values('base', source, 'Source of the base.'),
               _key_values('unlearned model', record['pair'],
                           'Source of the audited model.')]
  else:
    blocks.append(_key_values('model', source, 'Source of the base model.'))
  blocks.append(_key_values('shape', record['model'].get('config', {}),
                            'Architecture of the model.'))
  return document.Section('Model', (
      *blocks, *_tokenization(record.get('tokenization'))))


def _tokenization(found: Record | None) -> Iterator[document.Block]:
  if found is None:
    return
  yield _key_values('tokenization', found, 'How text becomes tokens.')
  if not found:
    return
  text = ('Questions were asked as plain text: the prompt, a space and the'
          ' answer, without a chat template.')
  if found.get('chat'):
    text = ('Questions were asked in chat form (--data_chat): each prompt is a'
            ' user turn of the model\'s chat template, and the answer begins'
            ' the assistant turn. General text was not wrapped.')
    if unwrapped := found.get('asked_as_written'):
      text += (f' {words.count(unwrapped, "question")} already contained'
               ' special tokens and stayed unchanged.')
  yield document.Text(text)


def _data(record: Record) -> document.Section:
  data = record['data']
  counts = tuple(
      (split, *(str(data[k][split]) if data[k].get(split) else 'none'
                for k in ('questions', 'facts')))
      for split in data.get('questions', {}))
  blocks = []
  if 'questions' in data:
    blocks.append(document.Table(
        ('split', 'questions asked', 'facts'), counts,
        caption='Evaluation questions, and the facts that they ask for.'))
  return document.Section('Data', (*blocks, document.Table(
      ('file', 'sha256'), tuple(sorted(data['sha256'].items())), labels=2,
      caption='SHA-256 hashes of the files that the run read.')))


def _quantizers(record: Record) -> document.Section:
  rows = tuple(
      (name, found['code_book'], str(found['block']),
       _plain(found.get('double_quantization')),
       words.listing(found.get('skipped', [])), _guarantee(found))
      for name, found in record['quantizers'].items())
  return document.Section('Quantizers', (
      document.Table(
          ('quantizer', 'code book', 'weights per scale',
           'double quantization', 'not quantized', 'edits'), rows, labels=6,
          caption=f'{_storage(record)} The storage type affects the codes.'
          ' Edits: "guaranteed" means that the magnitude floor makes every'
          ' moved weight change its code under this quantizer, with the block'
          ' scales held; "measured" means that survival is only measured.'),
      *(document.Text(text) for name, found in record['quantizers'].items()
        for text in _remarks(record, name, found))))


def _storage(record: Record) -> str:
  if 'pair' in record:
    return ('Quantizers of this audit, applied to both models as'
            f' {record["pair"]["compared_as"]}.')
  return ('Quantizers of this run, applied to the model in its export type'
          f' {record["config"]["export_dtype"]}.')


def _guarantee(found: Record) -> str:
  known = {True: 'guaranteed', False: 'measured'}
  return known.get(found.get('guaranteed'), words.MISSING)


def _remarks(record: Record, name: str, found: Record) -> Iterator[str]:
  """Quantized bases, fallback formats, and calibration."""
  note = record['model'].get('weights_note', '')
  if f'dequantised from {name.upper()} ' in note:
    yield (f'The base\'s weights are already decoded {name} values, so {name}'
           ' does not change the base. Its figures do not show what another'
           ' format would lose.')
  if instead := found.get('instead'):
    kinds = {}
    for leaf, other in instead.items():
      kinds.setdefault(other, []).append(leaf)
    yield (f'{name} cannot cut the rows of some matrices into its blocks. As in'
           ' llama.cpp, ' + '; '.join(
               f'{words.listing(leaves)} use {other}'
               for other, leaves in kinds.items()) + '.')
  if used := found.get('calibration'):
    yield (f'{name} was calibrated on {used["tokens"]:,} tokens, in'
           f' {words.count(used["windows"], "window")} from'
           f' {words.count(used["documents"], "document")}.')


def _environment(record: Record) -> document.Section:
  values = dict(record['environment'])
  earlier = {f'before resumption, {i}': each for i, each in enumerate(
      values.pop('earlier', []), 1)}
  return document.Section('Environment', (
      _key_values('environment', values | earlier,
                  'Versions and devices of the run.'),))


def _stages(record: Record) -> document.Section:
  stages = record['stages']
  peaks = [s['peak_bytes'] for s in stages if s.get('peak_bytes')]
  rows = [_stage(s['name'], [s], s.get('peak_bytes')) for s in stages]
  rows.append(_stage('all', stages, max(peaks, default=None)))
  return document.Section('Stages', (document.Table(
      ('stage', 'time', 'compilation', 'tokens per second',
       'peak memory so far'), tuple(rows),
      caption='Wall-clock time of each stage; the time includes compilation.'
      ' Tokens per second counts the tokens that models processed and excludes'
      ' compilation. Peak memory is that of the fullest device, or of the'
      ' process where devices do not report it. In a resumed run, a restored'
      ' stage shows the time to restore it.'),))


def _stage(
    name: str, stages: list[Record], peak: float | None) -> tuple[str, ...]:
  compiling = [s.get('compile_seconds') for s in stages]
  rates = [s.get('tokens_per_second') for s in stages]
  return (
      name, words.duration(sum(s['seconds'] for s in stages)),
      words.duration(None if None in compiling else sum(compiling)),
      f'{rates[0]:,.0f}' if len(rates) == 1 and rates[0] else '',
      words.size(peak))


def flags(config: Record) -> Iterator[str]:
  """The flags that repeat a run, except its workdir."""
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
    yield f'--{name}={"auto" if value is None else value}'


def _flags(record: Record) -> document.Section:
  return document.Section('Flags', (
      document.Text('The contents of flags.txt. This command repeats the run:'
                    ' python -m mansu_jax.main --flagfile=flags.txt'
                    ' --workdir=DIR'),
      document.Code('\n'.join(flags(record['config'])))))
