"""The library of C++ kernels, and its calls.

    y = a (sum_g s_g sum_{k in g} (w - z_g) x - b t) + bias
    y -> max(floor, curve(y) + other), or times other

with x the int8 codes of a row, a its scale and b its zero point, w the codes of the
weight, s and z its scales and zero points, t = sum_g s_g sum w - z the sums of its
columns: `source/job.h`.

Which instructions are used is found out when the library is first called. Its
threads are XLA's own.
"""

import ctypes
import enum
import functools
import importlib.machinery
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels import sparse_layout

_TARGETS = ('matmul', 'sparse_matmul', 'conv', 'depthwise')

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
  for name in _TARGETS:
    handler = getattr(library, f'jaxopt_compress_{name}', None)
    if handler is None:
      raise RuntimeError(
        f'{path} has no {name}: it was built from older sources. Reinstall'
        ' jaxopt_compress (pip install -e .).'
      )
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
# Products of codes whose sum 32 bits hold.
MOST_ROWS = 2**17 - 1


class Act(enum.IntEnum):
  """What becomes of the other operand: `source/job.h`."""

  CODES = 0
  DYNAMIC = 1
  STATIC = 2
  FLOAT = 3


def matmul(
  x: jax.Array,
  w: jax.Array,
  scale: jax.Array | None,
  *,
  format: str,
  k: int,
  n: int,
  group: int,
  act: Act,
  zero: jax.Array | None = None,
  totals: jax.Array | None = None,
  bias: jax.Array | None = None,
  act_scale: jax.Array | None = None,
  act_zero: jax.Array | None = None,
  other: jax.Array | None = None,
  bound: float = 127.5,
  low: float = -128.0,
  high: float = 127.0,
  symmetric: bool = True,
  floor: float = -np.inf,
  curve: str = '',
  times: bool = False,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """A stack of products on the library; no derivative.

  Leading axes broadcast. Rows that share a matrix are multiplied together.

  Args:
    x: [..., m, k] float32 or bfloat16; int8 codes for Act.CODES.
    w: [..., panels, units, bytes] as `layout.to_panels` makes them.
    scale: [..., groups, n] float32, bfloat16 or float8_e8m0fnu; None for codes.
    format: in `layout.CODES`.
    k, n: rows and columns of the matrix.
    group: rows that share scales.
    act: how x is rounded. FLOAT keeps it to 2^-23 of the largest entry of its row,
      2^-15 where x is bfloat16. A row with a NaN or an infinity gives NaN.
    zero: [..., groups, n] float32 or int8, in numbers of the format.
    totals: [..., 1, n] float32 column sums, where codes of x have zero points.
    bias: [..., 1, n] float32.
    act_scale, act_zero: [..., 1, 1] float32, of Act.STATIC.
    other: [..., m, n] of `out_dtype`, added to results. Not to those of codes.
    bound, low, high: of the codes of x.
    symmetric: whether codes of x have no zero point.
    floor: the least that a result may be, in the end: 0 for relu. Not of codes.
    curve: what results go through before `other`: 'gelu', by its tanh formula, or
      'silu'; nothing if ''. Not of codes.
    times: whether `other` is a factor.
    out_dtype: float32 or bfloat16; int32 for codes.
    path: an instruction path; the best if ''.

  Returns:
    [..., m, n].

  Raises:
    RuntimeError: the library was not built.
  """
  others = (scale, zero, totals, bias, act_scale, act_zero, other)
  return _product(
    'matmul',
    [(x, 2), (w, 3)],
    others,
    out_dtype,
    format=format,
    act=np.int32(act),
    bound=np.float32(bound),
    low=np.float32(low),
    high=np.float32(high),
    symmetric=symmetric,
    floor=np.float32(floor),
    curve=curve,
    times=times,
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
  *,
  how: sparse_layout.Sparse,
  k: int,
  n: int,
  group: int,
  act: Act,
  zero: jax.Array | None = None,
  totals: jax.Array | None = None,
  bias: jax.Array | None = None,
  act_scale: jax.Array | None = None,
  act_zero: jax.Array | None = None,
  other: jax.Array | None = None,
  bound: float = 127.5,
  low: float = -128.0,
  high: float = 127.0,
  symmetric: bool = True,
  floor: float = -np.inf,
  curve: str = '',
  times: bool = False,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """As `matmul`, with matrices whose zeros are left out.

  Of weights of floats, sums are of float32 and products with zeros count: a row of
  x with a NaN or an infinity gives what it gives with the dense matrix.

  Args:
    x: [..., m, k] float32 or bfloat16; int8 codes for Act.CODES.
    stream, offsets: [..., bytes] and [..., panels + 1], as
      `sparse_layout.to_streams` makes them.
    scale: [..., groups, n], as for `matmul`; None for codes and weights of floats.
    how: what `sparse_layout.to_streams` says of them.
    k, n, group, act: as for `matmul`; Act.FLOAT and k for weights of floats.
    zero, totals, bias, act_scale, act_zero, other: as for `matmul`; of these only
      bias and other for weights of floats.
    bound, low, high, symmetric, floor, curve, times, out_dtype, path: as for
      `matmul`.

  Returns:
    [..., m, n].
  """
  others = (scale, zero, totals, bias, act_scale, act_zero, other)
  return _product(
    'sparse_matmul',
    [(x, 2), (stream, 1), (offsets, 1)],
    others,
    out_dtype,
    format=how.type,
    skips=how.skips,
    constant=np.int64(how.constant),
    act=np.int32(act),
    bound=np.float32(bound),
    low=np.float32(low),
    high=np.float32(high),
    symmetric=symmetric,
    floor=np.float32(floor),
    curve=curve,
    times=times,
    k=np.int64(k),
    n=np.int64(n),
    group=np.int64(group),
    path=path,
  )


def _product(name, operands, others, out_dtype, **attributes):
  """Calls a product: operands with how many of their axes are no stack's."""
  inner = (operands[0][0].shape[-2], int(attributes['n']))
  others = [(a, 2) for a in others]
  return call(name, operands, others, inner, out_dtype, **attributes)


def call(name, operands, others, inner, out_dtype, **attributes) -> jax.Array:
  """Calls the library on stacks.

  Args:
    name: of the function.
    operands: arrays, each with how many of its axes are not of the stack.
    others: the same of operands that may be None.
    inner: shape of the result, without the axes of the stack.
    out_dtype: of the result.
    **attributes: of the function.

  Returns:
    [*stack, *inner].
  """
  if not available():
    raise RuntimeError(f'No kernel: {MISSING}.')
  lead = max(a.ndim - own for a, own in operands)
  full = lambda a, own: a.reshape((1,) * (lead + own - a.ndim) + a.shape)
  empty = lambda own: jnp.zeros((1,) * lead + (0,) * own, jnp.float32)
  arrays = [full(a, own) for a, own in operands]
  stack = jnp.broadcast_shapes(*(a.shape[:lead] for a in arrays))
  arrays += [empty(own) if a is None else full(a, own) for a, own in others]
  arrays = _alike(arrays)
  function = jax.ffi.ffi_call(
    f'jaxopt_compress_{name}',
    _result((*stack, *inner), out_dtype, arrays[0]),
    vmap_method='expand_dims',
  )
  return function(*arrays, **attributes)


def _alike(operands):
  """The same, all varying over the same mesh axes inside a `shard_map`."""
  axes = frozenset().union(*(jaxprs.varying(jax.typeof(a)) for a in operands))
  return [jaxprs.vary(a, axes) for a in operands]


def _result(shape, dtype, like):
  """What a call returns, varying as `like` does."""
  of = jax.typeof(like)
  if not jaxprs.varying(of):
    return jax.ShapeDtypeStruct(shape, dtype)
  # What varies has to say over which mesh.
  whole = jax.sharding.PartitionSpec(*(None for _ in shape))
  return jax.ShapeDtypeStruct(
    shape,
    dtype,
    sharding=jax.sharding.NamedSharding(of.sharding.mesh, whole),
    manual_axis_type=of.manual_axis_type,
  )
