"""Compressed leaves in words, and made again of these and of their arrays.

    QArray(qvalue=..., scale=..., format='int4', packed=-2)
    <->  {'leaf': 'QArray', 'fields': {'qvalue': {'array': 'qvalue'}, 'format': 'int4', ...}}

The words are JSON, and what they may name is a leaf type that is defined, nothing else:
reading them runs no code of a file. Arrays have the names of `weights.flatten`.
"""

from collections.abc import Callable
import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array


def words(leaf: array.CompressedArray) -> dict[str, Any]:
  """What a leaf is, as JSON, but for the numbers in its arrays.

  Raises:
    ValueError: a field that no words say, such as a function.
  """
  return _said(leaf, '')


def leaf(said: dict[str, Any], arrays: Callable[[str], Any]) -> Any:
  """The leaf of which `words` said this.

  Args:
    said: what `words` returned.
    arrays: name of an array within the leaf, as 'stored.bits' -> the array.

  Raises:
    ValueError: no leaf type, or several, of this name.

  >>> from jaxopt_compress.pruning import masked_array
  >>> x = {'value': np.ones(2), 'mask': np.array([True, False])}
  >>> said = words(masked_array.Masked(**x))
  >>> leaf(said, x.__getitem__).materialize().tolist()
  [1.0, 0.0]
  """
  found = _read(said, None, arrays)
  found.check_dtypes()
  return found


def _said(x, name):
  if array.is_compressed(x) or dataclasses.is_dataclass(x):
    ahead = f'{name}.' if name else ''
    kind = {'leaf': type(x).__name__} if array.is_compressed(x) else {}
    fields = [field.name for field in dataclasses.fields(x)]
    said = {key: _said(getattr(x, key), ahead + key) for key in fields}
    return kind | {'fields': said}
  if isinstance(x, (jax.Array, np.ndarray, np.generic)):
    return {'array': name}
  if isinstance(x, (np.dtype, type)):
    return {'dtype': str(jnp.dtype(x))}
  if type(x) is dict:
    return {'dict': {key: _said(v, f'{name}.{key}') for key, v in x.items()}}
  if type(x) in (tuple, list):
    return [_said(v, f'{name}.{i}') for i, v in enumerate(x)]
  if x is None or type(x) in (bool, int, float, str):
    return x
  raise ValueError(
    f'{name} is a {type(x).__name__}, which no words say: save the arrays,'
    ' jc.materialize(params), and compress what is rebuilt.'
  )


def _read(said, hint, arrays):
  """The value; `hint` is the type of the field, which says what a record is."""
  if isinstance(said, list):
    return tuple(_read(x, None, arrays) for x in said)
  if not isinstance(said, dict):
    return said
  if 'array' in said:
    return arrays(said['array'])
  if 'dtype' in said:
    return jnp.dtype(said['dtype'])
  if 'dict' in said:
    return {k: _read(v, None, arrays) for k, v in said['dict'].items()}
  cls = _type(said['leaf']) if 'leaf' in said else _record(hint)
  hints, fields = typing.get_type_hints(cls), said['fields']
  return cls(**{k: _read(v, hints.get(k), arrays) for k, v in fields.items()})


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


def _record(hint):
  """The dataclass of `Spec` or `Spec | None`."""
  kinds = typing.get_args(hint) or (hint,)
  return next(cls for cls in kinds if dataclasses.is_dataclass(cls))
