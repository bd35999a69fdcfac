"""A callable tree of arrays, as Equinox has them, as a pure function.

Such a module is called with one example. Its floating arrays are what is trained; its
other arrays are variables, and all else of it stays as it is.
"""

from collections.abc import Callable
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis.hoist import leaves
from jaxopt_compress.core import rules
from jaxopt_compress.models.own import signature


def parts(where: str, build: Callable[..., Any], x: Any) -> tuple[Any, Any]:
  """(init, apply) of a callable tree; see `own.Own`."""
  del x
  made = []
  jax.eval_shape(lambda key: made.append(build(key)), jax.random.key(0))
  named = rules.named_leaves(made[0])
  told = signature.modes(where, made[0].__call__)
  treedef = jax.tree.structure(made[0])
  # What is traced must not outlive its trace: of arrays, only their names are kept.
  kept = {n: None if signature.is_array(v) else v for n, v in named}
  trained = {n: _is_float(v) for n, v in named if signature.is_array(v)}

  def init(key):
    found = dict(rules.named_leaves(build(key)))
    return tuple(
      leaves.nested(
        {n: found[n] for n, is_float in trained.items() if is_float is which}
      )
      for which in (True, False)
    )

  def apply(params, variables, x, *, train=False, rngs=None):
    arrays = dict(rules.named_leaves(params))
    arrays |= dict(rules.named_leaves(variables))
    model = jax.tree.unflatten(
      treedef, [arrays.get(n, v) for n, v in kept.items()]
    )
    model = _in_mode(model, train)
    if rngs is None:
      call = functools.partial(model, **told(train, None))
      result = jax.vmap(call)(x)
    else:
      keys = jax.random.split(rngs, len(x))
      result = jax.vmap(lambda x, key: model(x, **told(train, key)))(x, keys)
    y, out = signature.answered(where, result)
    return y, out, variables

  return init, apply


def _is_float(x):
  return jnp.issubdtype(x.dtype, jnp.inexact)


def _in_mode(model, train):
  """Equinox's layers keep their mode; others have none."""
  equinox = sys.modules.get('equinox')
  if equinox is None:
    return model
  return equinox.nn.inference_mode(model, value=not train)
