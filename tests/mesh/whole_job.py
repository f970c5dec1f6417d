"""Run in its own process: the tiny job on meshes of several shapes.

  python -m tests.mesh.whole_job FOLDER DATA,FSDP,TENSOR ... [--FLAG=VALUE ...]

Writes the job in FOLDER/job and a run of each mesh in FOLDER/DATA,FSDP,TENSOR,
on as many of eight simulated devices. Of 20 steps: a threshold turns rounding
into whole bins, which later steps see, so that more differs the longer it goes.
"""

import os

os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ['JAX_PLATFORMS'] = 'cpu'

# pylint: disable=wrong-import-position
import functools
import math
import pathlib
import sys
from unittest import mock

import jax

from mansu_jax.runtime import sharding
from tests import runs
from tests import tiny_job


def main():
  folder, *args = sys.argv[1:]
  meshes = [arg for arg in args if not arg.startswith('--')]
  root = pathlib.Path(folder)
  job = tiny_job.make(root / 'job')
  make = sharding.make_mesh
  for name in meshes:
    sizes = list(map(int, name.split(',')))
    devices = jax.devices()[:math.prod(sizes)]
    with mock.patch.object(sharding, 'make_mesh', functools.partial(
        make, devices=devices)):
      runs.run(root / name, *job, '--unlearn_steps=20', *(
          f'--mesh_{axis}={size}'
          for axis, size in zip(sharding.AXES, sizes)), *args[len(meshes):])
    jax.clear_caches()


if __name__ == '__main__':
  main()
