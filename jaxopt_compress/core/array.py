"""The noun: a leaf that stands for an array.

A `CompressedArray` sits in a parameter tree where an array was. Its *meaning*
is `materialize()`; everything else in this library is a faster way to get the
same result (`core/lift.py`), or a way to make such leaves.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class CompressedArray:
  """Base of every leaf that stands for an array.

  A subclass is a frozen dataclass registered as a pytree, final, and defines
  `shape`, `dtype` and `materialize`:

      @jax.tree_util.register_dataclass
      @dataclasses.dataclass(frozen=True, eq=False)
      class Negated(CompressedArray):
        x: jax.Array
        note: str = dataclasses.field(default='', metadata={'static': True})

        shape = property(lambda self: self.x.shape)
        dtype = property(lambda self: self.x.dtype)

        def materialize(self):
          return -self.x

  Two promises let `scan`, `vmap`, stacking and sharding slice a leaf as they
  slice an array: `shape` follows from the shapes of the arrays inside, and
  static fields count axes from the end (-1, -2), so that they keep their meaning
  when a leading axis comes or goes.
  """

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    concrete = [b for b in cls.__mro__[1:] if issubclass(b, CompressedArray)]
    if len(concrete) > 1:
      raise TypeError(
        f'{cls.__name__} derives from {concrete[0].__name__}, a concrete leaf'
        ' type. Leaf types are final, so that a rule registered for one means one'
        ' layout: derive from CompressedArray, and hold the other leaf as a field.'
      )
    # Before `dataclass` writes one that prints every number.
    cls.__repr__ = CompressedArray.__repr__

  shape: tuple[int, ...]  # of the array that this leaf stands for
  dtype: Any
  # Whether programs write to it: loops then carry and return it as a leaf.
  writable = False
  # Whether a scan over its first axis leaves it whole, and asks for `entry`.
  indexed = False

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  def materialize(self) -> jax.Array:
    """The array that this leaf stands for: `shape`, `dtype`."""
    raise NotImplementedError

  def entry(self, index: jax.Array) -> 'CompressedArray':
    """The leaf of one entry of the first axis, if `indexed`: what is large stays whole.

    Args:
      index: int32 scalar.
    """
    raise NotImplementedError

  def apart(self) -> 'CompressedArray':
    """The same leaf without more than it needs, after `entry`."""
    return self

  def can_cut(self, axis: int, size: int) -> bool:
    """Whether every part, cut each `size` entries along `axis`, is a cut leaf.

    A part of size one along `axis` is shared and stays whole. No for a leaf that
    packs or groups entries of `axis` in other numbers than `size`; `size` one
    also asks whether the axis can go altogether, as in the body of a `scan`.
    By default, what the leaves inside say.

    Args:
      axis: counted from the end.
      size: entries in each piece.
    """
    return all(x.can_cut(axis, size) for x in self._inside())

  def _inside(self) -> list['CompressedArray']:
    """The leaves that this one is made of."""
    parts = jax.tree.leaves(self, lambda x: x is not self and is_compressed(x))
    return [x for x in parts if is_compressed(x)]

  def dtypes(self) -> dict[str, Any]:
    """What the arrays of fields must be: {name: a dtype, or `jnp.floating`}."""
    return {}

  def check_dtypes(self) -> None:
    """Raises ValueError for arrays of types that the leaf cannot hold."""
    for name, want in self.dtypes().items():
      # Transformations put other things there for a while, which have none.
      got = getattr(getattr(self, name), 'dtype', want)
      if not jnp.issubdtype(got, want):
        raise ValueError(
          f'{type(self).__name__}.{name} is {got}, not'
          f' {getattr(want, "__name__", want)}: the arrays inside of a leaf were'
          ' changed one by one. To cast what it stands for, jc.cast(tree, dtype);'
          ' for other changes, jax.tree.map(f, tree, is_leaf=jc.is_compressed).'
        )
    for leaf in self._inside():
      leaf.check_dtypes()

  def freeze(self):
    """What is stored of this leaf when training is over; itself by default."""
    return self

  def portable(self):
    """The same for any machine, where it is laid out for one; itself by default."""
    return self

  def describe(self) -> str:
    """The format in a few words, for tables."""
    return type(self).__name__

  def __repr__(self):
    # JAX's own error for a leaf given to a JAX function prints this.
    return (
      f'<{type(self).__name__}: {self.describe()}, {jnp.dtype(self.dtype).name}'
      f'{list(self.shape)}; call functions of it through jc.lift, or'
      ' .materialize() it>'
    )

  # What else arrays can do (`@`, indexing, `transpose`) is in `operators`.

  @property
  def T(self):  # noqa: N802  (as arrays spell it)
    return self.transpose()

  def __len__(self):
    if not self.ndim:
      raise TypeError('len() of unsized object')
    return self.shape[0]

  def __iter__(self):
    return (self[i] for i in range(len(self)))

  def __bool__(self):
    return bool(self.materialize())

  def __array__(self, *args, **kwargs):
    # Rather than entry by entry: JAX, too, asks for this.
    raise TypeError(repr(self))

  def __getattr__(self, name):
    said = f'{type(self).__name__!r} object has no attribute {name!r}'
    if hasattr(type(self), name):  # a property that failed, and says why
      return self.__getattribute__(name)
    if hasattr(jax.Array, name) and not name.startswith('__'):
      said += ', as arrays have: use it in jc.lift, or .materialize() first'
    raise AttributeError(said)

  # numpy leaves `array @ leaf` to the leaf.
  __array_ufunc__ = None
  # As of arrays: what is compared entry by entry is no key of a dict.
  __hash__ = None


def is_compressed(x: Any) -> bool:
  """Whether `x` is a leaf that stands for an array."""
  return isinstance(x, CompressedArray)


def map_leaves(f: Callable[[CompressedArray], Any], tree: Any) -> Any:
  """`tree` with `f` of every compressed leaf; all of it on the device."""
  leaves, refill = arrays_apart(tree, is_compressed, is_compressed)
  for leaf in leaves:
    leaf.check_dtypes()
  return on_device(refill(map(f, leaves)))


def materialize(tree: Any) -> Any:
  """`tree` with every compressed leaf replaced by the array it stands for."""
  return map_leaves(lambda leaf: leaf.materialize(), tree)


def on_device(x: Any) -> Any:
  """`x` with its arrays of numpy, which each call would copy, on the device."""
  kinds = np.ndarray, np.generic
  arrays, refill = arrays_apart(x, lambda a: isinstance(a, kinds))
  # Copies: the device may use the memory of what it is given, and users change theirs.
  copies = [jax.device_put(np.array(a)) for a in arrays]
  return refill(copies) if arrays else x


def arrays_apart(
  tree: Any,
  is_array: Callable[[Any], bool],
  is_leaf: Callable[[Any], bool] | None = None,
) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
  """The arrays of a tree, and what puts others in their places.

  Args:
    tree: arguments of a function, say, flags among them.
    is_array: which of its leaves are taken out; the others stay what they are.
    is_leaf: as in `jax.tree.flatten`.

  Returns:
    (arrays, refill): `refill(arrays)` is the tree again.

  >>> arrays, refill = arrays_apart({'n': 2, 'w': jnp.ones(3)}, jnp.ndim)
  >>> refill(['another'])
  {'n': 2, 'w': 'another'}
  """
  leaves, treedef = jax.tree.flatten(tree, is_leaf)
  places = [i for i, x in enumerate(leaves) if is_array(x)]

  def refill(arrays):
    filled = list(leaves)
    for i, x in zip(places, arrays, strict=True):
      filled[i] = x
    return jax.tree.unflatten(treedef, filled)

  return [leaves[i] for i in places], refill
