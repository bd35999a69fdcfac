"""Saving and loading a tree: seconds, and peak memory beside it.

    python -m launch.bench.saving

A tree of --mib in --arrays float32 arrays, saved and loaded by `jc.save`, by Orbax and by
safetensors.numpy, each in a process of its own, in turns. Memory is the peak of the
process above what it held before. Files are in the page cache when they are read, so
the times are of a processor and not of a disk. Linux only: it reads /proc.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
from safetensors import numpy as safetensors

import jaxopt_compress as jc

_MIB = flags.DEFINE_integer('mib', 1024, 'Size of the tree.')
_ARRAYS = flags.DEFINE_integer('arrays', 64, 'Arrays in it.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Turns; the fastest is printed.')
_STEP = flags.DEFINE_string('step', None, 'One of them, in this process.')
_FOLDER = flags.DEFINE_string('folder', None, 'Where its files are.')


def _tree():
  n = _MIB.value * 2**18 // _ARRAYS.value
  # Numbers that Orbax cannot make smaller.
  rng = np.random.default_rng(0)
  return {
    f'w{i}': jnp.asarray(rng.standard_normal(n, np.float32))
    for i in range(_ARRAYS.value)
  }


def _shapes():
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  n = _MIB.value * 2**18 // _ARRAYS.value
  shape = jax.ShapeDtypeStruct((n,), jnp.float32, sharding=place)
  return {f'w{i}': shape for i in range(_ARRAYS.value)}


def _numpy(tree):
  return {name: np.asarray(x) for name, x in tree.items()}


# What is timed: (folder, tree) -> anything.
SAVES = {
  'jc.save': lambda d, tree: jc.save(f'{d}/net', tree),
  'Orbax, save': lambda d, tree: ocp.save(f'{d}/orbax', tree, overwrite=True),
  'safetensors.numpy, save_file': lambda d, tree: safetensors.save_file(
    _numpy(tree), f'{d}/safetensors'
  ),
}
LOADS = {
  'jc.load': lambda d, _: jc.load(f'{d}/net'),
  'Orbax, load': lambda d, shapes: ocp.load(f'{d}/orbax', shapes),
  'safetensors.numpy, load_file': lambda d, _: safetensors.load_file(
    f'{d}/safetensors'
  ),
  'the same, to JAX': lambda d, _: jax.device_put(
    safetensors.load_file(f'{d}/safetensors')
  ),
}


def measure(step, folder):
  """(seconds, MiB) of one step."""
  given = jax.block_until_ready(_tree() if step in SAVES else _shapes())
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins here
  before, start = _memory('VmRSS'), time.perf_counter()
  result = jax.block_until_ready((SAVES | LOADS)[step](folder, given))
  seconds = time.perf_counter() - start
  del result
  return seconds, _memory('VmHWM') - before


def _memory(word):
  """MiB of this process, as Linux counts them."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(word):
      return int(line.split()[1]) / 1024


def _in_process(step, folder):
  sizes = [f'--mib={_MIB.value}', f'--arrays={_ARRAYS.value}']
  command = [sys.executable, '-m', 'launch.bench.saving', *sizes]
  out = subprocess.run(
    [*command, f'--step={step}', f'--folder={folder}'],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    check=True,
  ).stdout
  return tuple(map(float, out.split()[-2:]))


def main(argv):
  del argv
  if _STEP.value:
    print(*measure(_STEP.value, _FOLDER.value))
    return
  with tempfile.TemporaryDirectory() as folder:
    found = {}
    for _ in range(_ROUNDS.value):
      for step in SAVES | LOADS:
        found.setdefault(step, []).append(_in_process(step, folder))
  print('| | seconds | MiB beside the tree |\n|---|---|---|')
  for step, rounds in found.items():
    seconds, mib = (min(x) for x in zip(*rounds))
    held = mib - _MIB.value * (step in LOADS)
    print(f'| {step} | {seconds:.2f} | {held:.0f} |')


if __name__ == '__main__':
  app.run(main)
