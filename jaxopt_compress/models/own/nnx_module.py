"""A Flax NNX module of any call as a pure function.

`train()` and `eval()` of the module set the modes of its layers; what the call is told
by arguments comes before that. Keys that layers keep (`nnx.Dropout(rate, rngs=rngs)`)
are drawn anew in each step from that of the step, so that they are no state.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from jaxopt_compress.models import states
from jaxopt_compress.models.own import signature


def parts(where: str, build: Callable[..., Any], x: Any) -> tuple[Any, Any]:
  """(init, apply) of an NNX module; see `own.Own`."""
  del x
  like = nnx.eval_shape(lambda: build(jax.random.key(0)))
  told = signature.modes(where, like.__call__)
  graphs = {}
  for train, set_mode in ((True, like.train), (False, like.eval)):
    set_mode()
    graphs[train], params_like, keys_like, variables_like = _split(like)

  def init(key):
    _, params, _, variables = _split(build(key))
    return states.plain(params), states.plain(variables)

  def apply(params, variables, x, *, train=False, rngs=None):
    module = nnx.merge(
      graphs[train],
      states.fill(params_like, params, 'params'),
      _drawn(keys_like, rngs),
      states.fill(variables_like, variables, 'variables'),
    )
    y, out = signature.answered(where, module(x, **told(train, rngs)))
    return y, out, states.read(variables_like, nnx.state(module))

  return init, apply


def _split(module):
  return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _drawn(like, key):
  """The random state with keys from this one, and counts of 0."""
  key = jax.random.key(0) if key is None else key
  flat = []
  for i, (path, variable) in enumerate(nnx.to_flat_state(like)):
    value = variable.get_value()
    new = jnp.zeros(value.shape, value.dtype)
    if isinstance(variable, nnx.RngKey):
      # A vmapped layer keeps an array of keys.
      new = jax.random.split(jax.random.fold_in(key, i), value.shape)
    flat.append((path, variable.replace(new)))
  return nnx.from_flat_state(flat)
