"""The verb: any leaf of any argument of a lifted function may be compressed.

    lift(f)(p, x) == f(materialize(p), x)

`lift` traces `f` to a jaxpr on the shapes that the leaves stand for and evaluates
it equation by equation (`core/interpret.py`). A leaf type says what it does better
than the dense array by registering rules:

    @lift.rule(lax.dot_general_p, QArray)
    def dot_of_codes(lhs, rhs, *, dimension_numbers, **params):
      ...   # an array, a compressed leaf, or Dense('why not')

A missing rule is slow, never wrong.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import claims as claims_lib
from jaxopt_compress.core import context as context_lib
from jaxopt_compress.core import interpret
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.core import structural

Claim = claims_lib.Claim
Dense = context_lib.Dense

_RULES: dict[tuple[str, type], Callable] = {}
_FINDERS: list[tuple[Callable, frozenset[type]]] = []


def rule(
  primitive: Any, *leaf_types: type, together: bool = False
) -> Callable[[Callable], Callable]:
  """Registers what leaves of a type do under a first-order primitive.

  The rule is called as the primitive is bound: `rule(*operands, **params)`. The
  operand of the leaf's type is the leaf, the others are dense. It returns what
  the primitive returns, of the same shape and dtype, where each result may be a
  compressed leaf again, or `Dense(reason)` to decline. A primitive that JAX does
  not export is given by its name. With `together`, all operands of the leaf's type
  are leaves: what is written to a cache, and the cache.
  """

  def register(f):
    f.together = together
    for leaf_type in leaf_types:
      _RULES[_name(primitive), leaf_type] = f
    return f

  return register


def claims(*leaf_types: type) -> Callable[[Callable], Callable]:
  """Registers what finds equations that one rule computes together.

  `find(jaxpr, leaves)` returns a list of `Claim`s. It is asked about each body that
  begins with a leaf of one of these types; `leaves` are its variables that are
  leaves, with their values. Finders are asked in the order in which they are
  registered: a claim that overlaps an earlier one is dropped.
  """

  def register(find):
    _FINDERS.append((find, frozenset(leaf_types)))
    return find

  return register


def _finders(kinds):
  return [find for find, types in _FINDERS if not types.isdisjoint(kinds)]


def rule_for(primitive, leaf_type):
  return _RULES.get((_name(primitive), leaf_type))


def _name(primitive) -> str:
  return primitive if isinstance(primitive, str) else primitive.name


def context(
  rule_for: Callable | None = rule_for, **options
) -> context_lib.Context:
  """What an evaluation needs to know, with the rules that are registered here.

  Args:
    rule_for: (primitive, leaf type) -> rule or None, in place of the registered
      ones.
    **options: other fields of a `Context`.
  """
  known = dict(finders=_finders, opens=structural.plain_body)
  return context_lib.Context(rule_for, structural.RULES, **known | options)


def lift(fun: Callable, *, strict=False, keep=False) -> Callable:
  """Lets any array argument of `fun` be a compressed leaf.

  Without compressed leaves among the arguments, `fun` is called as it is. With
  them it is traced, so Python control flow on array values needs what it needs
  under `jax.jit`; each call traces anew, so wrap the result in `jax.jit`.

  Args:
    fun: a function of pytrees of arrays.
    strict: refuse to materialise a leaf: raise instead.
    keep: return results that are still compressed as they are: a cache that a
      decoding step appends to, a transposed weight.

  Returns:
    A function with the same arguments; its result is dense, unless `keep`.

  Raises:
    ValueError: with `strict`, where an operation has no rule for a leaf; names
      the leaf, the primitive, why, and the line of the model. Where `fun` changes
      in place what its arguments hold: outside of `jax.jit`, NNX modules may.

  >>> import jax.numpy as jnp
  >>> lift(lambda w, x: x @ w)(jnp.eye(2), jnp.ones((1, 2)))
  Array([[1., 1.]], dtype=float32)
  """

  @functools.wraps(fun)
  def lifted(*args, **kwargs):
    leaves = jax.tree.leaves((args, kwargs), is_leaf=array.is_compressed)
    # Plain arrays get `fun` itself: it costs what it costs without us.
    if not any(map(array.is_compressed, leaves)):
      return fun(*args, **kwargs)
    ctx = context(record=_refuse if strict else None, inline=strict)
    out = run(ctx, fun, args, kwargs)
    return out if keep else array.materialize(out)

  return lifted


def _refuse(met: context_lib.Met):
  # What no leaf takes part in, as attention, makes none dense.
  if not met.native and met.path:
    raise ValueError(
      f'{met.path} would become dense: {met.primitive} at {met.source}'
      f' ({met.reason}). Leave this leaf dense, use a format that has a rule'
      ' for it, or lift without strict=True.'
    )


def run(ctx: context_lib.Context, fun: Callable, args, kwargs) -> Any:
  """Evaluates `fun` over arguments with leaves; its results may be leaves."""
  tree = args, kwargs
  values, refill = array.arrays_apart(tree, _is_array, array.is_compressed)
  # Both walk the tree in its order, so names and values go together.
  named = rules_lib.named_leaves(tree)
  names = [_within_argument(path) for path, x in named if _is_array(x)]
  values = array.map_leaves(_codes, values)
  closed, out_tree = trace(fun, refill, *map(_stands_for, values))
  outs = interpret.evaluate(ctx, closed, values, names)
  return jax.tree.unflatten(out_tree, outs)[1]


def materialize(tree: Any) -> Any:
  """`tree` with every leaf replaced by its array; float8 codes have no gradient."""
  return array.materialize(array.map_leaves(_codes, tree))


def _codes(leaf):
  """A leaf whose float8 codes have no derivative; scales, which are fewer, have."""

  def part(x):
    floats = jnp.issubdtype(x.dtype, jnp.floating) and x.size == leaf.size
    return _constant(x) if floats and x.dtype.itemsize == 1 else x

  return jax.tree.map(part, leaf)


_constant = jax.custom_jvp(jnp.asarray)


@_constant.defjvp
def has_no_gradient(primals, tangents):
  raise ValueError(
    f'Codes ({primals[0].dtype}) have no gradient. Train floats: jc.fake_quantize'
    ' of the weights, or jc.adapters.add_lora beside the codes.'
  )


def trace(fun: Callable, refill: Callable, *values) -> tuple[Any, Any]:
  """Jaxpr and structure of (pairs, `fun(*refill(values))`); changes are refused."""
  changed = {}

  def of_arrays(*values):
    args, kwargs = tree = refill(values)
    before = _leaves(tree)
    # What is popped from a dict is not lost to the caller; an object stays whole.
    objects = _leaves(tree, lambda x: not isinstance(x, (dict, list, tuple)))
    structures = [jax.tree.structure(x) for x in objects.values()]
    out = fun(*args, **kwargs)
    for keys, x in _leaves(tree).items():
      pair = before.get(keys), x
      if x is not pair[0]:
        arrays = all(isinstance(a, jax.Array) for a in pair)
        changed[keys] = pair if arrays else (0, 1)
    for (keys, x), old in zip(objects.items(), structures, strict=True):
      if jax.tree.structure(x) != old:
        changed.setdefault(keys, (0, 1))
    return list(changed.values()), out

  with jax.disable_jit(False):  # else loops come unrolled
    closed, out = jax.make_jaxpr(of_arrays, return_shape=True)(*values)
  outs = closed.jaxpr.outvars
  for keys, old, new in zip(changed, outs[::2], outs[1::2], strict=False):
    # A jit also gives back what it did not change.
    if jaxprs.origin(closed.jaxpr, new) is not old:
      name = jax.tree_util.keystr(keys, simple=True, separator='/')
      raise ValueError(
        f'{_within_argument(name)} is changed in place, in a copy of an argument:'
        ' the change would be lost. Return what changes: make the model inside of'
        ' the function, nnx.merge(graphdef, state, copy=True), and return its'
        ' nnx.state. Or nnx.jit a model, or model.eval(), if that leaves state alone.'
      )
  return closed, jax.tree.structure(out)


def _leaves(tree, is_leaf=None) -> dict[Any, Any]:
  return dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf))


def _is_array(x) -> bool:
  # Python scalars stay what they are, so that flags keep working.
  return array.is_compressed(x) or isinstance(x, (jax.Array, np.ndarray))


def _stands_for(x):
  if not array.is_compressed(x):
    return x
  # In a shard_map the type of an array also says where it differs.
  if any(jaxprs.varying(jax.typeof(c)) for c in jax.tree.leaves(x)):
    return jax.eval_shape(x.materialize)
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _within_argument(path: str) -> str:
  """Drops the leading `0/<argument number>` of a path in (args, kwargs)."""
  parts = path.split('/')
  return '/'.join(parts[2:]) or '/'.join(parts[1:])
