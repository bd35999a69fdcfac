"""The library of C++ kernels, and its products of matrices.

    y = a (sum_g s_g sum_{k in g} (w - z_g) x - b t) + bias
    y -> max(floor, curve(y) + other), or times other

with x the int8 codes of a row, a its scale and b its zero point, w the codes of the
weight, s and z its scales and zero points, t = sum_g s_g sum w - z the sums of its
columns: `source/job.h`. A `Rounding` says how x becomes codes, a `Finish` what is
done with y.

The library finds out which instructions the machine has when it is first called.
Its threads are XLA's own.
"""

import ctypes
import dataclasses
import enum
import functools
import importlib.machinery
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels import sparse_layout

_TARGETS = ('matmul', 'sparse_matmul', 'conv', 'depthwise')
# What `jaxopt_compress_interface` in `source/matmul.cc` says, too: one more whenever
# operands or attributes of a call change.
_INTERFACE = 3

# An environment variable: the path of a library built elsewhere, with other flags.
_ELSEWHERE = 'JAXOPT_COMPRESS_KERNELS'


@functools.cache
def _library() -> ctypes.CDLL | None:
  folder = pathlib.Path(__file__).parent
  built = [
    folder / f'_kernels{s}' for s in importlib.machinery.EXTENSION_SUFFIXES
  ]
  if _ELSEWHERE in os.environ:
    built = [pathlib.Path(os.environ[_ELSEWHERE])]
    if not built[0].exists():
      raise RuntimeError(
        f'{_ELSEWHERE} is {built[0]}, and there is no such file.'
      )
  for path in built:
    if path.exists():
      return _registered(path)
  return None


def _registered(path):
  """The library at a path, its functions known to XLA."""
  library = ctypes.CDLL(str(path))
  interface = getattr(library, 'jaxopt_compress_interface', None)
  if interface is None or interface() != _INTERFACE:
    raise RuntimeError(
      f'{path} was built from other sources than these. Reinstall'
      ' jaxopt_compress (pip install -e .).'
    )
  for name in _TARGETS:
    handler = getattr(library, f'jaxopt_compress_{name}')
    jax.ffi.register_ffi_target(
      f'jaxopt_compress_{name}', jax.ffi.pycapsule(handler), platform='cpu'
    )
  return library


def available() -> bool:
  """Whether the library was built."""
  return _library() is not None


@functools.cache
def paths() -> tuple[str, ...]:
  """The instruction paths that this machine has, best first; () without the library.

  Of 'amx', 'avx512-vbmi2', 'avx512-vnni', 'avx-vnni', 'avx2', 'neon-dotprod' and
  'portable'.
  """
  library = _library()
  if library is None:
    return ()
  library.jaxopt_compress_paths.restype = ctypes.c_char_p
  return tuple(library.jaxopt_compress_paths().decode().split())


# Why there may be no library.
MISSING = (
  'the CPU kernels were not built when jaxopt_compress was installed; they need'
  ' GCC 11, Clang 12 or newer, and `pip install -v` says what was missing'
)
# So many products of codes fit into a sum of 32 bits.
MOST_ROWS = 2**17 - 1


def _static(default):
  """A field of a record that is no array."""
  return dataclasses.field(default=default, metadata={'static': True})


