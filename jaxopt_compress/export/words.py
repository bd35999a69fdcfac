"""A tree in words: its structure and its leaves as JSON, apart from its arrays.

    {'a': {'kernel': QArray(qvalue, scale, format='int8'), 'bias': b}, 'steps': 9}

    arrays  a/kernel.qvalue, a/kernel.scale, a/bias
    tree    {'dict': {'a': {'dict': {'bias': {},
                                     'kernel': {'leaf': 0, 'shape': [4, 2]}}},
                      'steps': 9}}
    leaves  [{'leaf': 'QArray', 'fields': {'qvalue': {}, 'format': 'int8', ...}}]

`{}` is the array of this path, and {'array': 'a/bias'} that of another: one that is at two
places is stored once and shared again. Leaves that differ in nothing but their arrays share
a description.

The words name leaf types that are defined, types of numbers and arrays, nothing else:
reading them imports nothing and runs no code of a file.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import json
import math
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.disk import tensors
from jaxopt_compress.export import numbers

_SCALARS = (bool, int, float, str)
# What words that do not fit together raise where they are read.
_UNFIT = (
  ArithmeticError,
  AttributeError,
  LookupError,
  RuntimeError,
  TypeError,
)
_NOT_FINITE = ('nan', 'inf', '-inf')


def of_tree(
  tree: Any, shared: bool = True
) -> tuple[dict[str, str], dict[str, numbers.Stored]]:
  """A tree as {'tree': JSON, 'leaves': JSON}, and its arrays by name.

  Leaves that are laid out for one machine are described in their portable form.

  Args:
    tree: any pytree.
    shared: whether an array that is at two places has one name.

  Raises:
    ValueError: a leaf that is no array and no word, or numbers that are not there.
  """
  writer = _Writer(shared)
  try:
    said = writer.node(tree, ())
  except RecursionError as e:
    raise ValueError('The tree is too deep for a file.') from e
  leaves = [json.loads(text) for text in writer.kinds]
  return {'tree': _json(said), 'leaves': _json(leaves)}, writer.arrays


def to_tree(
  said: Mapping[str, str], stored: Mapping[str, tensors.Entry]
) -> Any:
  """The tree of which `of_tree` said this, with `numbers.Ref` for arrays.

  What a header cannot say comes back as a dict: `nnx.State`, NamedTuples, dataclasses.

  Args:
    said: 'tree' and 'leaves'.
    stored: name -> shape and dtype of what the file has.

  Raises:
    ValueError: whatever does not fit together.
  """
  try:
    tree, leaves = (
      tensors.parsed(said[name], f'Its {name}') for name in ('tree', 'leaves')
    )
    reader = _Reader(leaves, stored)
    made = reader.node(tree, ())
  except _UNFIT as e:
    raise ValueError(f'{type(e).__name__}: {e}') from e
  if nameless := sorted(set(stored) - reader.named):
    raise ValueError(f'nothing says what {nameless[:5]} are')
  return made


def of_static(leaf: array.CompressedArray) -> dict[str, Any]:
  """What a leaf is, as JSON, but for its arrays: `to_static` of these makes it again."""
  return _Writer(True).record(leaf, '')


def to_static(said: dict[str, Any], arrays: Callable[[str], Any]) -> Any:
  """The leaf of which `of_static` said this.

  Args:
    said: what `of_static` returned.
    arrays: name of an array within the leaf, as 'stored.bits' -> the array.

  >>> from jaxopt_compress import pruning
  >>> x = {'value': np.ones(2), 'mask': np.array([True, False])}
  >>> said = of_static(pruning.Masked(**x))
  >>> to_static(said, x.__getitem__).materialize().tolist()
  [1.0, 0.0]
  """
  return _record(said, None, '', lambda node, name: arrays(name))


class _Writer:
  """Collects the arrays and the kinds of leaves of one tree."""

  def __init__(self, shared: bool):
    self._shared = shared
    self.arrays: dict[str, numbers.Stored] = {}
    self.kinds: dict[str, int] = {}
    self._seen: dict[int, tuple[Any, dict[str, Any]]] = {}
    self._portable: dict[tuple, tuple[Any, Any]] = {}

  def node(self, x: Any, keys: tuple) -> Any:
    path = _path(keys)
    if array.is_compressed(x):
      return self._leaf(self._made_portable(x), path)
    if numbers.is_array(x):
      return self._array(x, path)
    children = None if x is None else _children(x)
    if children is None:
      return _scalar(x, path)
    # Flax NNX keeps the array of a Variable under `value`, which paths leave out.
    if keys and _is_variable(children):
      return self.node(children[0][1], keys)
    said = [(k, self.node(child, (*keys, k))) for k, child in _plain(children)]
    if type(x) in (list, tuple):
      return {type(x).__name__: [node for _, node in said]}
    for key, _ in said:
      if type(key) not in (bool, int, str):
        raise ValueError(
          f'{path or "The tree"} has the key {key!r}, and a file can say strings and'
          ' whole numbers. Rename it.'
        )
    if (
      len({type(key) for key, _ in said}) > 1
    ):  # JAX cannot sort them as a dict
      said = [(str(key), node) for key, node in said]
    if all(type(key) is str for key, _ in said):
      return {'dict': dict(said)}
    return {'items': [list(item) for item in said]}

  def record(self, x: Any, prefix: str) -> dict[str, Any]:
    """What is inside of a leaf, or of a dataclass in it."""
    kind = {'leaf': type(x).__name__} if array.is_compressed(x) else {}
    keys = [field.name for field in dataclasses.fields(x)]
    fields = {key: self._field(getattr(x, key), prefix + key) for key in keys}
    return {**kind, 'fields': fields}

  def _field(self, x, name):
    if numbers.is_array(x):
      return self._array(x, name)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
      return self.record(x, f'{name}.')
    if isinstance(x, (np.dtype, type)):
      return {'type': str(jnp.dtype(x))}
    if type(x) is dict:
      return {'dict': {k: self._field(v, f'{name}.{k}') for k, v in x.items()}}
    if type(x) in (
      tuple,
      list,
    ):  # tuples again, as all that is static can be hashed
      return [self._field(v, f'{name}.{i}') for i, v in enumerate(x)]
    return _scalar(x, name)

  def _made_portable(self, x):
    """One portable form of all leaves that are the same arrays, which share it."""
    arrays, treedef = jax.tree.flatten(x)
    same = (treedef, *map(id, arrays))
    if same not in self._portable:
      # With the leaf, so that no other array is given the numbers of its own.
      self._portable[same] = x, numbers.portable(x)
    return self._portable[same][1]

  def _leaf(self, x, path):
    x.check_dtypes()
    kind = _json(self.record(x, f'{path}.'))
    index = self.kinds.setdefault(kind, len(self.kinds))
    return {'leaf': index, 'shape': list(x.shape)}

  def _array(self, x, natural):
    if self._shared and id(x) in self._seen:
      return self._seen[id(x)][1]
    # Names may meet: {'a/b': {'c': x}} and {'a': {'b/c': x}}.
    name = natural
    while name in self.arrays or name == tensors.METADATA:
      name += "'"
    stored = self.arrays[name] = numbers.stored(x, name)
    # With the array, so that its number is not given to another meanwhile.
    self._seen[id(x)] = x, {'array': name, **stored.words}
    return stored.words if name == natural else {'array': name, **stored.words}


class _Reader:
  """Makes a tree of words, and believes none of them."""

  def __init__(self, leaves, stored):
    self._leaves, self._stored = leaves, stored
    self.named: set[str] = set()

  def node(self, said: Any, keys: tuple) -> Any:
    if said is None or type(said) in _SCALARS:
      return said
    if _is_array(said):
      return self._ref(said, _path(keys))
    if 'leaf' in said:
      return self._leaf(said, _path(keys))
    [(kind, inside)] = said.items()
    if kind == 'float':
      return _not_finite(inside)
    if kind in ('list', 'tuple'):
      made = [self.node(x, (*keys, i)) for i, x in enumerate(inside)]
      return tuple(made) if kind == 'tuple' else made
    if kind not in ('dict', 'items'):
      raise ValueError(f'{kind!r} is no kind of node')
    items = inside.items() if kind == 'dict' else inside
    made = {key: self.node(x, (*keys, key)) for key, x in items}
    if len(made) < len(items):
      raise ValueError(f'two entries of {_path(keys)!r} have one key')
    return made

  def _leaf(self, said, path):
    index, shape = said['leaf'], said['shape']
    if type(index) is not int or index < 0:
      raise ValueError(
        f'{path} is the leaf {index!r}, which is no number of one'
      )
    leaf = _record(self._leaves[index], None, f'{path}.', self._ref)
    leaf.check_dtypes()
    if list(leaf.shape) != shape or not all(type(n) is int for n in shape):
      raise ValueError(
        f'{path} stands for {shape}, and its arrays for {list(leaf.shape)}'
      )
    return leaf

  def _ref(self, said, natural):
    name = said.get('array', natural)
    if name not in self._stored:
      raise ValueError(f'the array {name!r} is not there')
    self.named.add(name)
    return numbers.ref(name, self._stored[name], said)


def _record(said, hint, prefix, array_at):
  """A leaf, or a dataclass in one; `hint` is its type where it does not say it."""
  cls = _type(said['leaf']) if 'leaf' in said else _dataclass_of(hint)
  hints = typing.get_type_hints(cls)
  fields = {}
  for key, x in said['fields'].items():
    fields[key] = _field(x, hints.get(key), prefix + key, array_at)
    if not _fits(fields[key], hints.get(key)):
      raise ValueError(
        f'{prefix}{key} is {fields[key]!r:.80}, not {hints[key]}'
      )
  return cls(**fields)


def _fits(x, hint) -> bool:
  """Whether a field is what its class says, where that is of arrays and words."""
  origin, kinds = typing.get_origin(hint), typing.get_args(hint)
  if origin in (types.UnionType, typing.Union):
    return any(_fits(x, kind) for kind in kinds)
  if origin is tuple:
    each = kinds[:1] * len(x) if ... in kinds and type(x) is tuple else kinds
    whole = type(x) is tuple and len(x) == len(each)
    return whole and all(map(_fits, x, each))
  if hint is float:
    return type(x) in (int, float)
  if hint in (type(None), bool, int, str):
    return type(x) is hint
  # A leaf without its arrays has None for each.
  words = (*_SCALARS, tuple, dict, np.dtype)
  return hint is not jax.Array or not isinstance(x, words)


def _field(said, hint, name, array_at):
  if isinstance(said, list):
    return tuple(
      _field(x, None, f'{name}.{i}', array_at) for i, x in enumerate(said)
    )
  if not isinstance(said, dict):
    return said
  if _is_array(said):
    return array_at(said, name)
  if 'type' in said:
    return numbers.dtype(said['type'])
  if 'float' in said:
    return _not_finite(said['float'])
  if 'dict' in said:
    inside = said['dict'].items()
    return {k: _field(x, None, f'{name}.{k}', array_at) for k, x in inside}
  return _record(said, hint, f'{name}.', array_at)


def _type(name):
  # Leaf types are final, so each derives from the base directly.
  known = array.CompressedArray.__subclasses__()
  found = [cls for cls in known if cls.__name__ == name]
  if len(found) != 1:
    raise ValueError(
      f'There are {len(found)} leaf types {name!r} here, and one is expected, of'
      f' {sorted({cls.__name__ for cls in known})}. Import what defines it.'
    )
  return found[0]


def _dataclass_of(hint):
  """The dataclass of `Spec` or `Spec | None`."""
  for cls in typing.get_args(hint) or (hint,):
    if dataclasses.is_dataclass(cls):
      return cls
  raise ValueError(f'there is a record where {hint} is expected')


def _scalar(x, name):
  if type(x) in _SCALARS or x is None:
    finite = type(x) is not float or math.isfinite(x)
    return x if finite else {'float': repr(x)}
  raise ValueError(
    f'{name} is {x!r:.80}, of type {type(x).__name__}, which no file says: arrays,'
    ' Python numbers and strings can be saved. Of a leaf with a function, save the'
    ' arrays, jc.materialize(params), and compress what is loaded.'
  )


def _children(x) -> list[tuple[Any, Any]] | None:
  """[(key of JAX, child), ...] of a node, one level down; None of a leaf."""
  if type(x) is dict and len({type(k) is str for k in x}) > 1:
    raise ValueError(
      f'A dict has the keys {list(x)[:8]}, and JAX sorts keys of one kind only. Make'
      ' all of them strings.'
    )
  flat, _ = jax.tree_util.tree_flatten_with_path(
    x, is_leaf=lambda y: y is not x
  )
  if len(flat) == 1 and not flat[0][0]:
    return None
  return [(keys[0], child) for keys, child in flat]


def _plain(children):
  """(what a key of JAX names, child): of a dict, a sequence or an attribute."""
  for key, child in children:
    names = (getattr(key, n) for n in ('key', 'idx', 'name') if hasattr(key, n))
    yield next(names, str(key)), child


def _is_variable(children) -> bool:
  [key, child], *others = children or [(None, None)]
  attribute = isinstance(key, jax.tree_util.GetAttrKey) and key.name == 'value'
  leaf = array.is_compressed(child) or _children(child) is None
  return attribute and not others and leaf


def _path(keys) -> str:
  return '/'.join(map(str, keys))


def _is_array(said) -> bool:
  return set(said) <= {'array', 'dtype', 'shape', 'key'}


def _not_finite(word) -> float:
  if word not in _NOT_FINITE:
    raise ValueError(f'{word!r} is none of {_NOT_FINITE}')
  return float(word)


def _json(said) -> str:
  return json.dumps(said, separators=(',', ':'), allow_nan=False)
