"""A Flax NNX model as a pure function of plain dicts.

    y, out, variables = apply(params, variables, x, train=True, rngs=key)

Everything else in this library takes functions of a pytree of parameters. This is the
bridge: `params` gets gradients, `variables` is everything else that a model keeps
(batch-norm statistics, caches). Both are nested dicts with string keys, so their paths
read 'blocks/0/conv1/kernel', and any checkpoint format takes them.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from flax import nnx
import jax

from jaxopt_compress.models import states


class Functional(NamedTuple):
  """A model taken apart: `apply(params, variables, x) -> (y, out, variables)`."""

  apply: Callable[..., tuple[Any, dict[str, Any], dict[str, Any]]]
  params: dict[str, Any]
  variables: dict[str, Any]


def functional(model: nnx.Module) -> Functional:
  """Splits a model into a pure function, its parameters and its variables.

  Args:
    model: an NNX module called as `model(x, *, train, rngs) -> (y, out)`; its
      arrays may be abstract (`nnx.eval_shape`).

  Returns:
    A `Functional`. `apply(params, variables, x, *, train=False, rngs=None)`
    returns `(y, out, variables)`. With `train=True` batch norm uses the batch and
    the returned variables are updated. `rngs` is a key or None; the model sees it
    as `nnx.Rngs(key)`, so that each dropout layer draws a mask of its own.

  Raises:
    ValueError: the model keeps random state (a Dropout built with `rngs`).

  >>> from jaxopt_compress import models
  >>> from jaxopt_compress.core import rules
  >>> f = functional(models.build('mlp', in_features=4, widths=(3,), classes=2))
  >>> [path for path, _ in rules.named_leaves(f.params)]
  ['head/bias', 'head/kernel', 'layers/0/bias', 'layers/0/kernel']
  >>> y, out, _ = f.apply(f.params, f.variables, jax.numpy.ones((5, 4)))
  >>> y.shape, list(out)
  ((5, 2), ['block0', 'features'])
  """
  graphdef, params, rng_state, variables = nnx.split(
    model, nnx.Param, nnx.RngState, ...
  )
  if jax.tree.leaves(rng_state):
    raise ValueError(
      f'{type(model).__name__} keeps random state at'
      f' {sorted(states.plain(rng_state))}. Build its Dropout layers without `rngs`'
      ' and pass `rngs` when they are called.'
    )
  # The closure keeps only shapes: no second copy of the weights and, under
  # eval_shape, no tracer that outlives its trace.
  params_like = states.abstract(params)
  variables_like = states.abstract(variables)

  def apply(params, variables, x, *, train=False, rngs=None):
    module = nnx.merge(
      graphdef,
      states.fill(params_like, params, 'params'),
      states.fill(variables_like, variables, 'variables'),
    )
    rngs = None if rngs is None else nnx.Rngs(rngs)
    y, out = module(x, train=train, rngs=rngs)
    return y, out, states.read(variables_like, nnx.state(module))

  return Functional(apply, states.plain(params), states.plain(variables))
