"""States put in the base give what an ordinary run on them gives."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.erasure import spans
from mansu_jax.erasure import transplant
from mansu_jax.models import layers
from mansu_jax.models import rotary
from tests.circuits import small
from tests.erasure import span_cases
from tests.models import tiny

_CONFIG, _PARAMS, _LAYER = (
    span_cases.CONFIG, span_cases.PARAMS, span_cases.LAYER)


class TransplantTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.questions = span_cases.questions()
    cls.batch, = spans.batches_of(cls.questions)
    cls.rows, cls.size = cls.batch.rows, len(cls.questions)
    cls.other = span_cases.changed([0, 1])
    cls.base = transplant.run(_CONFIG, _PARAMS, cls.rows, layer=_LAYER)
    cls.given = transplant.run(_CONFIG, cls.other, cls.rows, layer=_LAYER)
    cls.same = np.arange(len(cls.rows.tokens))[None]

  def _close(self, got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  def test_run_keeps_the_states_of_an_ordinary_run(self):
    for i, ids in enumerate(self.questions.prompts):
      last = len(ids) - 1
      for states, params in (
          (self.base, _PARAMS), (self.given, self.other)):
        self._close(states.before[i, :last + 1], span_cases.before(
            params, ids, _LAYER)[0])
        self._close(states.after[i], span_cases.before(
            params, ids, _LAYER + 1)[0, last])
        self._close(self._read(states.final[:, None], params)[i, 0],
                    span_cases.logits(params, ids)[self.rows.choices[i]])

  def _read(self, x, params=_PARAMS):
    """Logits of the choices [n, V, C]."""
    return np.asarray(transplant.choice_logits(
        _CONFIG, params, x, self.rows.choices))[:self.size]

  def _answer(self, states):
    return self._read(transplant.read_by_base(
        _CONFIG, _PARAMS, self.base.before, states, self.rows, layer=_LAYER))

  def test_picks_are_the_likeliest_choices_of_each_source(self):
    x = jnp.stack([self.base.final, self.given.final], axis=1)
    sources = np.concatenate([self.same, self.batch.others])
    got = transplant.picks(_CONFIG, _PARAMS, x, self.rows.choices, sources)
    for source, one in zip(sources, got, strict=True):
      np.testing.assert_array_equal(
          one[:self.size], self._read(x[source]).argmax(-1))

  @parameterized.named_parameters(*tiny.LAYER_KINDS)
  def test_its_own_states_change_nothing_in_any_family(self, changes):
    cfg = small.config(num_layers=3, **changes)
    params = jax.tree.map(jnp.asarray, small.params(cfg))
    own = transplant.run(cfg, params, self.rows, layer=1)
    x = transplant.read_by_base(
        cfg, params, own.before, own, self.rows, layer=1)
    logits = lambda x: transplant.choice_logits(
        cfg, params, x, self.rows.choices)[:self.size]
    self._close(logits(x)[:, 0], logits(own.final[:, None])[:, 0])

  def test_its_own_states_change_nothing(self):
    got = self._answer(self.base)
    for i, ids in enumerate(self.questions.prompts):
      want = span_cases.logits(_PARAMS, ids)[self.rows.choices[i]]
      for reading in got[i]:
        self._close(reading, want)

  def test_last_state_is_a_run_with_that_state(self):
    got = self._answer(self.given)
    for i, ids in enumerate(self.questions.prompts):
      x = span_cases.before(_PARAMS, ids, _LAYER + 1)
      x[0, -1] = self.given.after[i]
      self._close(got[i, 1], span_cases.after(
          _PARAMS, x, _LAYER + 1, self.rows.choices[i]))

  def test_values_are_read_by_the_bases_attention(self):
    got = self._answer(self.given)
    weights = jax.tree.map(lambda w: w[_LAYER], _PARAMS['layers'])
    attn = weights['attn']
    for i, ids in enumerate(self.questions.prompts):
      own = span_cases.before(_PARAMS, ids, _LAYER)
      mixed = own.copy()
      mixed[0, 1:-1] = np.asarray(self.given.before)[i, 1:len(ids) - 1]
      norm = lambda x, name: layers.norm(
          _CONFIG, weights, name, jnp.asarray(x))
      tables = rotary.tables(
          _CONFIG, np.arange(len(ids))[None], _CONFIG.kinds[0])
      normed = norm(own, 'attn_norm')
      q, k = (rotary.rotate(jnp.einsum(
          'BTD,DNH->BTNH', normed, attn[name]), tables) for name in 'qk')
      v = jnp.einsum('BTD,DNH->BTNH', norm(mixed, 'attn_norm'),
                     attn['v'])
      out = np.zeros(_CONFIG.d_model)
      for head in range(_CONFIG.num_heads):
        group = head // (_CONFIG.num_heads // _CONFIG.num_kv_heads)
        scores = k[0, :, group] @ q[0, -1, head] / np.sqrt(_CONFIG.d_head)
        out += (jax.nn.softmax(scores) @ v[0, :, group]) @ attn['o'][head]
      x = span_cases.before(_PARAMS, ids, _LAYER + 1)
      last = own[0, -1] + out
      hidden = norm(last[None, None], 'mlp_norm')
      mlp = weights['mlp']
      gate = jax.nn.silu(hidden @ mlp['gate']) * (hidden @ mlp['up'])
      x[0, -1] = last + (gate @ mlp['down'])[0, 0]
      self._close(got[i, 0], span_cases.after(
          _PARAMS, x, _LAYER + 1, self.rows.choices[i]))

  def test_states_off_the_span_are_not_read(self):
    outside = self.base.before.at[:, 0].add(1.0)
    for i, ids in enumerate(self.questions.prompts):
      outside = outside.at[i, len(ids) - 1:].add(1.0)
    want = self._answer(self.base)[:, 0]
    got = self._answer(self.base._replace(before=outside))[:, 0]
    np.testing.assert_array_equal(got, want)
    inside = self.base.before.at[:, 1].add(1.0)
    got = self._answer(self.base._replace(before=inside))[:, 0]
    self.assertGreater(np.abs(got - want).max(), 1e-3)

  def test_routed_with_its_own_layer_is_an_ordinary_run(self):
    got = transplant.routed(
        _CONFIG, _PARAMS, self.base.before, _PARAMS, self.base.before, _PARAMS,
        self.rows, layer=_LAYER)
    self.assertEqual(got.shape[1], _CONFIG.num_layers - _LAYER)
    for i, ids in enumerate(self.questions.prompts):
      want = span_cases.logits(_PARAMS, ids)[self.rows.choices[i]]
      self._close(self._read(got)[i, -1], want)
      self._close(self._read(got)[i, 0], span_cases.read_at(
          _PARAMS, ids, _LAYER)[self.rows.choices[i]])

  def test_routed_takes_the_bases_layer(self):
    """Where only the layer differs, the block is the base's."""
    edited = span_cases.changed([_LAYER])
    own = transplant.run(_CONFIG, edited, self.rows, layer=_LAYER)
    block, looks = (self._read(transplant.routed(
        _CONFIG, _PARAMS, self.base.before, edited, own.before, reads,
        self.rows, layer=_LAYER))[:, -1] for reads in (_PARAMS, edited))
    for i, ids in enumerate(self.questions.prompts):
      self._close(block[i], span_cases.logits(
          _PARAMS, ids)[self.rows.choices[i]])
    self.assertGreater(np.abs(looks - block).max(), 1e-2)

  def test_replaced_is_a_run_on_replaced_states(self):
    got = self._read(transplant.replaced(
        _CONFIG, _PARAMS, self.base.before, self.batch.others[1], self.rows,
        layer=_LAYER)[:, None])[:, 0]
    for i, ids in enumerate(self.questions.prompts):
      other = self.questions.prompts[self.questions.others[i, 1]]
      x = span_cases.before(_PARAMS, ids, _LAYER)
      x[0, 1:-1] = span_cases.before(_PARAMS, other, _LAYER)[0, 1:-1]
      self._close(got[i], span_cases.after(
          _PARAMS, x, _LAYER, self.rows.choices[i]))


if __name__ == '__main__':
  absltest.main()
