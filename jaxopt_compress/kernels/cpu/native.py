"""The library of C++ kernels, and its products of matrices.

    y = a (sum_g s_g sum_{k in g} (w - z_g) x - b t) + bias
    y -> max(floor, gain curve(y) + shift + other), or times other

with x the int8 codes of a row, a its scale and b its zero point, w the codes of the
weight, s and z its scales and zero points, t = sum_g s_g sum w - z the sums of its
columns: `source/job.h`. A `Rounding` says how x becomes codes, a `Finish` what is
done with y.

The library finds out which instructions the machine has when it is first called.
It has a thread for each further processor that XLA uses; they sleep when there is no call.
"""

from collections.abc import Sequence
import ctypes
import dataclasses
import enum
import functools
import importlib.machinery
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import norms
from jaxopt_compress.kernels.cpu import calls

_TARGETS = ('matmul', 'conv', 'depthwise', 'float_conv', 'attention')
# What `jaxopt_compress_interface` in `source/matmul.cc` says, too: one more whenever
# operands or attributes of a call change.
_INTERFACE = 8

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
      with a NaN or an infinity gives NaN, and so does a `zero` that is no whole
      number of eight bits.
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
  """What is done with results: bias, curve, after, other, floor, in this order.

  Results of Act.CODES are sums of codes and stay what they are.

  Attributes:
    bias: [..., 1, n] float32, added to results.
    other: of the shape and dtype of the result; added, or a factor.
    curve: name of the function that results go through, one of
      `source/curves.h`; '' for none.
    times: whether `other` is a factor.
    floor: the least that a result may be: 0 for relu.
    after: [..., 2, n] float32, a factor for each column and what is added then.
  """

  bias: jax.Array | None = None
  other: jax.Array | None = None
  curve: str = _static('')
  times: bool = _static(False)
  floor: float = _static(-np.inf)
  after: jax.Array | None = None

  def attributes(self) -> dict[str, Any]:
    """What C++ decodes: `Finish` of `source/call.h`."""
    return dict(
      curve=self.curve, floor=np.float32(self.floor), times=self.times
    )


class Weight(NamedTuple):
  """A stack of matrices that rows are multiplied by, and what follows the products.

  Attributes:
    payload: [..., panels, units, bytes] as `layout.to_panels` makes them; streams of
      `sparse_layout.to_streams` if `offsets` are there; [..., layers, panels, units,
      bytes] with `layer`.
    scale: [..., groups, n] float32, bfloat16, float8_e8m0fnu or float8_e4m3fn; None
      for codes and streams of floats.
    n: columns of the matrix.
    zero: [..., groups, n] float32 or int8, in numbers of the format.
    rounding: of the rows. What is static of it is the same of all weights.
    finish: what is done with results.
    out_dtype: float32 or bfloat16; int32 for codes.
    offsets: None, or [..., panels + 1] of the runs of a stream.
    constant: of a stream, `Sparse.constant`.
    layer: None, or [...] int32: which of the layers of panels it is, read where it
      lies.
  """

  payload: jax.Array
  scale: jax.Array | None
  n: int
  zero: jax.Array | None = None
  rounding: Rounding = Rounding()
  finish: Finish = Finish()
  out_dtype: Any = jnp.float32
  offsets: jax.Array | None = None
  constant: int = 0
  layer: jax.Array | None = None


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
  """`matmuls` of one weight.

  Args:
    x: as for `matmuls`.
    w, scale, zero, rounding, finish, n, out_dtype: those of a `Weight`.
    format, k, group, path: as for `matmuls`.

  Returns:
    [..., m, n].
  """
  weight = Weight(w, scale, n, zero, rounding, finish, out_dtype)
  return matmuls(x, [weight], format=format, k=k, group=group, path=path)[0]


