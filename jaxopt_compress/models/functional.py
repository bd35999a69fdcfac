"""A Flax NNX model as a pure function of plain dicts.

    y, out, variables = apply(params, variables, x, train=True, rngs=key)

Everything else in this library takes functions of a pytree of parameters. This is the
bridge: `params` gets gradients, `variables` is everything else that a model keeps
(batch-norm statistics, caches). Both are nested dicts with string keys, so their paths
read 'blocks/0/conv1/kernel', and any checkpoint format takes them.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from flax import nnx
import jax

from jaxopt_compress.core import array
from jaxopt_compress.core import rules


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
      f' {sorted(_plain(rng_state))}. Build its Dropout layers without `rngs`'
      ' and pass `rngs` when they are called.'
    )
  # The closure keeps only shapes: no second copy of the weights and, under
  # eval_shape, no tracer that outlives its trace.
  params_like = _abstract(params)
  variables_like = _abstract(variables)

  def apply(params, variables, x, *, train=False, rngs=None):
    module = nnx.merge(
      graphdef,
      _fill(params_like, params, 'params'),
      _fill(variables_like, variables, 'variables'),
    )
    rngs = None if rngs is None else nnx.Rngs(rngs)
    y, out = module(x, train=train, rngs=rngs)
    return y, out, _read(variables_like, nnx.state(module))

  return Functional(apply, _plain(params), _plain(variables))


def _name(path) -> str:
  return '/'.join(str(key) for key in path)


def _plain(tree) -> dict[str, Any]:
  """An NNX state as nested dicts with string keys, Variables unwrapped."""
  if isinstance(tree, Mapping):
    return {str(key): _plain(value) for key, value in tree.items()}
  return tree.get_value()


def _abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def _fill(like, tree, what: str):
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


def _read(like, state) -> dict[str, Any]:
  """What `state` holds now at the paths of `like`; anything sown is dropped."""
  now = dict(nnx.to_flat_state(state))
  return _plain(
    nnx.from_flat_state(
      (path, now[path]) for path, _ in nnx.to_flat_state(like)
    )
  )
