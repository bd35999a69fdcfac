"""Arrays as a file has them, and as they were.

    float32, int8, bfloat16, ...   as they are
    float8 and other bytes         uint8 of the same shape
    int4, float4, int2             uint8 in which values share bytes, without padding
    complex128                     uint8
    PRNG keys                      uint32, their data

The second and later lines are what safetensors.numpy cannot read. Their real type stands
in the words beside the array.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.disk import tensors

# Types of less than a byte, which take one in memory.
_BITS = {'int2': 2, 'uint2': 2, 'int4': 4, 'uint4': 4, 'float4_e2m1fn': 4}
_AS_BYTES = (
  *_BITS,
  *('float8_e3m4', 'float8_e4m3', 'float8_e4m3b11fnuz', 'float8_e4m3fn'),
  *('float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz', 'float8_e8m0fnu'),
  'complex128',
)


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array on its way to a file.

  Attributes:
    shape, dtype: as it is in the file.
    words: what is said of it there, besides its name.
    read: returns it, on the host.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  words: dict[str, Any]
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ref:
  """An array that is still in a file.

  Attributes:
    name: of what the file has of it.
    shape, dtype: as it will be.
    key: the algorithm, if it is of PRNG keys.
  """

  name: str
  shape: tuple[int, ...]
  dtype: Any
  key: str | None = None

  @property
  def ndim(self) -> int:
    return len(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Later:
  """An array of a leaf that is made when it is written."""

  shape: tuple[int, ...]
  dtype: Any
  made: Callable[[], np.ndarray]

  @property
  def ndim(self) -> int:
    return len(self.shape)


def is_array(x: Any) -> bool:
  return isinstance(x, (jax.Array, np.ndarray, np.generic, _Later))


def portable(leaf: array.CompressedArray) -> array.CompressedArray:
  """The leaf as it is on any machine; its arrays are made when they are written."""
  if not _laid_out(leaf):
    return leaf
  shapes, treedef = jax.tree.flatten(jax.eval_shape(_portable, leaf))

  def nth(i):
    # Again for each array: a file has the scales of all leaves before their codes,
    # and codes that wait for their turn would be a second tree in memory.
    return jax.tree.leaves(_portable(leaf))[i]

  later = [
    _Later(x.shape, x.dtype, functools.partial(nth, i))
    for i, x in enumerate(shapes)
  ]
  return jax.tree.unflatten(treedef, later)


def stored(x: Any, name: str) -> Stored:
  """How a file has an array.

  Raises:
    ValueError: an array without numbers that are here.
  """
  if isinstance(x, jax.core.Tracer):
    raise ValueError(f'{name} is traced: save outside of jax.jit.')
  if isinstance(x, jax.Array):
    _check_here(x, name)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = jax.random.key_data(x)
      words = {'key': str(jax.random.key_impl(x))}
      return Stored(data.shape, data.dtype, words, lambda: _host(data))
  dtype = np.dtype(x.dtype)
  if dtype.name in tensors.WRITTEN:
    little = tensors.WRITTEN[dtype.name]
    return Stored(
      x.shape, little, {}, lambda: _host(x).astype(little, copy=False)
    )
  if dtype.name not in _AS_BYTES:
    raise ValueError(
      f'{name} is an array of {dtype}, which no file says. Save numbers:'
      f' {", ".join(sorted(tensors.WRITTEN))}, or {", ".join(_AS_BYTES)}.'
    )
  shape, words = _stored_shape(dtype, x.shape), {'dtype': dtype.name}
  if shape != x.shape:
    words['shape'] = list(x.shape)
  return Stored(shape, np.dtype(np.uint8), words, lambda: _to_bytes(_host(x)))


def ref(name: str, entry: tensors.Entry, said: dict[str, Any]) -> Ref:
  """What an array of a file becomes, of which `Stored.words` said this."""
  shape, real = entry.shape, entry.dtype
  if 'dtype' in said:
    real = dtype(said['dtype'])
    shape = tuple(said.get('shape', shape))
    whole = all(type(n) is int and n >= 0 for n in shape)
    if not whole or _stored_shape(real, shape) != entry.shape:
      raise ValueError(
        f'{name} has {entry.dtype}{list(entry.shape)}, and is said to be'
        f' {real}{list(shape)}'
      )
  if 'key' in said:
    data = jax.ShapeDtypeStruct(shape, real)
    wrap = functools.partial(jax.random.wrap_key_data, impl=said['key'])
    keys = jax.eval_shape(wrap, data)
    return Ref(name, keys.shape, keys.dtype, said['key'])
  return Ref(name, shape, real)


def restore(x: np.ndarray, ref: Ref) -> np.ndarray:
  """Numbers of a file as they were; of PRNG keys, their data."""
  if ref.key or x.dtype == ref.dtype:
    return x
  if (bits := _BITS.get(ref.dtype.name)) is None:
    return x.reshape(-1).view(ref.dtype).reshape(ref.shape)
  # Value i is in the bits from i * bits on, the lowest first.
  shifts = np.arange(0, 8, bits, dtype=np.uint8)
  codes = (x[:, None] >> shifts & (1 << bits) - 1).reshape(-1)
  codes = codes[: math.prod(ref.shape)].reshape(ref.shape)
  if ref.dtype.name.startswith('float'):
    return codes.view(ref.dtype)
  if ref.dtype.name.startswith('int'):  # the sign goes up to the highest bit
    codes = (codes << 8 - bits).view(np.int8) >> 8 - bits
  return codes.astype(ref.dtype)


def dtype(word: Any) -> np.dtype:
  """A type of numbers by its name, and no other type."""
  if word not in tensors.WRITTEN and word not in _AS_BYTES:
    raise ValueError(f'{word!r} is no type of numbers')
  return np.dtype(word)


def _laid_out(leaf) -> bool:
  """Whether anything of a leaf is for one kind of machine."""
  same = type(leaf).portable is array.CompressedArray.portable
  return not same or any(map(_laid_out, _inside(leaf)))


def _inside(leaf):
  parts = jax.tree.leaves(
    leaf, is_leaf=lambda x: x is not leaf and array.is_compressed(x)
  )
  return filter(array.is_compressed, parts)


def _portable(leaf):
  parts = jax.tree.map(
    lambda x: _portable(x) if array.is_compressed(x) else x,
    leaf,
    is_leaf=lambda x: x is not leaf and array.is_compressed(x),
  )
  return parts.portable()


def _stored_shape(dtype, shape) -> tuple[int, ...]:
  """Of the bytes of an array that is stored as bytes."""
  if dtype.name in _BITS:
    return (-(-math.prod(shape) * _BITS[dtype.name] // 8),)
  if dtype.itemsize == 1:
    return tuple(shape)
  return (math.prod(shape) * dtype.itemsize,)


def _to_bytes(x) -> np.ndarray:
  if (bits := _BITS.get(x.dtype.name)) is None:
    return x.reshape(-1).view(np.uint8).reshape(_stored_shape(x.dtype, x.shape))
  together = 8 // bits
  codes = x.reshape(-1).view(np.uint8) & (1 << bits) - 1
  codes = np.pad(codes, (0, -codes.size % together)).reshape(-1, together)
  shifts = np.arange(0, 8, bits, dtype=np.uint8)
  return np.bitwise_or.reduce(codes << shifts, axis=1, dtype=np.uint8)


def _check_here(x, name):
  if x.is_deleted():
    raise ValueError(
      f'{name} was deleted, as a function took it by donation. Save before, or save'
      ' what the function returned.'
    )
  if not (x.is_fully_addressable or x.is_fully_replicated):
    raise ValueError(
      f'{name} is cut over processes, and this one has a part of it. Gather it with'
      ' jax.experimental.multihost_utils.process_allgather, or save with Orbax, where'
      ' each process writes its part.'
    )


def _host(x) -> np.ndarray:
  """`x` on the host and contiguous, without a copy there that `x` would keep."""
  if isinstance(x, _Later):
    x = x.made()
  if not isinstance(x, jax.Array):
    return np.asarray(x, order='C')
  if x.is_fully_replicated:
    return np.asarray(x.addressable_data(0), order='C')
  whole = np.empty(x.shape, x.dtype)
  for shard in x.addressable_shards:
    if shard.replica_id == 0:
      whole[shard.index] = shard.data
  return whole