def matmuls(
  x: jax.Array,
  weights: Sequence[Weight],
  norm: norms.Norm | None = None,
  *,
  format: str,
  k: int,
  group: int,
  keep: bool = False,
  sparse: bool = False,
  skips: bool = False,
  path: str = '',
) -> tuple[jax.Array, ...]:
  """Products of the same rows with one or several weights; no derivative.

  Rows become codes once, unless ranges are given that differ. Leading axes broadcast;
  those of all results are the same. Rows that share a matrix are multiplied together.

  Args:
    x: [..., m, k] float32 or bfloat16; int8 codes for Act.CODES.
    weights: what they are multiplied by, all of one format.
    norm: what is done with the rows before, or None; its vectors are [..., k].
    format: in `layout.CODES`; the type of a stream.
    k: rows of the matrices.
    group: rows that share scales.
    keep: whether the norm of the rows is wanted, too.
    sparse: whether weights are streams.
    skips: whether streams leave out units without entries.
    path: an instruction path; '' for the best.

  Returns:
    [..., m, n] for each weight; then, with `keep`, [..., m, k] of the dtype of x.

  Raises:
    RuntimeError: the library was not built.
    ValueError: what is static of a `rounding` differs, or `totals` are missing.
  """
  _check_library()
  rounding = weights[0].rounding.attributes()
  for weight in weights:
    check_totals(weight.rounding)
    if weight.rounding.attributes() != rounding:
      raise ValueError(
        f'Weights round the rows they share differently: {rounding} and'
        f' {weight.rounding.attributes()}.'
      )
  operands = calls.Operands([(x, 2)])
  vectors = (None, None) if norm is None else (norm.scale, norm.shift)
  vectors = [None if p is None else p.astype(jnp.float32) for p in vectors]
  in_norm = operands.add([(p, 1) for p in vectors])
  given = []
  for weight in weights:
    how, finish = weight.rounding, weight.finish
    streams = [(weight.offsets, 1)] if sparse else []
    own = 1 if sparse else 3 if weight.layer is None else 4
    operands.add([(weight.payload, own), *streams])
    others = _others((weight.scale, weight.zero), 2, how, finish, 2)
    given.append(operands.add([*others, (weight.layer, 0)]))
  results = [((x.shape[-2], w.n), w.out_dtype) for w in weights]
  results += [(x.shape[-2:], x.dtype)] * keep
  finishes = [weight.finish for weight in weights]
  return operands.call(
    'matmul',
    results,
    constant=np.int64([weight.constant for weight in weights]),
    curve=','.join(finish.curve for finish in finishes),
    floor=np.float32([finish.floor for finish in finishes]),
    format=format,
    given=np.int32(given),
    group=np.int64(group),
    k=np.int64(k),
    n=np.int64([weight.n for weight in weights]),
    norm=_attributes(norm, in_norm, keep),
    path=path,
    rounding=rounding,
    skips=skips,
    sparse=sparse,
    times=np.int32([finish.times for finish in finishes]),
  )


def _attributes(norm, given, keep) -> dict[str, Any]:
  """What C++ decodes of a norm: `Normal` of `source/matmul.cc`."""
  there = norm is not None
  return dict(
    centered=there and norm.centered,
    eps=np.float32(norm.eps if there else 0.0),
    given=np.int32(given),
    keep=keep,
    there=there,
  )


def _check_library():
  if not available():
    raise RuntimeError(f'No kernel: {MISSING}.')


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
  _check_library()
  passed = calls.Operands(operands)
  of_columns = scales[0][1]  # axes that numbers for columns have
  columns = [p for p, _ in scales]
  given = passed.add(_others(columns, of_columns, rounding, finish, len(inner)))
  (y,) = passed.call(
    name,
    [(inner, out_dtype)],
    rounding=rounding.attributes(),
    finish=finish.attributes(),
    given=np.int32(given),
    **attributes,
  )
  return y


def _others(scales, of_columns, rounding, finish, inner):
  """Operands that may be missing, in the order of `Operands` in `source/operands.h`."""
  return [
    *((p, of_columns) for p in scales),
    (rounding.totals, of_columns),
    (finish.bias, of_columns),
    (rounding.scale, 2),
    (rounding.zero, 2),
    (finish.other, inner),
    (finish.after, of_columns),
  ]
