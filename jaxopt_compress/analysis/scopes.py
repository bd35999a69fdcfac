"""Where, for operations that no compressed leaf takes part in.

    scores = r'.*/attn/\\.\\.\\.qhd,\\.\\.\\.khd->\\.\\.\\.hqk/dot_general'
    y = at_scopes(apply, [(scores, int8_product)])(params, x)

An operation is named by the scopes around it and its primitive, joined by '/':
'blocks/attn/dot_general'. Scopes are those of `jax.named_scope`, as profiles show
them. Flax Linen opens one for each module, by its name; Flax NNX opens none, so a
model names its places itself, as those in `models` do; `jnp.einsum` opens one
with its equation. Names in the body of a jit, scan, remat, cond or shard_map follow
those around it, and what transforms add, such as 'jvp(', is left out: operations
of a backward pass have the name of those they come from.
"""

from collections.abc import Callable
import functools
import re
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import walk
from jaxopt_compress.core import array
from jaxopt_compress.core import interpret
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib

PRODUCTS = ('dot_general', 'conv_general_dilated', 'ragged_dot_general')


def at_scopes(fun: Callable, rules: Any) -> Callable:
  """Replaces operations of `fun` by where they are.

  Apply it to the function that is differentiated, not to its gradient. Where
  `fun` has derivatives of its own around an operation that is replaced, they
  stay: its `custom_vjp` says how the operation is differentiated.

  Args:
    fun: a function of pytrees of arrays.
    rules: ordered `(regex, handler)` over whole paths 'scope/.../primitive'; the
      first that matches takes the operation, None leaves it as it is, and so does
      no match. `handler(primitive, operands, params)` returns what
      `primitive.bind(*operands, **params)` would, of the same shape and dtype, or
      `Dense(reason)` to leave it. Primitives with bodies, such as scan and jit,
      are entered, never replaced.

  Returns:
    A function with the same arguments.

  Raises:
    ValueError: a rule that takes no operation, or one that a kernel computes.

  >>> import jax.numpy as jnp
  >>> def f(q, k):
  ...   with jax.named_scope('attention'):
  ...     return q @ k.T
  >>> double = lambda p, operands, params: 2 * p.bind(*operands, **params)
  >>> q = jnp.ones((1, 2))
  >>> at_scopes(f, [('attention/dot_general', double)])(q, q)
  Array([[4.]], dtype=float32)
  """
  compiled = rules_lib.compiled_rules(rules)

  @functools.cache
  def rule_at(path):
    return next((r for r in compiled if r[0].fullmatch(path)), None)

  def handler_at(path):
    found = rule_at(path)
    return found and found[1]

  @functools.wraps(fun)
  def replaced(*args, **kwargs):
    values, refill = array.arrays_apart((args, kwargs), _is_array)
    closed, out_tree = lift.trace(fun, refill, *values)
    ctx = lift.context(handler_at=handler_at)
    _check_used(compiled, rule_at, _paths(closed))
    _check_reached(closed, handler_at)
    outs = interpret.evaluate(ctx, closed, values, [None] * len(values))
    return jax.tree.unflatten(out_tree, array.materialize(outs))[1]

  return replaced


def _is_array(x) -> bool:
  return isinstance(x, (jax.Array, np.ndarray))


def paths(fun: Callable) -> Callable[..., list[str]]:
  """What rules of `at_scopes` match: the paths of operations, each once.

  `paths(fun)(*args)` is in program order and computes nothing; arguments may be
  abstract.
  """

  def listed(*args, **kwargs):
    return _paths(jax.make_jaxpr(fun)(*args, **kwargs))

  return listed


def _paths(jaxpr) -> list[str]:
  """The paths of all first-order equations, each once, in program order."""
  return list(dict.fromkeys(at.path for at in walk.places(jaxpr)))


def _check_reached(closed, handler_at):
  """Raises ValueError where a rule would take an operation on other platforms only."""
  for at in walk.places(closed):
    if handler_at(at.path) is None:
      continue
    for outer, _ in at.around:
      if _by_kernel(outer.eqn):
        raise ValueError(
          f'{at.path}, at {at.source}, is computed by a kernel on some platform, and a'
          ' rule reaches only what the others run. Put rules inside of lift,'
          ' jc.lift(quantize_activations(apply, rules)), or leave it to the kernel:'
          f' a rule (r"{re.escape(at.path)}", None) before the others.'
        )


def _by_kernel(eqn) -> bool:
  """Whether an equation chooses by platform, and a kernel is one of the choices."""
  if eqn.params.get('branches_platforms') is None:
    return False
  inside = [at for body in jaxprs.inside(eqn) for at in walk.places(body)]
  return any(at.eqn.primitive.name == 'ffi_call' for at in inside)


def _check_used(compiled, rule_at, paths):
  used = [rule_at(path) for path in paths]
  for rule in compiled:
    if any(rule is u for u in used):
      continue
    pattern = rule[0].pattern
    taken = [p for p in paths if rule[0].fullmatch(p)]
    if taken:
      raise ValueError(
        f'The rule {pattern!r} is never used: earlier rules take all that it'
        f' matches ({", ".join(taken[:8])}). Put it before them, or drop it.'
      )
    products = [p for p in paths if p.split('/')[-1] in PRODUCTS]
    raise ValueError(
      f'The rule {pattern!r} matches no operation. A pattern matches the whole'
      f' path, the primitive at its end. Products are at: {products}. Name'
      " places in the model by jax.named_scope('attention')."
    )