class Act(enum.IntEnum):
  """What becomes of the other operand: `source/job.h`."""

  CODES = 0
  DYNAMIC = 1
  STATIC = 2
  FLOAT = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rounding:
  """How x, the other operand of a product, becomes codes.

  Attributes:
    scale, zero: [..., 1, 1] float32, the range of Act.STATIC. A `zero` of None is 0.
      With Act.FLOAT `scale` is a factor of all scales of the weight, or None.
    totals: [..., 1, n] float32, the sums of the columns of the weight; needed if
      codes of x have zero points. `cpu.conv.depthwise` computes them itself.
    act: CODES: x has int8 codes already. DYNAMIC: the range of each row is measured
      (of each image in a convolution). STATIC: the range is given. FLOAT: x is kept
      to 2^-23 of the largest entry of its row, to 2^-15 if it is bfloat16. A row
      with a NaN or an infinity gives NaN.
    bound: the largest number of a row is so many steps.
    low, high: the smallest and the largest code.
    symmetric: whether codes have no zero point.
  """

  scale: jax.Array | None = None
  zero: jax.Array | None = None
  totals: jax.Array | None = None
  act: Act = _static(Act.FLOAT)
  bound: float = _static(127.5)
  low: float = _static(-128.0)
  high: float = _static(127.0)
  symmetric: bool = _static(True)

  def attributes(self) -> dict[str, Any]:
    """What C++ decodes: `Rounding` of `source/job.h`."""
    return dict(
      act=np.int32(self.act),
      bound=np.float32(self.bound),
      high=np.float32(self.high),
      low=np.float32(self.low),
      symmetric=self.symmetric,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Finish:
  """What is done with results: bias, curve, other, floor, in this order.

  Results of Act.CODES are sums of codes and stay what they are.

  Attributes:
    bias: [..., 1, n] float32, added to results.
    other: of the shape and dtype of the result; added, or a factor.
    curve: name of the function that results go through, one of
      `source/curves.h`; '' for none.
    times: whether `other` is a factor.
    floor: the least that a result may be: 0 for relu.
  """

  bias: jax.Array | None = None
  other: jax.Array | None = None
  curve: str = _static('')
  times: bool = _static(False)
  floor: float = _static(-np.inf)

  def attributes(self) -> dict[str, Any]:
    """What C++ decodes: `Finish` of `source/call.h`."""
    return dict(
      curve=self.curve, floor=np.float32(self.floor), times=self.times
    )


def matmul(
  x: jax.Array,
  w: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None = None,
  rounding: Rounding = Rounding(),
  finish: Finish = Finish(),
  *,
  format: str,
  k: int,
  n: int,
  group: int,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """A stack of products on the library; no derivative.

  Leading axes broadcast. Rows that share a matrix are multiplied together.

  Args:
    x: [..., m, k] float32 or bfloat16; int8 codes for Act.CODES.
    w: [..., panels, units, bytes] as `layout.to_panels` makes them.
    scale: [..., groups, n] float32, bfloat16, float8_e8m0fnu or float8_e4m3fn; None
      for codes.
    zero: [..., groups, n] float32 or int8, in numbers of the format.
    rounding: how x is rounded.
    finish: what is done with results.
    format: in `layout.CODES`.
    k, n: rows and columns of the matrix.
    group: rows that share scales.
    out_dtype: float32 or bfloat16; int32 for codes.
    path: an instruction path; '' for the best.

  Returns:
    [..., m, n].

  Raises:
    RuntimeError: the library was not built.
  """
  check_totals(rounding)
  return call(
    'matmul',
    [(x, 2), (w, 3)],
    [(scale, 2), (zero, 2)],
    rounding,
    finish,
    (x.shape[-2], n),
    out_dtype,
    format=format,
    skips=False,
    constant=np.int64(0),
    k=np.int64(k),
    n=np.int64(n),
    group=np.int64(group),
    path=path,
  )


def sparse_matmul(
  x: jax.Array,
  stream: jax.Array,
  offsets: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None = None,
  rounding: Rounding = Rounding(),
  finish: Finish = Finish(),
  *,
  how: sparse_layout.Sparse,
  k: int,
  n: int,
  group: int,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """`matmul` with matrices whose zeros are left out.

  If the weight is of floats, sums are of float32, and products with zeros count: a
  row of x with a NaN or an infinity gives what it gives with the dense matrix.

  Args:
    x: [..., m, k] float32 or bfloat16; int8 codes for Act.CODES.
    stream, offsets: [..., bytes] and [..., panels + 1], as
      `sparse_layout.to_streams` makes them.
    scale: [..., groups, n], as for `matmul`; None for codes and weights of floats.
    zero, rounding, finish: as for `matmul`; weights of floats have no zero points,
      and x stays as it is (Act.FLOAT).
    how: what `sparse_layout.to_streams` says of the stream.
    k, n, group: as for `matmul`; k for weights of floats.
    out_dtype, path: as for `matmul`.

  Returns:
    [..., m, n].
  """
  check_totals(rounding)
  return call(
    'sparse_matmul',
    [(x, 2), (stream, 1), (offsets, 1)],
    [(scale, 2), (zero, 2)],
    rounding,
    finish,
    (x.shape[-2], n),
    out_dtype,
    format=how.type,
    skips=how.skips,
    constant=np.int64(how.constant),
    k=np.int64(k),
    n=np.int64(n),
    group=np.int64(group),
    path=path,
  )


def check_totals(rounding: Rounding) -> None:
  """Raises ValueError for codes with zero points and no sums of the columns."""
  measured = rounding.act == Act.DYNAMIC and not rounding.symmetric
  given = rounding.act == Act.STATIC and rounding.zero is not None
  if (measured or given) and rounding.totals is None:
    raise ValueError(
      'Codes of x have zero points, and `totals`, the sums of the columns of the'
      ' weight that go with them, is None.'
    )


def call(
  name: str,
  operands: list[tuple[jax.Array, int]],
  scales: list[tuple[jax.Array | None, int]],
  rounding: Rounding,
  finish: Finish,
  inner: tuple[int, ...],
  out_dtype,
  **attributes,
) -> jax.Array:
  """Calls a function of the library on a stack.

  Each operand comes with the number of its trailing axes that are not the stack's.

  Args:
    name: of the function.
    operands: x, the weight and what else the function cannot do without.
    scales: scales and zero points of the weight.
    rounding: of x.
    finish: of results.
    inner: shape of a result of the stack.
    out_dtype: of the results.
    **attributes: further ones, that are the function's own.

  Returns:
    [*stack, *inner].
  """
  if not available():
    raise RuntimeError(f'No kernel: {MISSING}.')
  of_columns = scales[0][1]  # axes that numbers for columns have
  # The order is that of `Operands` in `source/operands.h`.
  others = [
    *scales,
    (rounding.totals, of_columns),
    (finish.bias, of_columns),
    (rounding.scale, 2),
    (rounding.zero, 2),
    (finish.other, len(inner)),
  ]
  lead = max(a.ndim - own for a, own in operands)
  arrays = [_filled_up(a, lead + own) for a, own in operands]
  stack = jnp.broadcast_shapes(*(a.shape[:lead] for a in arrays))
  # Missing operands are not passed: XLA takes time for each. Bit i of `given` says
  # whether the i-th is there.
  given = sum(1 << i for i, (a, _) in enumerate(others) if a is not None)
  arrays += [_filled_up(a, lead + own) for a, own in others if a is not None]
  arrays = _alike(arrays)
  function = jax.ffi.ffi_call(
    f'jaxopt_compress_{name}',
    _result((*stack, *inner), out_dtype, arrays[0]),
    vmap_method='expand_dims',
  )
  return function(
    *arrays,
    rounding=rounding.attributes(),
    finish=finish.attributes(),
    given=np.int32(given),
    **attributes,
  )


def _filled_up(a, ndim):
  """An array with axes of size one before its own."""
  return a.reshape((1,) * (ndim - a.ndim) + a.shape)


def _alike(operands):
  """Operands that all vary over the same mesh axes inside a `shard_map`."""
  axes = frozenset().union(*(jaxprs.varying(jax.typeof(a)) for a in operands))
  return [jaxprs.vary(a, axes) for a in operands]


def _result(shape, dtype, like):
  """Shape and dtype of a result, which varies over the mesh axes that `like` does."""
  of = jax.typeof(like)
  if not jaxprs.varying(of):
    return jax.ShapeDtypeStruct(shape, dtype)
  # JAX wants to know over which mesh a value varies.
  whole = jax.sharding.PartitionSpec(*(None for _ in shape))
  return jax.ShapeDtypeStruct(
    shape,
    dtype,
    sharding=jax.sharding.NamedSharding(of.sharding.mesh, whole),
    manual_axis_type=of.manual_axis_type,
  )
