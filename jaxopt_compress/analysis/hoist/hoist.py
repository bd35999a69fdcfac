"""What a program computes from its parameters alone, computed once.

    apply_on_weights, weights = jc.hoist(apply)(params, x)

Weight norm, weight standardisation, masks, merged adapters, casts, `1 + scale`, kernels
that a cell concatenates: a program that makes its weights has no parameter that a
product reads. `hoist` splits it in two. What depends on parameters alone is computed
and becomes the leaves of `weights`; the rest is a function of these, a program like any
other: `jc.uses`, `jc.quantize`, `jc.lift`, `jc.pack` and JAX take it as one.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import jax

from jaxopt_compress.analysis import storage
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.hoist import known
from jaxopt_compress.analysis.hoist import leaves as leaves_lib
from jaxopt_compress.analysis.hoist import partial
from jaxopt_compress.analysis.hoist import rest as rest_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib


def hoist(fun: Callable) -> Callable[..., tuple[Callable, dict]]:
  """Computes once what a function computes from its parameters alone.

  The two parts together do what the function does, operation by operation, so that
  the result is the same to the bit where operations run one by one, as under
  `jax.disable_jit`, except for a loop over parameters, which may run compiled; where
  XLA fuses them it differs as other fusions differ. Nothing
  is taken out of random operations, of a function with a derivative of its own, or of
  a `shard_map`; their parameters are leaves as they are.

  Args:
    fun: a function of parameters and further arguments.

  Returns:
    A function of the same arguments that returns (apply_on_weights, weights):

    apply_on_weights: `fun` as a function of `weights` and the same further arguments,
      of other batches, too. Each call traces anew, so wrap it in `jax.jit`.
    weights: a nested dict of leaves. A parameter that nothing is computed from keeps
      its path and its array; another leaf has the path of the largest parameter that
      it comes from (`leaves`). They take no more bytes than `params`, or a
      sixteenth more, and parameters that the program does not read are left out.

  Raises:
    ValueError: two leaves would have one name. By `apply_on_weights`: weights that
      are not those of the program, of which arguments of other shapes may make
      another one.

  >>> import jax.numpy as jnp
  >>> def apply(p, x):  # weight norm
  ...   return x @ (p['g'] * p['v'] / jnp.linalg.norm(p['v'], axis=0, keepdims=True))
  >>> params = {'g': jnp.float32([[2., 1.]]), 'v': jnp.float32([[3., 0.], [4., 5.]])}
  >>> on_weights, weights = hoist(apply)(params, jnp.ones((1, 2)))
  >>> weights
  {'v': Array([[1.2, 0. ],
         [1.6, 1. ]], dtype=float32)}
  >>> on_weights(weights, jnp.ones((3, 2))).shape
  (3, 2)
  """

  @functools.wraps(fun)
  def hoisted(params, *args, **kwargs):
    like = walk.abstract(params)
    split = _split(fun, like, _sizes(params), args, kwargs)
    arrays = [x for _, x in rules_lib.named_leaves(params) if walk.is_array(x)]
    weights = {name: split.value(name, arrays) for name in split.leaves}
    run = _on_weights(fun, like, _sizes(params))
    return run, leaves_lib.nested(weights)

  return hoisted


class Hoisted(NamedTuple):
  """A leaf of the weights of `hoist`.

  Attributes:
    parents: paths of the parameters that it comes from.
    shape, dtype: its own; what a turn of a scan computes has the turns first.
    primitives: what computes it, none where it is the parameter itself.
  """

  parents: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: Any
  primitives: tuple[str, ...]


def hoisted(fun: Callable) -> Callable[..., dict[str, Hoisted]]:
  """What the leaves of `hoist` are made of.

  Returns:
    A function of the same arguments as `fun` that returns {name: `Hoisted`}. Nothing
    is computed: arguments may be abstract.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: x @ (p['w'] * p['mask']) + p['b']
  >>> p = {'b': jnp.ones((1, 2)), 'mask': jnp.ones((3, 2), bool), 'w': jnp.ones((3, 2))}
  >>> for name, leaf in hoisted(f)(p, jnp.ones((1, 3))).items():
  ...   print(name, leaf.parents, leaf.primitives)
  b ('b',) ()
  w ('mask', 'w') ('convert_element_type', 'mul')
  """

  def described(params, *args, **kwargs):
    like = walk.abstract(params)
    split = _split(fun, like, _sizes(params), args, kwargs)
    return {name: split.described(name) for name in split.leaves}

  return described


class _Split(NamedTuple):
  """A program in two parts.

  Attributes:
    closed: the program.
    out_tree: of its results.
    inputs: its inputs, nodes or data.
    asked: the walk.
    paths: of parameters.
    leaves: {name: node}.
  """

  closed: Any
  out_tree: Any
  inputs: list
  asked: partial.Partial
  paths: list[str]
  leaves: dict[str, known.Known]

  def value(self, name, params):
    """A leaf, from parameters that may be leaves themselves."""
    leaf = self.leaves[name]
    if isinstance(leaf, known.Given):
      (i,) = leaf.parents
      return array.on_device(params[i])
    # Other parameters are not read, and stay where they are.
    own = {i: lift.materialize(params[i]) for i in leaf.parents}
    return rest_lib.evaluate(leaf, own)

  def described(self, name):
    leaf = self.leaves[name]
    steps = known.behind([leaf], lambda x: False)
    primitives = [
      x.step.eqn.primitive.name for x in steps if isinstance(x, known.Result)
    ]
    return Hoisted(
      tuple(self.paths[i] for i in sorted(leaf.parents)),
      leaf.shape,
      leaf.aval.dtype,
      tuple(dict.fromkeys(primitives)),
    )


def _sizes(params) -> list[int]:
  return [
    storage.nbytes(x)
    for _, x in rules_lib.named_leaves(params)
    if walk.is_array(x)
  ]


def _split(fun, params, sizes, args, kwargs) -> _Split:
  """Traces a function and splits it; parameters are abstract."""
  tree = (params, *args), kwargs
  arrays, refill = array.arrays_apart(tree, walk.is_array, array.is_compressed)
  closed, out_tree = lift.trace(fun, refill, *arrays)
  named = [
    (p, x) for p, x in rules_lib.named_leaves(params) if walk.is_array(x)
  ]
  paths = [path or 'params' for path, _ in named]
  asked = partial.Partial()
  inputs = asked.run(closed, [x for _, x in named])
  chosen = leaves_lib.chosen(asked.reads, sizes)
  leaves = leaves_lib.named(chosen, paths, sizes)
  return _Split(closed, out_tree, inputs, asked, paths, leaves)


def _on_weights(fun, params, sizes) -> Callable:
  """`fun` as a function of weights; of parameters it knows types alone."""

  @functools.wraps(fun)
  def on_weights(weights, *args, **kwargs):
    split = _split(fun, params, sizes, args, kwargs)
    given = _checked(split.leaves, weights)
    arrays = array.arrays_apart((args, kwargs), walk.is_array)[0]
    rest = rest_lib.Rest(
      split.asked, {x: given[n] for n, x in split.leaves.items()}
    )
    n = len(split.inputs) - len(arrays)
    outs = rest.run(split.closed, [*split.inputs[:n], *arrays])
    return jax.tree.unflatten(split.out_tree, outs)[1]

  return on_weights


_AGAIN = (
  'What a program computes from its parameters follows their types and sizes, and may'
  ' follow the shapes of the other arguments: call jc.hoist(apply)(params, ...) with'
  ' parameters and arguments like these.'
)


def _checked(
  leaves: Mapping[str, known.Known], weights: Any
) -> dict[str, jax.Array]:
  """{name: array}, or ValueError where these are not weights of the program."""
  given = dict(rules_lib.named_leaves(weights))
  for name, x in given.items():
    if array.is_compressed(x):
      raise ValueError(
        f'{name} is {x.describe()}: call jc.lift(apply_on_weights)(weights, ...).'
      )
  missing = [name for name in leaves if name not in given]
  more = [name for name in given if name not in leaves]
  if missing or more:
    guess = choices.guess(missing[0], more) if missing and more else ''
    raise ValueError(
      f'The weights are not those of this program: it reads {missing or "no others"}'
      f' besides, and does not know {more or "any others"}.{guess} {_AGAIN}'
    )
  for name, x in leaves.items():
    want, got = (x.shape, x.aval.dtype), (given[name].shape, given[name].dtype)
    if want != got:
      raise ValueError(
        f'{name} is {got[1]}{list(got[0])}, and the program makes'
        f' {want[1]}{list(want[0])} of its parameters. {_AGAIN}'
      )
  return given
