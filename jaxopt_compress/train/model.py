"""A model of a config as functions, and what its weights are used for."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import models
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.train import evaluate


@dataclasses.dataclass(frozen=True)
class Model:
  """A network as functions of its parameters.

  Attributes:
    name: in the config.
    keywords: of `models.build`, all of them.
    apply: `(params, variables, x, *, train, rngs) -> (y, out, variables)`.
    init: `seed -> (params, variables)`, jitted.
    forward: `(params, variables, x) -> y`, jitted; leaves may be compressed.
    params, variables: abstract.
    inputs: abstract, that it was built for.
    answers: abstract, to these.
    uses: what `jc.uses` says of the parameters.
  """

  name: str
  keywords: dict[str, Any]
  apply: Callable[..., tuple[Any, Any, Any]]
  init: Callable[[jax.Array], tuple[Any, Any]]
  forward: Callable[..., jax.Array]
  params: Any
  variables: Any
  inputs: jax.ShapeDtypeStruct
  answers: jax.ShapeDtypeStruct
  uses: dict[str, Any]


def build(name: str, kwargs: dict[str, Any], x: Any) -> Model:
  """The model that a config describes, taken apart.

  Args:
    name: in the config.
    kwargs: of `models.build`: `name` is the module, the rest are its keywords.
    x: an abstract batch of inputs.

  Raises:
    ValueError: the keywords make no model, or one that does not take these inputs.
  """
  try:
    return _built(name, x, **{'name': name} | kwargs)
  except Exception as e:  # Whatever a model raises comes from what it was told.
    kind = '' if isinstance(e, ValueError) else f'{type(e).__name__}: '
    shape = f'{x.dtype}{list(x.shape)}'
    raise ValueError(
      f'config.models.{name} builds no model for inputs {shape}. {kind}{e}'
    ) from e


def _built(called, x, *, name, **kwargs):
  # The seed is the stage's own: said twice, it is refused.
  abstract = models.abstract(name, seed=0, **kwargs)

  # Compiled as one program: an eager init compiles one for each shape.
  @jax.jit
  def init(seed):
    made = models.functional(
      models.build(name, seed=jax.random.key(seed), **kwargs)
    )
    return made.params, made.variables

  return Model(
    name=called,
    keywords=models.defaults(name) | {'name': name} | kwargs,
    apply=abstract.apply,
    init=init,
    forward=evaluate.forward(abstract.apply),
    inputs=x,
    **_known(abstract.apply, abstract.params, abstract.variables, x),
  )


def with_shapes(model: Model, params: Any, variables: Any) -> Model:
  """The same model where some channels have gone, or come.

  Args:
    model: a model that takes its sizes from its parameters, as those of `models` do.
    params, variables: abstract.
  """
  known = _known(model.apply, params, variables, model.inputs)
  return dataclasses.replace(model, **known)


def _known(apply, params, variables, x):
  def output(params, x):
    # Uses do not depend on what batch statistics are.
    return apply(params, _zeros(variables), x)[0]

  return dict(
    params=params,
    variables=variables,
    answers=jax.eval_shape(output, params, x),
    uses=uses_lib.uses(output)(params, x),
  )


def _zeros(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
