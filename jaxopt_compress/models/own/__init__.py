"""A user's own network, taken apart as the models of this package are.

    made = own.taken_apart('config.models.net', MyNet, keywords, x)
    params, variables = made.init(key)
    y, out, variables = made.apply(params, variables, x, train=True, rngs=key)

`MyNet` is a class or a function that makes a Flax NNX module, a Flax Linen module, or a
callable tree of arrays, as Equinox has them. Each kind is a file of this room.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from flax import linen as nn
from flax import nnx
import jax

from jaxopt_compress.models.own import callable_tree
from jaxopt_compress.models.own import linen_module
from jaxopt_compress.models.own import nnx_module
from jaxopt_compress.models.own import signature


class Own(NamedTuple):
  """A network as functions.

  `init(key)` gives (params, variables), nested dicts of arrays; `apply(params,
  variables, x, *, train, rngs)` gives (y, out, variables).
  """

  init: Callable[[jax.Array], tuple[Any, Any]]
  apply: Callable[..., tuple[Any, dict[str, Any], Any]]


def taken_apart(
  where: str,
  make: Callable[..., Any],
  keywords: Mapping[str, Any],
  x: jax.ShapeDtypeStruct,
) -> Own:
  """The functions of a network.

  Args:
    where: what it is called in messages.
    make: a class or function; of its arguments, `rngs` gets `nnx.Rngs`, and `key` or
      `rng` a key.
    keywords: its other arguments.
    x: an abstract batch of inputs.

  Raises:
    ValueError: keywords that `make` does not take, or lacks; or what it makes is of
      none of the kinds.

  >>> x = jax.ShapeDtypeStruct((2, 4), 'float32')
  >>> made = taken_apart('net', nn.Dense, dict(features=3), x)
  >>> params, variables = made.init(jax.random.key(0))
  >>> made.apply(params, variables, jax.numpy.ones((2, 4)))[0].shape
  (2, 3)
  """
  if not callable(make):
    raise ValueError(
      f'{where} is of type {type(make).__name__}; a class, or a function that makes'
      ' a network, is expected.'
    )
  build = signature.bound(where, make, keywords)
  kinds = []

  def sort(key):
    kinds.append(_kind(where, build(key)))

  # Nothing is computed: what is made is looked at, and forgotten.
  jax.eval_shape(sort, jax.random.key(0))
  return Own(*kinds[0].parts(where, build, x))


def _kind(where, made):
  if isinstance(made, nnx.Module):
    return nnx_module
  if isinstance(made, nn.Module):
    return linen_module
  if callable(made) and any(map(signature.is_array, jax.tree.leaves(made))):
    return callable_tree
  raise ValueError(
    f'{where} makes a value of type {type(made).__name__}; a Flax module (NNX or'
    ' Linen), or a callable tree of arrays, is expected.'
  )
