"""The stub tokenizer, which only counts tokens."""

from absl.testing import absltest

from mansu_jax.data import tokenization
from mansu_jax.planning import stub_tokenizer

_TEXT = 'The capital of Liechtenstein is Vaduz, since 1719.'


class TokenizerTest(absltest.TestCase):

  def test_tokenization_accepts_the_stub(self):
    tokenizer = stub_tokenizer.Tokenizer(100)
    self.assertLen(tokenization.prefix_ids(tokenizer), 1)
    bare, = tokenization.encode([_TEXT], tokenizer)
    # The capital of Liechte nstein is Vaduz , sin.. 171 9 .
    self.assertLen(bare, 12)
    self.assertLess(max(bare), 100)
    self.assertNotIn(tokenization.prefix_ids(tokenizer)[0], bare)

  def test_a_piece_has_one_id(self):
    tokenizer = stub_tokenizer.Tokenizer(1000)
    one, two, other = tokenization.encode(
        [_TEXT, _TEXT, 'Bern is it'], tokenizer)
    self.assertEqual(one, two)
    self.assertIn(other[1], one)  # ' is'
    self.assertLen(set(one), len(one))

  def test_every_character_is_in_a_piece(self):
    tokenizer = stub_tokenizer.Tokenizer(1000)
    for text in ('__x_', '  \n\t', 'é°ß', '(a)', '123456', 'x\n\ny'):
      self.assertNotEmpty(tokenization.encode([text], tokenizer)[0])


if __name__ == '__main__':
  absltest.main()
