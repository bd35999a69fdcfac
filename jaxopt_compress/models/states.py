"""States of Flax NNX modules as nested dicts of arrays with string keys, and back."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax

from jaxopt_compress.core import array
from jaxopt_compress.core import rules


def _name(path) -> str:
  return '/'.join(str(key) for key in path)


def plain(tree) -> dict[str, Any]:
  """An NNX state as nested dicts with string keys, Variables unwrapped."""
  if isinstance(tree, Mapping):
    return {str(key): plain(value) for key, value in tree.items()}
  return tree.get_value()


def abstract(state):
  """Its Variables with shapes in place of arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def fill(like, tree, what: str):
  """The state that has the Variables of `like` and the arrays of `tree`."""
  # Matched by name, since NNX paths hold ints where dict keys are strings.
  template = {_name(path): (path, v) for path, v in nnx.to_flat_state(like)}
  leaves = dict(rules.named_leaves(tree))
  _check(template, leaves, what)
  return nnx.from_flat_state(
    (path, variable.replace(leaves[name]))
    for name, (path, variable) in template.items()
  )


def _check(wanted, leaves, what: str):
  missing = [name for name in wanted if name not in leaves]
  extra = [name for name in leaves if name not in wanted]
  if missing or extra:
    raise ValueError(
      f'These {what} are not those of the model. Missing: {_listed(missing)}.'
      f' Not in the model: {_listed(extra)}. Pass the tree that'
      f' `functional(model).{what}` has.'
    )
  compressed = [p for p, x in leaves.items() if array.is_compressed(x)]
  if compressed:
    raise ValueError(
      f'Compressed leaves at {_listed(compressed)}: a model computes with'
      ' arrays. Call `jc.lift(apply)` in place of `apply`.'
    )


def _listed(names, most=6) -> str:
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return (', '.join(names[:most]) or 'none') + more


def read(like, state) -> dict[str, Any]:
  """What `state` holds now at the paths of `like`; anything sown is dropped."""
  now = dict(nnx.to_flat_state(state))
  return plain(
    nnx.from_flat_state(
      (path, now[path]) for path, _ in nnx.to_flat_state(like)
    )
  )
