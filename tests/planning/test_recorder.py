"""Memory that stages hold, and memory and time of their programs."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from mansu_jax.config import run as run_config
from mansu_jax.planning import recorder
from mansu_jax.planning import topology
from mansu_jax.runtime import programs
from mansu_jax.runtime import sharding

_CHIP = topology.Chip('one', memory=1e6, flops=1e9, bandwidth=1e6, links=1e6,
                      passes=3)
_FLOATS = jax.ShapeDtypeStruct((256, 64), jnp.float32)
_BYTES = 4 * 256 * 64


class RecorderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    mesh = sharding.make_mesh(run_config.MeshConfig(), jax.devices()[:1])
    self.enter_context(jax.set_mesh(mesh))
    self.recorder = recorder.Recorder(mesh, _CHIP)
    self.placer = programs.Placer(mesh)
    self.x = self.placer.shard(_FLOATS, 'VD')

  def _record(self, *steps):
    """Records a stage that holds `x`; the results of its programs."""
    out = []

    def stage():
      yield programs.hold(x=self.x)
      for step in steps:
        out.append((yield step))

    self.recorder.record('one', stage())
    return out

  def test_a_call_adds_its_result_and_arguments_not_held(self):
    add = jax.jit(lambda x, y: x + y)
    other = self.placer.shard(_FLOATS, 'VD')
    self._record(programs.program('add', add, self.x, other, calls=5))
    stage, = self.recorder.stages
    self.assertEqual(stage.held, {'x': _BYTES})
    self.assertBetween(stage.largest.bytes, 2 * _BYTES, 2.1 * _BYTES)
    self.assertBetween(stage.bytes, 3 * _BYTES, 3.1 * _BYTES)
    self.assertEqual(stage.largest.calls, 5)

  def test_donated_arguments_add_no_memory(self):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    out, = self._record(programs.program('add', add, self.x))
    self.assertEqual(out.shape, self.x.shape)
    self.assertLess(self.recorder.stages[0].largest.bytes, 0.1 * _BYTES)

  def test_peak_is_the_largest_part(self):
    self._record(
        programs.program('double', jax.jit(lambda x: jnp.concatenate(
            [x, x, x])), self.x),
        programs.hold(x=self.x, y=self.x, z=self.x),
        programs.program('sum', jax.jit(jnp.sum), self.x))
    stage, = self.recorder.stages
    self.assertLen(stage.parts, 2)
    self.assertEqual(stage.bytes, stage.parts[0].bytes)
    self.assertEqual(stage.largest.name, 'double')
    self.assertEqual([call.name for call in stage.calls], ['double', 'sum'])

  def test_flags_and_trees_of_the_circuits_size(self):
    self._record(
        programs.lowered_by('--eval_questions', '--circuit_budget'),
        programs.hold(x=self.x, y=programs.CircuitSized([self.x, self.x])))
    stage, = self.recorder.stages
    self.assertEqual(stage.flags, ('--eval_questions', '--circuit_budget'))
    self.assertEqual(stage.held, {'x': _BYTES, 'y': 2 * _BYTES})
    self.assertEqual(stage.fixed, _BYTES)

  def test_seconds(self):
    product = jax.jit(lambda x: x @ x.T)
    self._record(
        programs.program('add', jax.jit(lambda x: x + 1), self.x, calls=3),
        programs.program('product', product, self.x))
    add, dot = self.recorder.stages[0].calls
    self.assertAlmostEqual(
        add.seconds, 2 * _BYTES / 1e6 / recorder.EFFICIENCY)
    flops = 2 * 256 * 64 * 256
    self.assertEqual(dot.cost.flops, flops)
    moved = 2 * _BYTES + 4 * 256 * 256  # Memory is what limits it.
    self.assertAlmostEqual(dot.seconds, moved / 1e6 / recorder.EFFICIENCY)
    self.assertAlmostEqual(
        self.recorder.stages[0].seconds, 3 * add.seconds + dot.seconds)

  def test_the_same_program_is_compiled_once(self):
    traced = []
    add = jax.jit(lambda x: traced.append(1) or x + 1)
    self._record(*[programs.program('add', add, self.x)] * 2)
    self.assertLen(traced, 1)
    self.assertLen(self.recorder.stages[0].calls, 2)

  @parameterized.parameters(
      ('Ran out of memory in memory space hbm. Used 1.50M of 1.00M hbm.'
       ' Exceeded hbm capacity by 0.50M.', 'Used 1.50M of 1.00M hbm'),
      ('E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory'
       ' required for HLO temporaries (1.50M) exceeds available HBM (1.00M).'
       ' HLO module: jit_add.', '(1.50M) exceeds available HBM (1.00M)'))
  def test_a_compiler_that_runs_out_of_memory(self, message, told):
    class Refused:
      """Traces, and does not compile."""

      def trace(self, *args):
        self._traced = jax.jit(lambda x: x + 1).trace(*args)
        return self

      jaxpr = property(lambda self: self._traced.jaxpr)
      out_info = property(lambda self: self._traced.out_info)

      def lower(self):
        raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {message}')

    refused = Refused()
    refused.trace(self.x)
    with self.assertLogs(level='WARNING'):
      self._record(programs.program('too much', refused, self.x))
    stage, = self.recorder.stages
    self.assertEqual(stage.bytes, 1.5 * 2**20)  # The argument is among it.
    self.assertEqual(stage.largest.refused, told)


if __name__ == '__main__':
  absltest.main()
