"""Plain text stays plain text in Markdown."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.report import document
from mansu_jax.report import markdown


class EscapeTest(parameterized.TestCase):

  @parameterized.parameters(
      ('a|b', r'a\|b'), ('<b>', '&lt;b&gt;'), ('int4_g128', 'int4_g128'),
      ('_x_', r'\_x\_'), ('*x*', r'\*x\*'), ('[a](b)', r'[a\](b)'),
      ('[0.1, 0.2]', '[0.1, 0.2]'), ('# x', r'\# x'), ('12. x', r'12\. x'),
      ('-0.5', '-0.5'), ('- x', r'\- x'), ('a\nb', 'a ⏎ b'),
      ('`c`', r'\`c\`'), ('a & b', 'a &amp; b'), ('', ''),
      ('## x', r'\## x'), ('0.5', '0.5'), ('1) x', r'1\) x'))
  def test_text_stays_text(self, text, wanted):
    self.assertEqual(markdown.escape(text), wanted)

  def test_captions_come_before_tables(self):
    table = document.Table(('a', 'b'), (('x', '1'),), caption='Share of *x*.')
    self.assertEqual(
        markdown.table(table),
        '\n'.join((r'Share of \*x\*.', '', '| a | b |', '| --- | ---: |',
                   '| x | 1 |')))

  def test_bullets(self):
    text = markdown.render(document.Report('t', None, 's', (
        document.Section('u', (document.Bullets(('one', '*two*')),)),)))
    self.assertIn('- one\n- \\*two\\*\n', text)


if __name__ == '__main__':
  absltest.main()
