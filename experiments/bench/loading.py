"""Peak memory and time of reading a model from Hugging Face files.

  python -m experiments.bench.loading

Writes a random model in bfloat16 and shards of 1 GB, then loads it in a process
of its own for each dtype. Anonymous memory is what the process allocates; the
mapped pages of the files, which the system may drop, come on top.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from absl import app
from absl import flags
import jax
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

from experiments.bench import attribution_process
from mansu_jax.models import assemble
from mansu_jax.models import config as model_config
from mansu_jax.models import families
from mansu_jax.models import layout
from mansu_jax.models.io import loading

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'loading_cpu.json'
_GB = flags.DEFINE_float('gb', 4.0, 'Size of the files, in 10^9 bytes.')
_SHARD_GB = flags.DEFINE_float('shard_gb', 1.0, 'Size of a shard.')
_LOAD = flags.DEFINE_string('load', '', 'Internal: directory to load.')
_DTYPE = flags.DEFINE_string('dtype', '', 'Internal: dtype of the params.')


def _config() -> model_config.ModelConfig:
  make = lambda layers: model_config.ModelConfig(
      vocab_size=64000, d_model=2048, num_layers=layers, num_heads=16,
      num_kv_heads=8, d_head=128, d_ff=8192, tie_embeddings=True)
  size = lambda config: sum(
      2 * np.prod(shape) for shape in layout.shapes(config).values())
  one, two = size(make(1)), size(make(2))
  return make(1 + round((_GB.value * 1e9 - one) / (two - one)))


def _write(root: pathlib.Path) -> None:
  """Writes shards of random weights; the host stores one at a time."""
  config, rng = _config(), np.random.default_rng(0)
  noise = (0.02 * rng.standard_normal(2**24)).astype(ml_dtypes.bfloat16)
  shard, names = {}, {}

  def flush():
    name = f'model-{len(set(names.values()))}.safetensors'
    safetensors_numpy.save_file(shard, root / name, metadata={'format': 'pt'})
    names.update(dict.fromkeys(shard, name))
    shard.clear()

  for tensor in assemble.tensors(config, families.naming(config)):
    shard[tensor.name] = np.resize(noise, tensor.shape)
    if sum(x.nbytes for x in shard.values()) > _SHARD_GB.value * 1e9:
      flush()
  flush()
  (root / 'model.safetensors.index.json').write_text(
      json.dumps({'metadata': {}, 'weight_map': names}))
  (root / 'config.json').write_text(
      json.dumps(families.to_hf(config, 'bfloat16')))


def _load() -> None:
  """Loads the model and prints the figures as JSON."""
  peak = {'RssAnon': 0, 'VmRSS': 0}

  def watch():
    while True:
      peak.update({name: max(most, attribution_process.rss(name))
                   for name, most in peak.items()})
      time.sleep(0.01)

  before = attribution_process.rss('RssAnon')
  threading.Thread(target=watch, daemon=True).start()
  start = time.perf_counter()
  params = jax.block_until_ready(
      loading.load(_LOAD.value, _DTYPE.value).params)
  print(json.dumps({
      'params_bytes': sum(x.nbytes for x in jax.tree.leaves(params)),
      'anonymous_before_bytes': before,
      'peak_anonymous_bytes': peak['RssAnon'],
      'peak_with_mapped_files_bytes': peak['VmRSS'],
      'seconds': round(time.perf_counter() - start, 1)}))


def main(argv: list[str]) -> None:
  del argv
  if _LOAD.value:
    _load()
    return
  rows = {}
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    _write(root)
    shards = [p.stat().st_size for p in root.glob('*.safetensors')]
    for dtype in ('bfloat16', 'float32'):
      done = subprocess.run(
          [sys.executable, '-m', 'experiments.bench.loading',
           f'--load={root}', f'--dtype={dtype}'],
          check=True, capture_output=True, text=True)
      row = json.loads(done.stdout.splitlines()[-1])
      limit = 1.2 * max(shards) + row['params_bytes']
      row['peak_anonymous_of_limit'] = round(
          row['peak_anonymous_bytes'] / limit, 3)
      rows[dtype] = row
      print(dtype, row)
  _RESULTS.write_text(json.dumps({
      'files_bytes': sum(shards), 'largest_shard_bytes': max(shards),
      'limit': '1.2 times the largest shard, and the params',
      'device': jax.devices()[0].device_kind, 'cores': os.cpu_count(),
      'jax': jax.__version__, 'dtypes': rows}, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
