"""Leaves where other libraries write trees down: `jax.export` and `flax.serialization`.

    jax.export.export(jax.jit(jc.lift(apply)))(qparams, x).serialize()
    flax.serialization.from_bytes(qparams, flax.serialization.to_bytes(qparams))

Both ask of every type how it is written. A leaf is its arrays, and what is static of it
as JSON.
"""

import dataclasses
import functools
import json
from typing import Any

from flax import serialization
import jax
from jax import export

from jaxopt_compress.core import array
from jaxopt_compress.disk import tensors
from jaxopt_compress.export import words

_STATIC = 'static'


@functools.cache
def register(cls: type[array.CompressedArray]) -> type[array.CompressedArray]:
  """Lets `jax.export` and `flax.serialization` write leaves of a type.

  The leaf types of this library are registered when it is imported. For one of your own
  this is a decorator, above `@jax.tree_util.register_dataclass`.

  A program of `jax.export` takes leaves as arguments where it was exported with them; to
  read it again needs this library. `flax.serialization.from_bytes(target, data)` needs a
  target of the same leaves, as it does of the same arrays.
  """
  export.register_pytree_node_serialization(
    cls,
    serialized_name=f'jaxopt_compress.{cls.__name__}',
    serialize_auxdata=lambda static: _text(cls, static).encode(),
    deserialize_auxdata=functools.partial(_static_of, cls),
  )
  serialization.register_serialization_state(cls, _to_state, _from_state)
  return cls


def _names(cls) -> tuple[list[str], list[str]]:
  """The fields that hold arrays, and those that are static."""
  fields = dataclasses.fields(cls)
  static = [f.name for f in fields if f.metadata.get('static')]
  return [f.name for f in fields if f.name not in static], static


def _text(cls, static) -> str:
  """What is static of a leaf, in the order of its fields, as JSON."""
  if cls.portable is not array.CompressedArray.portable:
    raise ValueError(
      f'A {cls.__name__} is laid out for one machine. Give jc.unpack(tree), and pack'
      ' what is read again.'
    )
  arrays, names = _names(cls)
  empty = cls(**dict.fromkeys(arrays), **dict(zip(names, static, strict=True)))
  return json.dumps(words.of_static(empty))


def _static_of(cls, content: bytes) -> tuple[Any, ...]:
  said = tensors.parsed(bytes(content), f'What is said of {cls.__name__}')
  empty = words.to_static(said, str)
  return tuple(getattr(empty, name) for name in _names(cls)[1])


def _text_of(leaf) -> str:
  return _text(type(leaf), [getattr(leaf, n) for n in _names(type(leaf))[1]])


def _to_state(leaf) -> dict[str, Any]:
  leaf.check_dtypes()
  parts = {
    name: serialization.to_state_dict(getattr(leaf, name))
    for name in _names(type(leaf))[0]
  }
  return {_STATIC: _text_of(leaf), **parts}


def _from_state(target, state):
  names = _names(type(target))[0]
  if not isinstance(state, dict) or set(state) != {_STATIC, *names}:
    found = sorted(state) if isinstance(state, dict) else type(state).__name__
    raise ValueError(
      f'{serialization.current_path()} is {target!r} in the target, and what was'
      f' written there is {found}. Give a target of the same leaves.'
    )
  if json.loads(state[_STATIC]) != json.loads(_text_of(target)):
    raise ValueError(
      f'{serialization.current_path()} is {target!r} in the target, and what was'
      f' written there is another: {state[_STATIC]}. Give a target of the same leaves.'
    )
  parts = {
    name: serialization.from_state_dict(
      getattr(target, name), state[name], name
    )
    for name in names
  }
  leaf = array.on_device(dataclasses.replace(target, **parts))
  leaf.check_dtypes()
  want, got = (
    [x.shape for x in jax.tree.leaves(tree)] for tree in (target, leaf)
  )
  if got != want:
    raise ValueError(
      f'{serialization.current_path()} has arrays of shapes {want} in the target, and'
      f' {got} were written.'
    )
  return leaf
