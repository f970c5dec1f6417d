"""The loop on a problem of three weights: steps, views, stops, one program."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

from mansu_jax import quant
from mansu_jax import transforms
from mansu_jax.unlearn import gradients
from mansu_jax.unlearn import objective
from tests.unlearn import tiny_loop as tiny

class StepTest(parameterized.TestCase):

  def test_descends_as_by_hand(self):
    # w <- w - 0.25 * 2 w halves the weights; the loss is that before the step.
    theta, history = tiny.run()
    np.testing.assert_allclose(theta['w'], np.array(tiny.START) / 16)
    self.assertEqual([row['step'] for row in history], [1, 2, 3, 4])
    np.testing.assert_allclose(
        [row['loss'] for row in history], 21.0 / 4.0 ** np.arange(4))
    self.assertEqual(
        set(history[0]), {*objective.Metrics._fields, 'step', 'moved'})
    self.assertIsInstance(history[0]['retain_kl'], float)

  def test_each_step_has_its_own_batch(self):
    asked = []
    def batches(step):
      asked.append(step)
      return np.full(3, step, np.float32)
    theta, _ = tiny.run(batches=batches, steps=3)
    w = np.array(tiny.START)
    for step in range(3):
      w = w - 0.5 * (w - step)
    np.testing.assert_allclose(theta['w'], w)
    self.assertEqual(asked, [0, 1, 2])

  def test_orthogonal_forgetting_by_hand(self):
    # SGD of 0.25; forget 4 a + 8 b, kept 2 b: forget's 8 in b is along kept.
    def parts(theta, given, base, batch):
      forget = 4 * theta['w'][0] + 8 * theta['w'][1] + 12 * theta['v'][0]
      kept = 2 * theta['w'][1] + 0 * theta['v'][0]
      return (forget, kept), tiny.loss_of(theta, given, base, batch)[1]

    theta = {'w': jnp.zeros(2), 'v': jnp.zeros(1)}
    got, history = tiny.run(tiny.problem(
        theta=theta, loss=parts, orthogonal=True), batches=np.float32, steps=3)
    np.testing.assert_allclose(got['w'], [-3.0, -1.5])
    np.testing.assert_allclose(got['v'], [-9.0])  # Nothing there is kept.
    self.assertLen(history, 3)

  def test_orthogonal_forgetting_in_a_large_batch(self):
    # jaxlib 0.10.2 miscompiles two cotangents at once of 4,096 rows on CPU.
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, weights, theta = draw(64, 64, 16), draw(2, 64, 64, 64), draw(16, 64)

    def parts(theta, x, weights):
      y = jnp.einsum('BTD,DE->BTE', x, theta)
      y *= jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
      return tuple(jnp.sum(y[None] * weights, (1, 2, 3))), None

    make = lambda loss, orthogonal: jax.jit(gradients.make(
        loss, orthogonal=orthogonal, movable=None, sharpness=0.0))
    got, _ = make(parts, True)(theta, x, weights)
    forget, kept = (
        make(lambda *args, i=i: (parts(*args)[0][i], None), False)(
            theta, x, weights)[0] for i in range(2))
    want = transforms.remove_component(forget, kept) + kept
    np.testing.assert_allclose(
        got, want, rtol=0, atol=1e-5 * np.abs(want).max())

  def test_what_may_not_move_is_no_direction(self):
    # Forget a + b, kept a - b + 9 c; c stays, so that they are orthogonal.
    def parts(theta, given, base, batch):
      a, b, c = theta['w']
      return (a + b, a - b + 9 * c), tiny.loss_of(
          theta, given, base, batch)[1]

    movable = {'w': np.array([True, True, False])}
    tx = optax.chain(tiny.SGD, transforms.mask_to_circuit(movable))
    got, _ = tiny.run(tiny.problem(
        theta={'w': jnp.zeros(3)}, loss=parts, orthogonal=True, movable=movable,
        tx=tx), steps=1)
    np.testing.assert_allclose(got['w'], [-0.5, 0.0, 0.0])

  def test_sharpness_by_hand(self):
    # The gradient of w^2 is 2 w; a step of length 0.5 along it leads from w
    # to w (1 + 0.5 / |w|), and SGD of 0.25 moves by half of that.
    theta, history = tiny.run(tiny.problem(sharpness=0.5), steps=1)
    w = np.array(tiny.START)
    np.testing.assert_allclose(
        theta['w'], w - 0.5 * w * (1 + 0.5 / np.linalg.norm(w)), rtol=1e-6)
    self.assertEqual(history[0]['loss'], 21.0)  # Where the weights are.

  def test_moved_is_a_share_of_all_weights_against_the_base(self):
    batch = np.array([1.0, 0.0, 0.0], np.float32)  # The first stays.
    _, history = tiny.run(batches=lambda step: batch, total_weights=8)
    self.assertEqual([row['moved'] for row in history], [2 / 8] * 4)

  def test_run_keeps_its_arguments_and_is_deterministic(self):
    problem = tiny.problem(tx=optax.adam(0.1))
    first, _ = tiny.run(problem)
    second, _ = tiny.run(problem)
    np.testing.assert_array_equal(problem.theta['w'], tiny.START)
    np.testing.assert_array_equal(first['w'], second['w'])

  def test_state_that_shares_buffers_with_theta_may_be_donated(self):
    # A floor's state starts with the very arrays of theta.
    keep = optax.GradientTransformation(
        lambda params: {'origin': params, 'again': params},
        lambda updates, state, params=None: (updates, state))
    theta, _ = tiny.run(tiny.problem(tx=optax.chain(tiny.SGD, keep)))
    np.testing.assert_allclose(theta['w'], np.array(tiny.START) / 16)

  def test_steps_behind_a_floor_are_exact(self):
    theta, layout = {'w': jnp.linspace(-1.0, 1.0, 64)[None]}, {'w': quant.TORCH}
    floor = transforms.magnitude_floor(
        quant.code_grid(theta, 'nf4', layout), keep_origin=False)
    got, _ = tiny.run(
        tiny.problem(theta=theta, tx=optax.chain(optax.sgd(0.1), floor)),
        batches=lambda step: np.float32(0))
    check = quant.check_edit(theta, got, 'nf4', layout)
    self.assertTrue(check.survives, check)
    self.assertGreater(check.moved, 30)

  @parameterized.parameters(np.nan, np.inf)
  def test_non_finite_updates_before_a_floor_are_an_error(self, bad):
    theta = {'w': jnp.linspace(-1.0, 1.0, 64)[None]}
    floor = transforms.magnitude_floor(
        quant.code_grid(theta, 'nf4', {'w': quant.TORCH}), keep_origin=False)
    spoil = optax.stateless(lambda u, p: {'w': u['w'].at[0, 3].set(bad)})
    with self.assertRaisesRegex(ValueError, 'Step 1: .*are not finite'):
      tiny.run(tiny.problem(theta=theta, tx=optax.chain(spoil, floor)),
           batches=lambda step: np.float32(0))


class ViewTest(parameterized.TestCase):

  def test_views_take_turns_and_the_base_stays(self):
    views = [tiny.view(0), tiny.view(1), tiny.view(2)]
    _, history = tiny.run(
        tiny.problem(views=views, base=tiny.frozen(7)), steps=7)
    self.assertEqual([row['forget'] for row in history],
                     [0, 1, 2, 0, 1, 2, 0])
    self.assertEqual({row['forget_nll'] for row in history}, {7})

  def test_gradients_are_taken_at_the_quantized_view(self):
    # Gradients are taken at round(w) = (1, -2, 4) and applied to theta.
    see = lambda theta: {'w': jnp.round(theta['w'])}
    theta = {'w': jnp.array([1.25, -2.25, 3.75])}
    got, history = tiny.run(
        tiny.problem(theta=theta, views=[tiny.view(1, quantize=see)]),
        steps=1)
    np.testing.assert_allclose(
        got['w'], np.array([1.25, -2.25, 3.75]) - 0.5 * np.array(tiny.START))
    self.assertEqual(history[0]['loss'], 21.0)

  def test_one_program_for_all_steps_and_views(self):
    loss = mock.Mock(side_effect=tiny.loss_of)
    problem = tiny.problem(
        tx=optax.adam(optax.cosine_decay_schedule(0.1, 9)), loss=loss,
        views=[tiny.view(0, quantize=lambda theta: {'w': theta['w'] + 0}),
               tiny.view(1, quantize=lambda theta: {
                   'w': jnp.round(theta['w'])})])
    with self.assertLogs('jax', 'WARNING') as logs, jax.log_compiles():
      tiny.run(problem, steps=6)
    steps = [x for x in logs.output if 'Compiling jit(unlearn_step)' in x]
    self.assertLen(steps, 1)
    loss.assert_called_once()  # Traced.


class StopTest(parameterized.TestCase):

  @parameterized.parameters((np.nan, 'nan'), (np.inf, 'inf'))
  def test_a_loss_that_is_not_finite(self, value, word):
    batches = lambda step: np.full(3, value if step == 2 else 0, np.float32)
    with self.assertRaisesRegex(
        ValueError, f'Step 3: the loss is {word}.*--unlearn_learning_rate'):
      tiny.run(batches=batches, steps=5)

  def test_weights_that_are_not_finite(self):
    blow = optax.scale_by_schedule(
        lambda count: jnp.where(count == 1, jnp.inf, 1.0))
    with self.assertRaisesRegex(
        ValueError, 'Step 2: the loss is 5.25 and the weights are not finite'):
      tiny.run(tiny.problem(tx=optax.chain(tiny.SGD, blow)), steps=5)

  @parameterized.parameters(
      ((0.5, 2.5), 1.0, 2, '1.500.* over the last 2 steps.*=1.0'),
      ((0.5, 2.5), 1.5, None, ''), ((9.0,), 5.0, 1, '9.000.* last 1 steps'),
      # The mean over ten steps is 0.9 at most, then 1.0.
      ((0.0,) * 9 + (9.0,), 1.0, None, ''),
      ((0.0,) * 9 + (9.0, 1.0), 0.95, 11, '1.000.* over the last 10 steps'))
  def test_a_large_mean_retain_kl_is_an_error(self, kls, most, step, said):
    problem = tiny.problem(views=[tiny.view(0, kl=kl) for kl in kls])
    run = lambda: tiny.run(problem, steps=2 * len(kls), max_retain_kl=most)
    if step is None:
      self.assertLen(run()[1], 2 * len(kls))
      return
    with self.assertRaisesRegex(
        ValueError, f'Step {step}: the retain KL is {said}'):
      run()


class KeepTest(parameterized.TestCase):
  """Resumed after any step, a run ends as one that was not stopped."""

  def _problem(self):
    floor = optax.GradientTransformation(  # Its state is theta's own array.
        lambda params: {'origin': params, 'weak': jnp.asarray(1.0)},
        lambda updates, state, params=None: (updates, state))
    return tiny.problem(
        tx=optax.chain(optax.adam(optax.cosine_decay_schedule(0.1, 9)), floor),
        views=[tiny.view(i, quantize=lambda theta, i=i: {'w': jnp.round(
            theta['w'] * i) / i}) for i in (1, 2, 64)])

  def _run(self, keep=None, **options):
    batches = lambda step: np.random.default_rng(step).normal(
        size=3).astype(np.float32)
    return tiny.run(self._problem(), batches, steps=7, keep=keep, **options)

  def _check_same(self, got, want):
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(want))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      self.assertEqual(np.asarray(a).dtype, np.asarray(b).dtype)
      self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())

  def test_state_is_saved_after_each_step(self):
    keep = tiny.Memory()
    theta, history = self._run(keep)
    self.assertEqual(list(keep.states), list(range(1, 8)))
    last, rows = keep.states[7]
    self._check_same(last[0], theta)
    self.assertEqual(rows, history)
    self.assertEqual(
        keep.like, jax.tree.map(lambda x: (x.shape, x.dtype), last))
    self.assertEqual(history, self._run()[1])

  @parameterized.parameters(range(1, 8))
  def test_resuming_after_any_step_gives_equal_bits(self, step):
    whole = tiny.Memory()
    theta, history = self._run(whole)
    rest = tiny.Memory(whole.states[step])
    got, rows = self._run(rest)
    self._check_same(got, theta)
    self.assertEqual(rows, history)
    self.assertEqual(list(rest.states), list(range(step + 1, 8)))
    for after, state in rest.states.items():
      self._check_same(state, whole.states[after])

  def test_a_resumed_run_compiles_one_program(self):
    stopped = tiny.Memory(stop=3)
    with self.assertRaises(KeyboardInterrupt):
      self._run(stopped)
    with self.assertLogs('jax', 'WARNING') as logs, jax.log_compiles():
      self._run(tiny.Memory(stopped.states[3]))
    self.assertLen([
        x for x in logs.output if 'Compiling jit(unlearn_step)' in x], 1)

  def test_a_saved_state_can_be_restored_twice(self):
    whole = tiny.Memory()
    theta, _ = self._run(whole)
    for _ in range(2):  # The step donates its buffers, not these.
      got, _ = self._run(tiny.Memory(whole.states[2]))
      self._check_same(got, theta)


class StorageTest(parameterized.TestCase):
  """Weights in bfloat16: float32 steps, rounded to the nearest."""

  def _run(self, theta, target, **options):
    problem = tiny.problem(
        theta={'w': jnp.asarray(theta, jnp.bfloat16)}, **options)
    got, history = tiny.run(
        problem, lambda step: np.asarray(target, np.float32), steps=1)
    self.assertEqual(got['w'].dtype, jnp.bfloat16)
    return np.asarray(got['w']), history

  def test_a_sum_is_rounded_once_to_the_nearest(self):
    rng = np.random.default_rng(0)
    theta = rng.normal(size=3000).astype(ml_dtypes.bfloat16)
    target = rng.normal(size=3000).astype(np.float32)
    got, _ = self._run(theta, target)
    wide = theta.astype(np.float32)
    want = (wide - np.float32(0.25) * (2 * (wide - target))).astype(
        ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got, want)

  def test_ties_go_to_the_even_neighbour(self):
    # At 1, neighbours are 2**-7 apart; a step of SGD is half the distance.
    got, _ = self._run([1.0, 1.0078125], [1.0078125, 1.015625])
    np.testing.assert_array_equal(np.float32(got), [1.0, 1.015625])

  def test_small_steps_are_lost_and_do_not_count_as_moved(self):
    got, history = self._run([1.0, -2.0, 4.0], [1.001, -2.001, 5.0])
    np.testing.assert_array_equal(np.float32(got), [1.0, -2.0, 4.5])
    self.assertEqual(history[0]['moved'], 1 / 6)

  def test_the_state_of_the_optimizer_is_float32(self):
    keep = tiny.Memory()
    tiny.run(tiny.problem(
        theta={'w': jnp.ones(3, jnp.bfloat16)}, tx=optax.adam(0.1)),
         keep=keep)
    kinds = [x.dtype for x in jax.tree.leaves(keep.states[4][0]) if x.size == 3]
    self.assertEqual(kinds, [ml_dtypes.bfloat16, np.float32, np.float32])


class VisitTest(parameterized.TestCase):

  @parameterized.parameters((3, [3, 6, 7]), (10, [7]), (1, list(range(1, 8))))
  def test_visit_sees_the_weights_of_each_logged_step(self, every, want):
    seen = {}
    tiny.run(steps=7, log_every=every,
         visit=lambda step, theta: seen.update({step: np.array(theta['w'])}))
    self.assertEqual(list(seen), want)
    for step, w in seen.items():
      np.testing.assert_allclose(w, np.array(tiny.START) / 2 ** step)

  def test_visit_can_end_the_loop(self):
    theta, history = tiny.run(
        steps=7, log_every=2, visit=lambda step, theta: step >= 4)
    self.assertLen(history, 4)
    np.testing.assert_allclose(theta['w'], np.array(tiny.START) / 2 ** 4)

  def test_progress_is_logged(self):
    def lines(**functions):
      with self.assertLogs(level='INFO') as logs:
        tiny.run(tiny.problem(**functions), steps=4, log_every=2,
                 total_weights=6)
      return [line for line in logs.output if 'step' in line]

    first, last = lines()
    self.assertRegex(
        first, r'step 2/4 .*forget.*retain kl.*moved 50.000%  eta \d+s')
    self.assertRegex(last, r'step 4/4 ')
    first, _ = lines(codes_changed=lambda theta: jnp.sum(
        theta['w'] < jnp.array(tiny.START)))
    self.assertRegex(first, r'moved 50.000%  codes changed 33.333%  eta')


if __name__ == '__main__':
  absltest.main()
