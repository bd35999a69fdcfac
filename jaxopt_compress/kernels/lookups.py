"""Products of one-hot rows: rows of a table that is made once in a call.

    f(one_hot(i) @ w)   =   table[i],   table = f([I; 0] @ w)

with f what follows the product, column by column. Rows are rounded one by one, or all
by the range that zeros and ones have, so each result is what it was, but for the order
of sums. A number that is no column of the one-hot matrix meets the zeros.
"""

from collections.abc import Iterable
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.kernels import dots
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import flow as flow_lib

# A table pays where so many rows are read for each that it has.
_ROWS_PER_ENTRY = 2


def find(
  jaxpr, leaves: Iterable[Any], taken: Iterable[int] = ()
) -> list[lift.Claim]:
  """The products of a body whose rows are one-hot, with what follows them.

  Args:
    jaxpr: the body.
    leaves: variables that are leaves.
    taken: positions of equations that are left alone.
  """
  flow, taken = flow_lib.Flow(jaxpr), {*taken}
  near, claims = flow.perhaps_leaves(leaves), []
  for at, eqn in enumerate(jaxpr.eqns):
    product = None if at in taken else epilogues.product(eqn)
    both = _one_hot_times(flow, near, product) if product else None
    if both is None:
      continue
    chain = epilogues.following(at, flow, taken)
    if chain.other is not None:  # it is not along columns
      chain = epilogues.alone(at, jaxpr)
    claims.append(_claim(jaxpr, chain, *both))
    taken.update(claims[-1].indices)
  return claims


def _one_hot_times(flow, near, product) -> tuple[Any, Any] | None:
  """What `_compared` says of the rows of a product with a leaf, if they are many."""
  equation, (x, w) = product
  if equation.primitive is not lax.dot_general_p:
    return None
  summed, batch = equation.params['dimension_numbers']
  if not jaxprs.is_var(w) or w not in near or any(batch):
    return None
  *rows, k = x.aval.shape or (0,)
  # How many rows there are is open in some exports.
  known = all(isinstance(n, int) for n in (*rows, k))
  if tuple(summed[0]) != (len(rows),) or not known:
    return None
  return _compared(flow, x) if _are_many(rows, k) else None


def _are_many(rows, k) -> bool:
  return math.prod(rows) >= _ROWS_PER_ENTRY * (k + 1)


def _compared(flow, x) -> tuple[Any, Any] | None:
  """(numbers [..., 1], columns [..., k]) with x = numbers == columns, or None.

  The columns are None where they are known to be 0 to k - 1; else a constant.
  """
  made, k = flow.maker(x), x.aval.shape[-1]
  if made is None or made.primitive is not lax.convert_element_type_p:
    return None
  equal = flow.maker(made.invars[0])
  if equal is None or equal.primitive is not lax.eq_p:
    return None
  for numbers, columns in (equal.invars, equal.invars[::-1]):
    whole = jnp.issubdtype(numbers.aval.dtype, jnp.integer)
    # Numbers of few bits begin again where there are more columns.
    if not whole or jnp.iinfo(numbers.aval.dtype).max < k:
      continue
    if numbers.aval.shape != (*x.aval.shape[:-1], 1) or columns.aval.size != k:
      continue
    if _counts(flow, columns, k):
      return numbers, None
    if jaxprs.is_var(columns) and columns in flow.jaxpr.constvars:
      return numbers, columns
  return None


def _counts(flow, columns, k) -> bool:
  """Whether a variable of k entries is 0 to k - 1 by the equations that make it."""
  source = flow.maker(columns)
  if source is not None and source.primitive is lax.broadcast_in_dim_p:
    source = flow.maker(source.invars[0])
  if source is None or source.primitive is not lax.iota_p:
    return False
  return source.params['shape'][source.params['dimension']] == k


def _claim(jaxpr, chain, numbers, columns) -> lift.Claim:
  equation, (x, w) = chain.equation, chain.operands
  k = x.aval.shape[-1]
  (out,) = jaxpr.eqns[chain.last].outvars
  held = () if columns is None else (columns,)

  def run(read):
    others = [read(v) for v in (numbers, *held, *chain.reads)]
    known = all(_are_places(read(v)) for v in held)
    leaf = read(w)
    if not known or not isinstance(leaf, dots.PACKED):
      return NotImplemented
    if any(map(array.is_compressed, others)):
      return NotImplemented
    (_, summed), _ = equation.params['dimension_numbers']
    table = dots.dot_general(
      jnp.eye(k + 1, k, dtype=x.aval.dtype),
      leaf,
      dimension_numbers=(((1,), summed), ((), ())),
      preferred_element_type=equation.params['preferred_element_type'],
      epilogue=chain.epilogue(read),
    )
    if table is NotImplemented or isinstance(table, lift.Dense):
      return table
    i = others[0][..., 0]
    at = jnp.where((i >= 0) & (i < k), i, k)
    rows = table.at[at].get(mode='promise_in_bounds')
    return (rows.reshape(out.aval.shape),)

  indices = chain.product, *chain.indices
  reads = numbers, *held, w, *chain.reads
  return lift.Claim(equation, indices, reads, (out,), run)


def _are_places(columns) -> bool:
  """Whether a constant is known to be 0, 1, 2 and so on."""
  if isinstance(columns, jax.core.Tracer):
    return False
  columns = np.ravel(columns)
  return bool((columns == np.arange(columns.size)).all())
