"""Calls of functions that change NNX modules in place, where leaves are compressed.

    y = call(f, (qmodel, x), {})        y = f(qmodel, x), and the state of qmodel

`lift` evaluates a program, in which nothing changes in place. So a module goes in as
its state, is built again inside, and what has become of it comes back as results:
what `nnx.jit` does, by the same functions of Flax. Objects that several arguments
share stay shared, and modules may get and lose attributes.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax

from jaxopt_compress.analysis import walk
from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift

_TAG = 'jaxopt_compress.lift'


def can_be(arguments: Any) -> bool:
  """Whether there are modules with leaves whose owner will see them change.

  Under `jax.jit` a function gets copies of its arguments, which nobody reads later.
  """
  nodes = [x for x in _leaves(arguments) if is_node(x)]
  if not nodes or not has_leaves(arguments):
    return False
  traced = [isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(nodes)]
  return not any(traced) or _in_transform_of_nnx()


def _in_transform_of_nnx() -> bool:
  # It has no public name; without it, changes are refused where they could be kept.
  graph = getattr(nnx, 'graphlib', None) or getattr(nnx, 'graph', None)
  context = getattr(graph, 'GRAPH_CONTEXT', None)
  return bool(getattr(context, 'update_context_stacks', None))


def has_leaves(tree: Any) -> bool:
  """Whether there are compressed leaves in a tree of arrays and modules."""
  leaves = jax.tree.leaves(tree, is_leaf=array.is_compressed)
  return any(map(array.is_compressed, leaves))


def is_node(x: Any) -> bool:
  """Whether `x` is an object of NNX: a module, `nnx.Rngs`, a list of modules."""
  return isinstance(x, nnx.Pytree)


def _leaves(tree) -> list[Any]:
  return jax.tree.leaves(tree, is_leaf=_is_whole)


def _is_whole(x) -> bool:
  return is_node(x) or array.is_compressed(x)


def call(
  fun: Callable,
  args: tuple,
  kwargs: dict,
  *,
  strict: bool = False,
  keep: bool = False,
) -> Any:
  """`fun(*args, **kwargs)` through `lift`, and its modules are what it leaves.

  Args:
    fun: a function of modules and other pytrees.
    args, kwargs: its arguments.
    strict, keep: as of `lift`.

  Raises:
    ValueError: `fun` writes other values into a compressed weight.
  """
  with nnx.update_context(_TAG):
    program = _Program(fun, args, kwargs)
    lifted = lift.lift(program.changes, strict=strict, keep=True)
    try:
      values = lifted(*program.args, **program.kwargs)
    except _MaybeOverwritten:
      # A transformation inside also gives back what it did not change.
      program.find_passed_on()
      values = lifted(*program.args, **program.kwargs)
    return program.write(values, keep)


class _MaybeOverwritten(Exception):
  """A compressed weight is another object after a call than before."""


class _Program:
  """A function of the states of modules, which returns what it changes in them.

  Attributes:
    args, kwargs: the arguments, each object of NNX as its `nnx.State`.
    before: {path: value} of the objects; paths begin with the number of the object.
    passed_on: the paths of what comes back as it was; None before they are sought.
    after: definition and state of the objects, and of the result, as traced last.
    rebuilt: whether more than values is other than before.
  """

  def __init__(self, fun, args, kwargs):
    self.fun, self.passed_on = fun, None
    leaves, self.treedef = jax.tree.flatten((args, kwargs), _is_whole)
    self.places = [i for i, x in enumerate(leaves) if is_node(x)]
    with nnx.split_context(_TAG) as context:
      nodes = tuple(leaves[i] for i in self.places)
      self.definition, state = context.split(nodes)
    self.before = _flat(state)
    for n, i in enumerate(self.places):
      # What is shared with an earlier object is in the state of that one.
      leaves[i] = state.get(n, nnx.State({}))
    self.args, self.kwargs = jax.tree.unflatten(self.treedef, leaves)

  def changes(self, *args, **kwargs) -> tuple[dict, dict]:
    """{path: value} of what changes in the objects, and all of the result."""
    pairs, result = self._call(args, kwargs)
    for path in pairs:
      if array.is_compressed(self.before.get(path)):
        if self.passed_on is None:
          raise _MaybeOverwritten
        raise ValueError(
          f'{"/".join(map(str, path[1:]))} is compressed, and the module writes other'
          ' values into it. Leave this weight as it is; or, where the module computes'
          ' it from other weights, compute it once: jc.hoist.'
        )
    return {path: new for path, (_, new) in pairs.items()}, result

  def _call(self, args, kwargs):
    """{path: (old, new)} of the objects, and {path: value} of the result."""
    leaves = self.treedef.flatten_up_to((args, kwargs))
    states = {n: leaves[i] for n, i in enumerate(self.places)}
    state = nnx.State({n: state for n, state in states.items() if state})
    before = _flat(state)
    with nnx.merge_context(_TAG, inner=True) as context:
      nodes = context.merge(self.definition, state)
    definition = nnx.graphdef(nodes)
    for i, node in zip(self.places, nodes, strict=True):
      leaves[i] = node
    args, kwargs = jax.tree.unflatten(self.treedef, leaves)
    given = [x for x in _inside((args, kwargs)) if isinstance(x, nnx.Variable)]
    held = [x.get_raw_value() for x in given]
    result = self.fun(*args, **kwargs)
    for x, old in zip(given, held, strict=True):
      if x.get_raw_value() is not old:
        raise ValueError(
          f'A {type(x).__name__} that is an argument is written, and the change'
          ' would be lost. Pass the module that holds it, or leave its weights as'
          ' they are.'
        )
    refers = any(
      isinstance(x, nnx.Variable) or is_node(x) for x in _inside(result)
    )
    self.rebuilt = refers or nnx.graphdef(nodes) != definition
    with nnx.split_context(_TAG) as context:
      self.after = context.split(nodes), context.split((result,))
    pairs = {
      path: (before.get(path), new)
      for path, new in _flat(self.after[0][1]).items()
      if not _same(before.get(path), new) and path not in (self.passed_on or ())
    }
    return pairs, _flat(self.after[1][1])

  def find_passed_on(self) -> None:
    """Finds which of the values that come back are those that went in."""
    paths = []

    values, refill = array.arrays_apart(
      walk.abstract((self.args, self.kwargs)), walk.is_array
    )

    def both(*values):
      # Flags stay what they are, as `lift` has them.
      pairs, _ = self._call(*refill(values))
      single = {p: x for p, x in pairs.items() if jax.tree_util.all_leaves(x)}
      paths.extend(single)
      return list(single.values())

    program = jax.make_jaxpr(both)(*values).jaxpr
    each = zip(paths, program.outvars[::2], program.outvars[1::2], strict=True)
    self.passed_on = {
      path for path, old, new in each if jaxprs.origin(program, new) is old
    }

  def write(self, changes: tuple[dict, dict], keep: bool) -> Any:
    """Writes what changed into the objects; the result, dense unless `keep`."""
    values, made = changes
    (definition, state), (of_result, result) = self.after
    values = {path: self._as_before(path, x) for path, x in values.items()}
    made = made if keep else array.materialize(made)
    with nnx.merge_context(_TAG, inner=False) as context:
      if values or self.rebuilt:
        context.merge(definition, _filled(state, self.before | values))
      return context.merge(of_result, _filled(result, made))[0]

  def _as_before(self, path, x):
    """A leaf where there was one, else an array."""
    compressed = array.is_compressed(self.before.get(path))
    return x if compressed else array.materialize(x)


def _inside(tree):
  """The leaves of a tree, Variables and objects of NNX whole."""
  kinds = nnx.Variable, nnx.Pytree
  return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kinds))


def _flat(state) -> dict[tuple, Any]:
  return {path: _value(x) for path, x in nnx.to_flat_state(state)}


def _value(x):
  return x.get_raw_value() if isinstance(x, nnx.Variable) else x


def _filled(state, values):
  """`state` with the values at their paths."""
  return nnx.from_flat_state(
    (
      path,
      x.replace(values[path]) if isinstance(x, nnx.Variable) else values[path],
    )
    for path, x in nnx.to_flat_state(state)
  )


def _same(old, new) -> bool:
  """Whether two trees hold the same objects."""
  (a, structure), (b, other) = jax.tree.flatten(old), jax.tree.flatten(new)
  return structure == other and all(x is y for x, y in zip(a, b, strict=True))
