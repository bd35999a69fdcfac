"""A Flax Linen module as a pure function.

Its collection 'params' is what is trained; all others that `init` makes are its
variables ('batch_stats', caches), which a call may change. What is sown is dropped.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxopt_compress.models.own import signature

# Sown, or said by the user: none of them is read again.
_TOLD = ('intermediates', 'losses', 'summaries', 'perturbations')


def parts(where: str, build: Callable[..., Any], x: Any) -> tuple[Any, Any]:
  """(init, apply) of a Linen module; see `own.Own`."""
  module = build(jax.random.key(0))
  told = signature.modes(where, module.__call__, linen=True)

  def init(key):
    # Shapes do not depend on how many examples there are, and one is cheapest.
    one = jnp.zeros((1, *x.shape[1:]), x.dtype)
    made = module.init(_streams(key), one, **told(False, None))
    made = {k: v for k, v in nn.meta.unbox(made).items() if k not in _TOLD}
    return _plain(made.pop('params', {})), _plain(made)

  collections = list(jax.eval_shape(init, jax.random.key(0))[1])

  def apply(params, variables, x, *, train=False, rngs=None):
    result, changed = module.apply(
      {'params': params, **variables},
      x,
      rngs=None if rngs is None else _streams(rngs),
      mutable=collections,
      **told(train, rngs),
    )
    y, out = signature.answered(where, result)
    return y, out, {**variables, **_plain(nn.meta.unbox(changed))}

  return init, apply


def _streams(key):
  # A stream of another name is drawn from 'params'.
  return {'params': key, 'dropout': jax.random.fold_in(key, 1)}


def _plain(tree):
  if isinstance(tree, Mapping):
    return {str(key): _plain(value) for key, value in tree.items()}
  return tree
