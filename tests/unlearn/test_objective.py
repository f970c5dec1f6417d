"""The objective against a model and losses in loops, sequence by sequence."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax import quant
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models import sites
from mansu_jax.stages.train import whole_edits
from mansu_jax.unlearn import objective
from mansu_jax.unlearn import other_facts
from mansu_jax.unlearn import step_data
from tests.circuits import small
from tests.reference import circuit_naive
from tests.reference import decoder_naive
from tests.reference import unlearn_naive
from tests.unlearn import problem

_LOSSES = ('npo', 'simnpo', 'bounded_nll', 'ascent', 'wga', 'satimp', 'undial',
           'quail')


def _logits(params, sequences):
  """[T, V] of each sequence alone."""
  return [decoder_naive.forward(
      row, params, theta=problem.CONFIG.rope_theta,
      eps=problem.CONFIG.norm_eps)[0] for row in sequences[0]]


def _places(mask):
  return [np.flatnonzero(row).tolist() for row in mask]


def _naive_kl(base, seen, mask, power=1):
  """Mean of a power over predicted tokens of all sequences."""
  values = [unlearn_naive.kl(base[i][t], seen[i][t])**power
            for i, row in enumerate(_places(mask)) for t in row]
  return sum(values) / len(values)


def _naive_nll(logits, sequences):
  return [unlearn_naive.sequence_nll(logits[i], sequences[0][i], row)
          for i, row in enumerate(_places(sequences[1]))]


def _token_losses(options, before, after):
  """The losses that are means over all answer tokens, token by token."""
  tokens = [(before[i][t], after[i][t], problem.FORGET[0][i][t + 1])
            for i, row in enumerate(_places(problem.FORGET[1])) for t in row]
  nll = [-unlearn_naive.log_softmax(row)[label] for _, row, label in tokens]
  return {
      'wga': [unlearn_naive.satimp(a, options.wga_power, 0.0) for a in nll],
      'satimp': [unlearn_naive.satimp(
          a, options.satimp_saturation, options.satimp_importance)
                 for a in nll],
      'undial': [unlearn_naive.undial(
          base, row, label, options.undial_strength)
                 for base, row, label in tokens],
      'quail': [np.mean([max(0, options.quail_margin - abs(z - z_0))
                         for z, z_0 in zip(row, base)]) - a
                for (base, row, _), a in zip(tokens, nll)]}


def _naive(options, base, theta):
  """All metrics; the swapped-subject prompts are the text once more."""
  before, after = ({
      name: _logits(params, part) for name, part in (
          ('forget', problem.FORGET), ('retain', problem.RETAIN),
          ('text', problem.TEXT))} for params in (base, theta))
  nll = _naive_nll(after['forget'], problem.FORGET)
  nll_base = _naive_nll(before['forget'], problem.FORGET)
  lengths = [len(row) for row in _places(problem.FORGET[1])]
  beta = options.npo_beta
  forget = np.mean({
      'npo': [unlearn_naive.npo(a, b, beta) for a, b in zip(nll, nll_base)],
      'simnpo': [unlearn_naive.simnpo(a, n, beta)
                 for a, n in zip(nll, lengths)],
      'bounded_nll': [unlearn_naive.unlikelihood(a) for a in nll],
      'ascent': [-a for a in nll],
      **_token_losses(options, before['forget'], after['forget'])
  }[options.loss])
  kls, squares = ({
      name: _naive_kl(before[at], after[at], part[1], power)
      for name, at, part in (
          ('retain', 'retain', problem.RETAIN), ('text', 'text', problem.TEXT),
          ('prompts', 'forget', problem.PROMPTS))} for power in (1, 2))
  kept = {name: value + options.kl_square_weight * squares[name]
          for name, value in kls.items()}
  retain_nll = sum(_naive_nll(after['retain'], problem.RETAIN)) / (
      problem.RETAIN[1].sum())
  loss = (options.forget_weight * forget
          + options.kl_weight * (
              kept['retain'] + options.text_weight * kept['text']
              + options.swapped_weight * kept['text']
              + options.prompt_weight * kept['prompts'])
          + options.nll_weight * retain_nll)
  return [loss, forget, np.mean(nll), kls['retain'], retain_nll, kls['text'],
          kls['text'], 0.0]


class ObjectiveTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = problem.model()
    cls.hidden = staticmethod(problem.hidden_of_model())
    cls.edit = problem.circuit_edit()
    rng = np.random.default_rng(7)
    cls.theta = jax.tree.map(
        lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32),
        cls.edit.theta)
    cls.merged = jax.device_get(cls.edit.merge(cls.theta))

  @classmethod
  @functools.cache
  def _loss(cls, options):
    return jax.jit(objective.make_loss(
        options, cls.edit.forward, cls.edit.unembed))

  @parameterized.parameters(*_LOSSES)
  def test_packed_rows_equal_separate_sequences(self, name):
    options = problem.options(
        loss=name, forget_weight=0.7, kl_weight=3.0, nll_weight=0.5,
        text_weight=0.3, prompt_weight=2.0, swapped_weight=0.4, npo_beta=0.3,
        kl_square_weight=1.7, wga_power=0.3, satimp_saturation=0.2,
        satimp_importance=0.5, undial_strength=2.0, quail_margin=0.3)
    batch = problem.batch(self.hidden)
    batch = batch._replace(swapped=batch.text)
    self.assertEqual(batch.packed.tokens.shape[0], 1)  # All share a row.
    view = self.edit.base
    loss, metrics = self._loss(options)(self.theta, view, view, batch)
    want = _naive(options, jax.device_get(self.model.params), self.merged)
    np.testing.assert_allclose(metrics, want, rtol=2e-4, atol=2e-5)
    self.assertEqual(float(loss), float(metrics.loss))
    self.assertGreater(min(map(abs, want[:-1])), 1e-3)

  def test_parts_sum_to_the_loss_and_only_one_has_the_forget_term(self):
    options = problem.options(kl_weight=3.0, nll_weight=0.5)
    batch, view = problem.batch(self.hidden), self.edit.base
    loss, _ = self._loss(options)(self.theta, view, view, batch)
    (forget, kept), metrics = jax.jit(objective.make_parts(
        options, self.edit.forward, self.edit.unembed))(
            self.theta, view, view, batch)
    without, _ = self._loss(dataclasses.replace(options, forget_weight=0.0))(
        self.theta, view, view, batch)
    np.testing.assert_allclose(
        [forget + kept, forget, kept],
        [loss, options.forget_weight * metrics.forget, without], rtol=1e-5)

  def test_rmu_steers_the_states_of_one_layer(self):
    batch, view = problem.batch(self.hidden), self.edit.base
    direction = np.asarray(jax.random.uniform(
        jax.random.key(0), (problem.CONFIG.d_model,)))
    direction = direction / np.linalg.norm(direction)
    neurons, _ = np.nonzero(small.circuit(problem.CONFIG).neurons)
    _, found = jax.jit(functools.partial(
        decoder.forward_with_taps, problem.CONFIG,
        sites=(sites.Site.RESIDUAL,)))(self.merged, problem.FORGET[0])
    residual = np.asarray(found[sites.Site.RESIDUAL])  # [L, B, T, D]
    for layer in range(problem.CONFIG.num_layers):
      options = problem.options(loss='rmu', rmu_layer=layer, kl_weight=0.0,
                                rmu_coefficient=2.0, nll_weight=0.0)
      (_, metrics), gradient = jax.value_and_grad(
          self._loss(options), has_aux=True)(self.theta, view, view, batch)
      states = np.concatenate([
          residual[layer, row, places] for row, places in enumerate(
              _places(problem.FORGET[1]))])
      np.testing.assert_allclose(
          metrics.forget, np.square(states - 2 * direction).mean(),
          rtol=1e-4)
      moved = np.any(gradient['layers']['mlp']['down'], axis=1)  # By neuron.
      np.testing.assert_array_equal(moved, neurons <= layer)

  @parameterized.parameters('idk', 'dpo')
  def test_refusals_follow_the_prompts_of_the_answers(self, name):
    options = problem.options(loss=name, npo_beta=0.3)
    batch, view = problem.batch(self.hidden, refusals=True), self.edit.base
    _, metrics = self._loss(options)(self.theta, view, view, batch)
    (nll, refusals), (base, base_refusals) = (
        [_naive_nll(_logits(params, part), part)
         for part in (problem.FORGET, problem.REFUSALS)]
        for params in (self.merged, jax.device_get(self.model.params)))
    want = sum(refusals) / problem.REFUSALS[1].sum()
    if name == 'dpo':
      want = np.mean([
          2 / 0.3 * np.log1p(np.exp(-0.3 * ((a - b) - (c - d))))
          for a, b, c, d in zip(nll, base, refusals, base_refusals)])
    np.testing.assert_allclose(metrics.forget, want, rtol=2e-4)
    np.testing.assert_allclose(metrics.forget_nll, np.mean(nll), rtol=2e-4)

  def test_swapped_prompts_are_kept_like_text_by_their_own_weight(self):
    view, batch = self.edit.base, problem.batch(self.hidden)

    def loss(weight, batch):
      options = problem.options(
          kl_weight=3.0, kl_square_weight=0, text_weight=0.3,
          swapped_weight=weight)
      return self._loss(options)(self.theta, view, view, batch)

    _, metrics = loss(0.7, batch)
    got, _ = loss(0.7, batch._replace(swapped=batch.text))
    self.assertGreater(metrics.text_kl, 1e-3)
    self.assertAlmostEqual(
        got - metrics.loss, 3.0 * 0.7 * metrics.text_kl, delta=2e-4)

  def test_gradient_is_that_of_the_full_weights_and_of_any_packing(self):
    options = problem.options()
    packed, alone = (problem.batch(
        self.hidden, alone=alone, rows=7)._replace(text=None, prompts=None)
                     for alone in (False, True))

    def gradient(edit, theta, *batches):
      loss = objective.make_loss(options, edit.forward, edit.unembed)
      view = edit.base
      fn = jax.jit(jax.grad(loss, has_aux=True))
      return [fn(theta, view, view, batch)[0] for batch in batches]

    got, other = gradient(self.edit, self.theta, packed, alone)
    full, = gradient(whole_edits.full_edit(self.model), self.merged, packed)
    want = circuit_naive.gather(
        jax.device_get(full), small.members(small.circuit(problem.CONFIG)))
    for (module, leaf), value in want.items():
      scale = np.abs(value).max()
      self.assertGreater(scale, 1e-4)
      for each in (got, other):
        np.testing.assert_allclose(
            each['layers'][module][leaf], value, atol=2e-4 * scale,
            err_msg=leaf)

  def test_without_a_forget_loss_only_the_retain_terms_are_left(self):
    # Nothing of the forget answers may reach the loss, not even 0 * NaN.
    options = problem.options(
        loss='none', kl_weight=3.0, prompt_weight=2.0, swapped_weight=0)
    batch = problem.batch(self.hidden)
    spoiled = batch._replace(forget=batch.forget._replace(
        reference=np.full_like(batch.forget.reference, np.nan)))
    view = self.edit.base
    loss, metrics = self._loss(options)(self.theta, view, view, spoiled)
    want = _naive(
        dataclasses.replace(options, loss='ascent', forget_weight=0.0),
        jax.device_get(self.model.params), self.merged)
    self.assertEqual(float(metrics.forget), 0.0)
    self.assertAlmostEqual(float(loss), want[0], delta=2e-4 * want[0])
    np.testing.assert_allclose(
        metrics[2:-2], want[2:-2], rtol=2e-4, atol=2e-5)
    grads, _ = jax.jit(jax.grad(self._loss(options), has_aux=True))(
        self.theta, view, view, spoiled)
    for leaf in jax.tree.leaves(grads):
      self.assertTrue(np.isfinite(leaf).all())

  def test_initial_kl_is_0_and_npo_is_log_2(self):
    view, options = self.edit.base, problem.options(npo_beta=0.1)
    _, metrics = self._loss(options)(
        self.edit.theta, view, view, problem.batch(self.hidden))
    self.assertAlmostEqual(float(metrics.retain_kl), 0.0, places=5)
    self.assertAlmostEqual(float(metrics.text_kl), 0.0, places=5)
    self.assertAlmostEqual(float(metrics.forget), 20 * np.log(2), places=3)

  def test_the_target_stays_the_full_precision_base_in_a_quantized_view(self):
    loss = self._loss(problem.options())
    view, base = self.edit.views['nf4'], self.edit.base
    _, metrics = loss(view.quantize(self.edit.theta), view.frozen(), base,
                      problem.batch(self.hidden))
    rounded = jax.device_get(quant.fake_quantize(
        self.model.params, 'nf4', layout.block_layout(problem.CONFIG)))
    params = jax.device_get(self.model.params)
    want = _naive_kl(*(_logits(p, problem.RETAIN) for p in (params, rounded)),
                     problem.RETAIN[1])
    self.assertGreater(want, 1e-3)
    self.assertAlmostEqual(float(metrics.retain_kl), want, delta=1e-3 * want
                           + 1e-5)

  def test_answer_swap_is_the_kl_to_the_given_references(self):
    batch = problem.batch(self.hidden)
    rng = np.random.default_rng(0)
    reference = rng.normal(size=batch.forget.reference.shape).astype(
        np.float32)
    batch = batch._replace(
        forget=batch.forget._replace(reference=reference))
    view = self.edit.base
    _, metrics = self._loss(problem.options(loss='answer_swap'))(
        self.theta, view, view, batch)
    after = _logits(self.merged, problem.FORGET)
    table = np.float64(self.model.params['embed'])
    places = [(i, t) for i, row in enumerate(_places(problem.FORGET[1]))
              for t in row]
    values = [unlearn_naive.kl(table @ reference[p], after[i][t])
              for p, (i, t) in enumerate(places)]
    self.assertAlmostEqual(
        float(metrics.forget), np.mean(values), delta=1e-3)

  def test_group_marginal_is_the_kl_to_the_average_at_the_prompts_end(self):
    rng = np.random.default_rng(0)
    marginal = rng.dirichlet(
        np.ones(problem.CONFIG.vocab_size), 3).astype(np.float32)
    batch = problem.batch(self.hidden)._replace(group_marginal=marginal)
    view = self.edit.base
    _, metrics = self._loss(problem.options(loss='group_marginal'))(
        self.theta, view, view, batch)
    after = _logits(self.merged, problem.FORGET)
    values = [unlearn_naive.kl(np.log(marginal[i]), after[i][row[0]])
              for i, row in enumerate(_places(problem.FORGET[1]))]
    self.assertAlmostEqual(
        float(metrics.forget), np.mean(values), delta=1e-3)

  @parameterized.parameters('group_marginal', 'npo')
  def test_choice_kl_adds_a_kl_over_the_choices_at_the_prompts_end(
      self, name):
    rights, wrongs = [3, 5, 8], [[1, 2], [4], [2, 9, 11, 28]]
    others = other_facts.choice_targets(
        'abc', rights, [[r, *w] for r, w in zip(rights, wrongs)])
    marginal = np.full((3, problem.CONFIG.vocab_size),
                       1 / problem.CONFIG.vocab_size, np.float32)
    batch = problem.batch(self.hidden)._replace(group_marginal=marginal)
    view = self.edit.base
    without, with_them = (
        float(self._loss(problem.options(loss=name, choice_kl_weight=2.0))(
            self.theta, view, view, b)[1].forget)
        for b in (batch, batch._replace(choices=others)))
    after = _logits(self.merged, problem.FORGET)
    want = np.mean([
        unlearn_naive.choice_kl(after[i][row[0]], right, wrong)
        for i, (row, right, wrong) in enumerate(zip(
            _places(problem.FORGET[1]), rights, wrongs))])
    self.assertGreater(want, 0.1)
    self.assertAlmostEqual(with_them - without, 2 * want, delta=1e-3)

  def test_the_prior_loss_has_terms_for_guesses_kinds_and_the_bases_layer(
      self):
    edit = problem.circuit_edit(mover=1)
    prior = np.array([9.0, 11.0, 3.0], np.float32)
    states = np.random.default_rng(0).normal(
        size=(3, 2, problem.CONFIG.d_model)).astype(np.float32)
    batch = problem.batch(self.hidden, routed=True)._replace(
        prior=step_data.OtherPrompts(
            prior, states, np.array([1, 1, 2], np.int32)))
    loss = jax.jit(objective.make_loss(problem.options(
        loss='prior', routed_weight=0.5, marginal_weight=0.3, guess_weight=0.7,
        guess_margin=5.0), edit.forward, edit.unembed))
    _, metrics = loss(self.theta, edit.base, edit.base, batch)
    _, narrow = loss(self.theta, edit.base, edit.base, batch._replace(
        guess_margin=np.float32(0.0)))  # That of the step's view.
    self.assertLess(float(narrow.forget), float(metrics.forget) - 0.1)

    # Each sequence in a row of its own; `test_circuit` checks such rows.
    hidden = edit.forward(
        self.theta, edit.base, problem.FORGET[0], again=np.arange(3))
    again = np.float64(edit.unembed(None, edit.base, hidden[3:]))
    own, routed = (
        _naive_nll(logits, problem.FORGET)
        for logits in (_logits(self.merged, problem.FORGET), again))
    want = [np.mean([unlearn_naive.excess(nll, level, 16.0)
                     for nll, level in zip(nlls, prior)])
            for nlls in (own, routed)]
    after = _logits(self.merged, problem.FORGET)
    table = np.float64(self.model.params['embed'])
    want.append(np.mean([
        unlearn_naive.kl(table @ state, after[i][row[0]])
        for i, row in enumerate(_places(problem.FORGET[1]))
        for state in states[i]]))
    tokens, places = problem.FORGET[0], _places(problem.FORGET[1])
    answers = [int(row[at[0] + 1]) for row, at in zip(tokens, places)]
    self.assertNotEqual(*answers[:2])
    nlls, guesses = unlearn_naive.guess_nll(
        [after[i][row[0]] for i, row in enumerate(places)], answers, [1, 1, 2])
    want.append(sum(unlearn_naive.excess(nll, guess + 5.0, 16.0)
                    for nll, guess in zip(nlls[:2], guesses)) / 3)
    self.assertGreater(min(want), 0.1)
    self.assertGreater(abs(np.mean(own) - np.mean(routed)), 0.05)
    self.assertAlmostEqual(
        float(metrics.forget), want[0] + 0.5 * want[1] + 0.3 * want[2]
        + 0.7 * want[3], delta=1e-3)
    self.assertAlmostEqual(
        float(metrics.routed_nll), np.mean(routed), delta=1e-3)
    self.assertAlmostEqual(
        float(metrics.retain_kl), float(self._loss(problem.options())(
            self.theta, self.edit.base, self.edit.base, problem.batch(
                self.hidden))[1].retain_kl), places=5)

  def test_text_and_prompts_may_be_absent(self):
    view, batch = self.edit.base, problem.batch(self.hidden)
    loss = self._loss(problem.options(prompt_weight=2.0, kl_square_weight=0))
    _, metrics = loss(self.theta, view, view, batch._replace(
        text=None, prompts=None))
    self.assertEqual(float(metrics.text_kl), 0.0)
    self.assertAlmostEqual(
        float(metrics.loss), float(
            metrics.forget + 10 * metrics.retain_kl + metrics.retain_nll),
        places=4)


if __name__ == '__main__':
  absltest.main()
