"""Tokenizers of few tokens, made as the families' own are."""

import json

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers
import transformers

# Words of the tests: some are one token, others several.
_TEXTS = ['The capital of France is Paris.', 'The capital of Italy is Rome.',
          'user model assistant system'] * 4
_SPACE = '▁'


def byte_level(special, *, bos=None, template=None, texts=_TEXTS, size=320):
  """Byte-level BPE, as of GPT-2, Llama 3 and Qwen; `bos` precedes texts."""
  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  bpe.train_from_iterator(texts, trainers.BpeTrainer(
      vocab_size=size, special_tokens=list(special), show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  return _finished(bpe, special, bos, template)


def sentencepiece(
    special, *, prefix, bos=None, template=None, texts=_TEXTS, size=100,
    merges=()):
  """BPE on text whose spaces are `▁`, with bytes for unknown letters.

  Args:
    special: Special tokens, after <unk> and the bytes.
    prefix: `none` (Gemma), `each` (Llama 2, Mistral 7B and Phi 3: a `▁` before
      each part of a text between special tokens), or `first` (the newer form
      of these: before the text only).
    bos: Token that precedes texts.
    template: Chat template.
    texts: What the merges are learned from.
    size: Tokens without the bytes.
    merges: Pairs to merge before all others.
  """
  learned = tokenizers.Tokenizer(models.BPE())
  learned.normalizer = normalizers.Replace(' ', _SPACE)
  learned.pre_tokenizer = pre_tokenizers.Split(_SPACE, 'merged_with_next')
  learned.train_from_iterator(texts, trainers.BpeTrainer(
      vocab_size=size, show_progress=False, initial_alphabet=[_SPACE, 'S']))
  model = json.loads(learned.to_str())['model']
  pieces = ['<unk>', *special, *(f'<0x{i:02X}>' for i in range(256))]
  pieces += sorted(model['vocab'], key=model['vocab'].get)
  pieces += [''.join(pair) for pair in merges]
  bpe = tokenizers.Tokenizer(models.BPE(
      {piece: i for i, piece in enumerate(pieces)},
      [*merges, *map(tuple, model['merges'])], unk_token='<unk>',
      byte_fallback=True, fuse_unk=True))
  replace = normalizers.Replace(' ', _SPACE)
  if prefix == 'none':
    bpe.normalizer = replace
  elif prefix == 'each':
    bpe.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), replace])
  else:
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(
        _SPACE, prepend_scheme='first', split=False)
  bpe.decoder = decoders.Sequence([
      decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(),
      *([] if prefix == 'none' else [decoders.Strip(' ', 1, 0)])])
  bpe.add_special_tokens([tokenizers.AddedToken(
      x, rstrip=x.startswith('<|')) for x in special])  # As of Phi 3.
  return _finished(bpe, special, bos, template)


def _finished(bpe, special, bos, template):
  if bos is not None:
    bpe.post_processor = processors.TemplateProcessing(
        single=f'{bos} $A', pair=f'{bos} $A {bos} $B',
        special_tokens=[(bos, bpe.token_to_id(bos))])
  made = transformers.PreTrainedTokenizerFast(
      tokenizer_object=bpe, bos_token=bos,
      additional_special_tokens=[x for x in special if x != bos])
  made.chat_template = template
  return made
