"""Run in its own process: scores and gradients on meshes of several shapes.

  python -m tests.mesh.first_step [PART ...]  # By default all of `_PARTS`.

They are the meshes of all devices: eight simulated ones, or, where the
environment says that it is one of several processes, those of all of them. Each
is compared with what one device computes by itself.
"""

import os

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
os.environ['JAX_PLATFORMS'] = 'cpu'

# pylint: disable=wrong-import-position
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edges
from mansu_jax.config import run as run_config
from mansu_jax.models import calibration
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.quant import affine
from mansu_jax.quant import calibrated
from mansu_jax.quant import layout as quant_layout
from mansu_jax.runtime import processes
from mansu_jax.runtime import sharding
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import fisher
from tests.circuits import small

_MESHES = ((1, 2, 2), (1, 8, 1), (2, 2, 2))
_CALIBRATED = ((1, 2, 2), (2, 2, 2))
_PARTS = ('nodes', 'edges', 'gradients', *calibrated.METHODS)
_TOKENS = np.random.default_rng(1).integers(0, 29, (16, 12))


def _shard(params):
  """Shards a model's params over the current mesh, if there is one."""
  if jax.sharding.get_abstract_mesh().empty:
    return params
  return tree_paths.map_named(
      lambda name, leaf: sharding.shard(leaf, layout.AXES[name]), params)


def _gradients(model):
  """Gradients of a loss on the circuit's slices by view, and their Fisher."""
  edit = edits.circuit_edit(
      model, small.circuit(model.config), ('nf4',), quantized_views=True)

  def loss(theta, frozen, tokens):
    hidden = edit.forward(theta, frozen, tokens)
    logits = edit.unembed(theta, frozen, hidden[:, :-1])
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
    return picked.mean()

  step = jax.jit(jax.grad(loss)).lower(
      edit.theta, edit.base, _TOKENS).compile()
  out = {name: jax.jit(jax.grad(loss))(edit.theta, view.frozen(), _TOKENS)
         for name, view in edit.views.items()}
  out['fisher'] = fisher.diagonal_fisher(
      lambda theta, frozen, row: loss(theta, frozen, row[None]), edit.theta,
      edit.base, jnp.asarray(_TOKENS), chunk=sharding.round_up_rows(2))
  return out, step.cost_analysis()['flops'], edit.theta


def _measure(config, params, parts):
  """Arrays by part, operations of a gradient, and the circuit's slices."""
  model = types.SimpleNamespace(
      config=config, params=_shard(params))
  batches = pair_batches.pack(small.pairs() * 4, 12, one_per_row=True)
  out, flops, theta = {}, 1.0, {}
  if 'nodes' in parts:
    out['nodes'] = eap_ig.score_pairs(
        config, model.params, batches, steps=3)._asdict()
  if 'edges' in parts:
    out['edges'] = edges.pair_scores(
        config, model.params, batches[0],
        points=edges.eap_ig_points(3)).edges[:12]
  if 'gradients' in parts:
    out['gradients'], flops, theta = _gradients(model)
  return sharding.to_host(out), flops, theta


def _check_fetched_once():
  """JAX keeps no copy on the host, as it does of what `to_host` fetches."""
  rows = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  x = sharding.shard(rows, 'D.')
  np.testing.assert_array_equal(sharding.to_host_uncached(x), rows)
  if jax.process_count() == 1 and not x.sharding.is_fully_replicated:
    assert x._npy_value is None
    sharding.to_host(x)
    assert x._npy_value is not None


def _calibrated(config, params, method):
  """Codes; the decoded weights are sharded as the params are."""
  scheme = calibrated.CalibratedScheme(name=method, method=method, group=16)
  params = _shard(jax.tree.map(jnp.asarray, params))
  codes = sharding.to_host(calibration.encode(
      config, params, _TOKENS, np.ones(_TOKENS.shape, bool), scheme))
  decoded = calibration.dequantize(params, codes)
  for old, new in zip(*map(jax.tree.leaves, (params, decoded))):
    assert new.sharding.is_equivalent_to(old.sharding, old.ndim), new.sharding
  for name, leaf_codes in codes.items():
    got = sharding.to_host(tree_paths.flatten(decoded)[name])
    rows = quant_layout.to_rows(got, layout.MATRICES[name])
    np.testing.assert_allclose(rows, affine.decode(leaf_codes), rtol=1e-6)
  # Rounding may have AWQ take another of two scales that are about as good,
  # so that a whole matrix gets other codes; not on the inputs of one layer.
  layers = slice(None, 1 if method == 'awq' else None)
  return np.concatenate([c.code[layers].ravel() for c in codes.values()])


def main():
  if 'JAX_PROCESS_ID' in os.environ:
    processes.join(60)
  config = small.config(d_model=32, d_ff=64, d_head=8)
  params = jax.tree.map(np.asarray, decoder.init(config, jax.random.key(0)))
  parts = sys.argv[1:] or _PARTS
  methods = [method for method in calibrated.METHODS if method in parts]
  alone, flops_alone, _ = _measure(config, params, parts)
  codes_alone = {
      method: _calibrated(config, params, method) for method in methods}
  for sizes in _MESHES:
    if math.prod(sizes) != jax.device_count():
      continue
    options = run_config.MeshConfig(**dict(zip(sharding.AXES, sizes)))
    with jax.set_mesh(sharding.make_mesh(options, jax.devices())):
      got, flops, theta = _measure(config, params, parts)
      _check_fetched_once()
      for method in methods if sizes in _CALIBRATED else ():
        same = np.mean(
            _calibrated(config, params, method) == codes_alone[method])
        assert same > 0.99, (sizes, method, same)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(alone), jax.tree.leaves(got)):
      largest = np.abs(a).max()
      assert np.abs(a - b).max() <= 1e-5 * largest, (
          sizes, jax.tree_util.keystr(path), np.abs(a - b).max() / largest)
    split = {leaf.sharding.is_fully_replicated
             for leaf in jax.tree.leaves(theta)}
    print(f'{sizes}: equal; {flops / flops_alone:.2f} of the operations a'
          f' device; slices {"split" if False in split else "whole"}')


if __name__ == '__main__':
  main()
