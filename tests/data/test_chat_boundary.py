"""Where the answer begins, in chat templates and tokenizers of the families.

The templates are short forms of the documented formats, with the parts that
matter here: start tokens, white space, and what precedes an answer.
"""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from tests.models import tiny_tokenizers

_LLAMA3 = (
    '{{ bos_token }}{% for m in messages %}'
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    '{% if add_generation_prompt %}'
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
_GEMMA = (
    '{{ bos_token }}{% for m in messages %}'
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
_QWEN2 = (
    "{{ '<|im_start|>system\nuser assistant<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n'"
    " + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# The last answer has an empty thought; a prompt has one if thinking is off.
_QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    '{% if enable_thinking is defined and enable_thinking is false %}'
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}")
_LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' </s>' }}{% endif %}"
    '{% endfor %}')
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content']"
    " + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}")


def _llama3():
  return tiny_tokenizers.byte_level(
      ['<s>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'],
      bos='<s>', template=_LLAMA3)


def _chatml(template):
  return tiny_tokenizers.byte_level(
      ['<|im_start|>', '<|im_end|>', '<think>', '</think>'], template=template)


def _pieces(prefix, template=None, special=('<s>', '</s>')):
  return tiny_tokenizers.sentencepiece(
      special, prefix=prefix, bos='<s>', template=template)


# Family -> (tokenizer, end of the assistant's turn).
_FAMILIES = {
    'llama3': (_llama3, '<|eot_id|>'),
    'gemma': (lambda: _pieces('none', _GEMMA, (
        '<s>', '<start_of_turn>', '<end_of_turn>')), '<end_of_turn>'),
    'qwen2': (lambda: _chatml(_QWEN2), '<|im_end|>'),
    'qwen3': (lambda: _chatml(_QWEN3), '<|im_end|>'),
    'llama2': (lambda: _pieces('each', _LLAMA2), '▁'),
    'llama2_newer': (lambda: _pieces('first', _LLAMA2), '▁'),
    'phi3': (lambda: _pieces('each', _PHI3, (
        '<s>', '<|user|>', '<|assistant|>', '<|end|>')), '<|end|>')}
_ANSWERS = ('Paris', 'Rome', 'Rome is the capital of Italy', 'São Paulo', '42')


def _question(prompt='The capital of France is', choices=_ANSWERS):
  return questions_lib.Question(
      id='q', fact='f', relation='r', prompt=prompt, answer=choices[0],
      choices=tuple(choices), use='train', source='file:7')


def _encode(tokenizer, prompt=_question().prompt, *, chat=False):
  (got,) = tokenization.encode_questions(
      [_question(prompt)], tokenizer, chat=chat)
  (alone,) = tokenization.encode_prompts([prompt], tokenizer, chat=chat)
  assert alone == got.prompt
  return got


