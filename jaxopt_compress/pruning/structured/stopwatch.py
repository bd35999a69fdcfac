"""Seconds of programs and of single operations, on this machine.

    table = Table('latency.json')
    table.seconds_of(operation)          measured the first time, then read

A table holds for one machine and one release of JAX, which its file names, and is
refused on others.
"""

from collections.abc import Callable
import functools
import json
import os
import pathlib
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.plan import resized

# A round lasts so long, so that the resolution of the clock does not decide, and
# there are so many of them, as long as all of them take no longer than this.
_ROUND_SECONDS = 2e-3
_ROUNDS = 5, 15
_SECONDS = 0.3


def seconds(fun: Callable, *args: Any) -> float:
  """The median time of one call of `jit(fun)(*args)`, compiled before.

  Args:
    fun: a function of arrays.
    *args: its arguments; abstract ones are drawn, as values make no difference.
  """
  call, args = jax.jit(fun), jax.tree.map(_drawn, args)
  jax.block_until_ready(call(*args))

  def turn(calls):
    start = time.perf_counter()
    for _ in range(calls):
      # Each call ends before the next: what is asked is how long one takes.
      jax.block_until_ready(call(*args))
    return (time.perf_counter() - start) / calls

  quickest = max(min(turn(1) for _ in range(3)), 1e-6)
  calls = int(np.ceil(_ROUND_SECONDS / quickest))
  rounds = int(np.clip(_SECONDS / (calls * quickest), *_ROUNDS))
  return float(np.median([turn(calls) for _ in range(rounds)]))


def machine() -> dict[str, str | int]:
  """What a time depends on."""
  cores = os.cpu_count() or 0
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  return {
    'device': jax.devices()[0].device_kind,
    'processor': _processor(),
    'cores': cores,
    'jax': jax.__version__,
  }


class Table:
  """Seconds of operations on this machine.

  Attributes:
    file: where it is kept, or None.
    seconds: {operation and its shapes: seconds}.
  """

  def __init__(self, file: str | os.PathLike | None = None):
    """Reads the file, if it is there.

    Raises:
      ValueError: it was measured on another machine, or is no such table.
    """
    self.file = None if file is None else pathlib.Path(file)
    self.seconds: dict[str, float] = {}
    self._idle: float | None = None
    if self.file is not None and self.file.exists():
      self.seconds = _read(self.file)

  def seconds_of(self, operation: resized.Operation) -> float:
    """How long an operation takes once: measured, if it has not been yet."""
    key = described(operation)
    if key not in self.seconds:
      self.seconds[key] = self._measured(operation)
    return self.seconds[key]

  def save(self) -> None:
    """Writes the file, if there is one."""
    if self.file is None:
      return
    text = json.dumps(
      {'machine': machine(), 'seconds': self.seconds}, indent=2, sort_keys=True
    )
    self.file.parent.mkdir(parents=True, exist_ok=True)
    # No reader sees half a file.
    new = self.file.with_name(f'.{self.file.name}.{os.getpid()}')
    new.write_text(text + '\n')
    os.replace(new, self.file)

  def _measured(self, operation):
    params = _fitting(operation)
    bind = functools.partial(operation.primitive.bind, **params)
    took = seconds(bind, *(v.aval for v in operation.invars))
    if self._idle is None:
      self._idle = seconds(jnp.negative, jnp.zeros(()))
    # To call a program takes time, which operations inside of one do not.
    return max(took - self._idle, 0.1 * took)


def described(operation: resized.Operation) -> str:
  """An operation, its shapes and what else its time depends on, in words.

  >>> from jaxopt_compress.analysis.plan import resized
  >>> program = resized.resized(lambda p, x: x @ p)(jnp.ones((3, 4)), jnp.ones((2, 3)))
  >>> described(program.equations[0].at(program.sizes))
  'dot_general float32[2,3] float32[3,4] dimension_numbers=(((1,), (0,)), ((), ()))'
  """
  shapes = [
    f'{v.aval.dtype}[{",".join(map(str, v.aval.shape))}]'
    for v in operation.invars
  ]
  params = [
    f'{k}={v}'
    for k, v in sorted(_fitting(operation).items())
    if k in _TELLING and v is not None
  ]
  return ' '.join([operation.primitive.name, *shapes, *params])


# Parameters on which the time of a product depends.
_TELLING = """
  batch_group_count dimension_numbers feature_group_count lhs_dilation padding
  precision ragged_dot_dimension_numbers rhs_dilation window_strides
""".split()


def _fitting(operation) -> dict[str, Any]:
  """The parameters of an operation, for the shapes that it has now."""
  params = dict(operation.params)
  if operation.primitive.name == 'conv_general_dilated':
    lhs, rhs = (v.aval.shape for v in operation.invars)
    numbers = params['dimension_numbers']
    of_group = rhs[numbers.rhs_spec[1]]
    params['feature_group_count'] = lhs[numbers.lhs_spec[1]] // of_group
  return params


def _drawn(x):
  if not isinstance(x, jax.ShapeDtypeStruct):
    return x
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.split(jax.random.key(0), x.shape)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.zeros(x.shape, x.dtype)
  return jax.random.uniform(jax.random.key(0), x.shape, x.dtype, 0.01, 0.02)


def _processor() -> str:
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return platform.processor() or platform.machine()
  names = [x.partition(':')[2] for x in text.split('\n') if 'model name' in x]
  return names[0].strip() if names else platform.machine()


def _read(file) -> dict[str, float]:
  try:
    read = json.loads(file.read_text())
    measured, times = dict(read['machine']), dict(read['seconds'])
    good = all(isinstance(t, float) and 0 < t < 1e6 for t in times.values())
  except (ValueError, KeyError, TypeError, OSError) as e:
    good, measured, times = False, {}, {'': e}
  if not good:
    raise ValueError(
      f'{file} is no table of latencies. Remove it, or name another file.'
    )
  here = machine()
  if measured != here:
    apart = {
      k: (measured.get(k), here.get(k))
      for k in {**measured, **here}
      if measured.get(k) != here.get(k)
    }
    raise ValueError(
      f'{file} was measured on another machine: (there, here) are {apart}. Name'
      ' another file, which is then measured here.'
    )
  return times
