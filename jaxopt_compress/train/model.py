"""A model of a config as functions, and what its weights are used for."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import models
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.analysis.plan import config_delta
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.models import own
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import metrics
from jaxopt_compress.train import named
from jaxopt_compress.train.tasks import classification
from jaxopt_compress.train.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class Model:
  """A network as functions of its parameters.

  Attributes:
    name: in the config.
    keywords: of `models.build`, all of them; of a network of the user's, its name and
      those that are numbers, texts and tuples.
    apply: `(params, variables, x, *, train, rngs) -> (y, out, variables)`.
    init: `seed -> (params, variables)`, jitted.
    forward: `(params, variables, x) -> y`, jitted; leaves may be compressed.
    params, variables: abstract.
    inputs: abstract, that it was built for.
    answers: abstract, to these.
    uses: what `jc.uses` says of the parameters.
    task: what it is asked for.
    shapes: `keywords -> (params, variables)`, abstract, of a model with these.
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
  task: task_lib.Task
  shapes: Callable[[dict[str, Any]], tuple[Any, Any]]


def build(
  name: str,
  kwargs: dict[str, Any],
  x: Any,
  task: task_lib.Task = classification.classification,
  classes: int | None = None,
) -> Model:
  """The model that a config describes, taken apart.

  Args:
    name: in the config.
    kwargs: `name` is a module of `models`, and the rest are keywords of
      `models.build`; or it is the user's own, 'my_pkg.nets:MyNet', see `models.own`.
    x: an abstract batch of inputs.
    task: what it is asked for.
    classes: how many there are, for a network of the user's that has to be told.

  Raises:
    ValueError: the keywords make no model, or one that does not take these inputs.
  """
  said, where = {'name': name} | kwargs, f'config.models.{name}'
  make = None
  if named.is_own(said['name']):
    make = named.find(f'{where}.name', said['name'])
    if more := own.signature.sized(make, said, classes):
      metrics.log(f'{where}: {_listed(more)}, as the data has.')
    said |= more
  try:
    return _built(name, x, make, task, **said)
  except Exception as e:  # Whatever a model raises comes from what it was told.
    kind = '' if isinstance(e, ValueError) else f'{type(e).__name__}: '
    shape = f'{x.dtype}{list(x.shape)}'
    raise ValueError(
      f'{where} builds no model for inputs {shape}. {kind}{e}'
    ) from e


def _listed(keywords):
  return ', '.join(f'{key}={value!r}' for key, value in keywords.items())


def _built(called, x, make, task, *, name, **kwargs):
  known = own.signature.defaults(make) if make else models.defaults(name)
  init, apply = _parts(x, make, name=name, **kwargs)
  apply = task.wrap(apply) if task.wrap else apply

  def shapes(keywords):
    init, _ = _parts(x, make, **keywords)
    return jax.eval_shape(init, jax.random.key(0))

  # Compiled as one program: an eager init compiles one for each shape.
  jitted = jax.jit(lambda seed: init(jax.random.key(seed)))
  params, variables = jax.eval_shape(init, jax.random.key(0))
  return Model(
    name=called,
    keywords=known | {'name': name} | kwargs,
    apply=apply,
    init=jitted,
    forward=evaluate.forward(apply),
    inputs=x,
    task=task,
    shapes=shapes,
    **_known(apply, params, variables, x),
  )


def _parts(x, make, *, name, **kwargs):
  """(init, apply) of a model of this library, or of what the user's `make` makes."""
  if make is not None:
    return own.taken_apart(name, make, kwargs, x)
  # The seed is the stage's own: said twice, it is refused.
  apply = models.abstract(name, seed=0, **kwargs).apply

  def init(key):
    made = models.functional(models.build(name, seed=key, **kwargs))
    return made.params, made.variables

  return init, apply


def with_shapes(model: Model, params: Any, variables: Any) -> Model:
  """The same model where some channels have gone, or come.

  Args:
    model: a model that takes its sizes from its parameters, as those of `models` do.
    params, variables: abstract.
  """
  known = _known(model.apply, params, variables, model.inputs)
  return dataclasses.replace(model, **known)


def tree_of(params: Any, variables: Any) -> dict[str, Any]:
  """All that has sizes: statistics of norms belong to the channels of weights."""
  return {'params': params, 'variables': variables}


def of_config(model: Model, plan: plan_lib.Plan) -> Model:
  """The model of other sizes, built again of the numbers of its config that give them.

  Raises:
    ValueError: no numbers give them.
  """
  keywords = dict(model.keywords)
  own_name = named.is_own(keywords['name'])
  if isinstance(keywords.get('depths'), int) and not own_name:
    # One number for all stages of a model says nothing of one of them.
    keywords['depths'] = (keywords['depths'],) * len(keywords['widths'])

  def shapes(keywords):
    return tree_of(*model.shapes(keywords))

  _, found = config_delta.config_delta(shapes, keywords, plan)
  return build(model.name, found, model.inputs, model.task)


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