class ChatBoundaryTest(parameterized.TestCase):

  @parameterized.parameters(*_FAMILIES)
  def test_ids_are_those_of_generation(self, family):
    make, end = _FAMILIES[family]
    tokenizer = make()
    got = _encode(tokenizer, chat=True)
    turn = lambda role, text: {'role': role, 'content': text}
    asked = turn('user', _question().prompt)
    self.assertEqual(got.prompt, tokenizer.apply_chat_template(
        [asked], add_generation_prompt=True, return_dict=False,
        enable_thinking=False))
    for answer, ids in zip(_ANSWERS, got.choices):
      whole = tokenizer.apply_chat_template(
          [asked, turn('assistant', answer)], return_dict=False)
      size = len(got.prompt) + len(ids)
      self.assertEqual(whole[:size], got.prompt + ids)
      self.assertEqual(tokenizer.convert_ids_to_tokens(whole[size]), end)
      self.assertEqual(tokenizer.decode(ids).strip(), answer)
    self.assertGreater(len(got.choices[2]), 3)
    bos = tokenizer.bos_token_id
    self.assertEqual(got.prompt.count(bos), int(
        bos is not None and family != 'phi3'))

  @parameterized.parameters(
      ('llama3', ''), ('gemma', ''), ('qwen2', ''), ('qwen3', ''),
      ('llama2', ' '), ('llama2_newer', ' '), ('phi3', ''))
  def test_what_precedes_the_answer(self, family, want):
    tokenizer = _FAMILIES[family][0]()
    self.assertEqual(tokenization.describe(
        tokenizer, chat=True)['separator'], want)
    text = tokenization.prompt_text('a', tokenizer, chat=True)
    self.assertEqual(text.endswith('<think>\n\n</think>\n\n'),
                     family == 'qwen3')

  @parameterized.parameters('llama3', 'gemma', 'qwen2')
  def test_turns_that_data_write_out(self, family):
    """They have the ids of the same turns by the template."""
    tokenizer = _FAMILIES[family][0]()
    text = tokenization.prompt_text('The capital', tokenizer, chat=True)
    want = _encode(tokenizer, 'The capital', chat=True)
    for chat in (False, True):
      self.assertEqual(_encode(tokenizer, text, chat=chat), want)
    (place,) = tokenization.tokens_before(
        [text], [text.index(' capital')], tokenizer)
    self.assertEqual(
        tokenizer.decode(want.prompt[:place]), text[:text.index(' capital')])

  def test_turns_with_words_of_the_answer_go_on_with_a_space(self):
    tokenizer = _chatml(_QWEN2)
    got = _encode(tokenizer, '<|im_start|>assistant\nThe capital is ')
    self.assertEqual(tokenizer.decode(got.prompt + got.choices[0]),
                     '<|im_start|>assistant\nThe capital is Paris')


class LeadingSpaceTest(parameterized.TestCase):

  @parameterized.parameters(
      ('llama3', ['ĠParis']), ('gemma', ['▁Pa', 'ris']),
      ('llama2', ['▁Pa', 'ris']), ('llama2_newer', ['▁Pa', 'ris']))
  def test_one_space_and_one_start(self, family, want):
    tokenizer = _FAMILIES[family][0]()
    got = _encode(tokenizer)
    self.assertEqual(got.prompt[0], tokenizer.bos_token_id)
    self.assertEqual(got.prompt.count(tokenizer.bos_token_id), 1)
    self.assertEqual(tokenizer.convert_ids_to_tokens(got.choices[0]), want)
    for answer, ids in zip(_ANSWERS, got.choices):
      self.assertEqual(got.prompt + ids, list(
          tokenizer(f'{_question().prompt} {answer}')['input_ids']))
    self.assertGreater(len(got.choices[2]), 3)

  @parameterized.parameters('none', 'each', 'first')
  def test_merges_over_the_border_leave_one_space(self, prefix):
    """SentencePiece's own space is not added to that before the answer."""
    tokenizer = tiny_tokenizers.sentencepiece(
        ['<s>'], prefix=prefix, bos='<s>', merges=[('c', '▁')])
    got = _encode(tokenizer, 'The c')
    self.assertNotEqual(
        got.prompt + got.choices[0],
        list(tokenizer('The c Paris')['input_ids']))  # 'c▁' is one token.
    text = tokenizer.decode(got.prompt + got.choices[0],
                            skip_special_tokens=True)
    self.assertEqual(text.strip(), 'The c Paris')

  def test_chat_prompts_that_end_in_a_space(self):
    tokenizer = tiny_tokenizers.byte_level(
        ['<s>'], template="{{ messages[0]['content'] }}\nmodel: ")
    got = _encode(tokenizer, chat=True)
    tokens = tokenizer.convert_ids_to_tokens(got.prompt)
    self.assertEqual(tokens[-2:], [':', 'Ġ'])  # As generation is given.
    self.assertEqual(tokenizer.decode(got.prompt + got.choices[0]),
                     'The capital of France is\nmodel: Paris')


if __name__ == '__main__':
  absltest.main()
