"""Gathers of rows, in the one form that rules for leaves know.

    jax.vmap(lambda i: table[i])(x)

is in JAX a gather that has an index for every axis of the table, 0 for those that are
read whole, and that keeps the axis of rows, of size one. `table[x]` is the other form:
an index for the rows alone, whose axis is gone.
"""

from collections.abc import Callable
import functools

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift

_CLAMPED = (
  lax.GatherScatterMode.CLIP,
  lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)


def chosen(numbers, sizes, shape) -> tuple[int, ...]:
  """The axes of a table in which a gather chooses.

  An index into an axis that is read whole is 0, or clamped to 0, or out of bounds.
  """
  return tuple(
    i for i in numbers.start_index_map if sizes[i] == 1 or sizes[i] != shape[i]
  )


def in_one_form(rule: Callable) -> Callable:
  """A rule for `lax.gather_p`, which is given rows by their indices alone.

  >>> import jax
  >>> def rule(table, indices, *, dimension_numbers, **params):
  ...   print(indices.shape, dimension_numbers.collapsed_slice_dims)
  ...   return lax.gather_p.bind(
  ...     table, indices, dimension_numbers=dimension_numbers, **params)
  >>> f = lambda table, i: jax.vmap(lambda i: table[i])(i)
  >>> (eqn,) = [e for e in jax.make_jaxpr(f)(jnp.eye(3), jnp.arange(2)).eqns
  ...           if e.primitive.name == 'gather']
  >>> eqn.params['dimension_numbers'].collapsed_slice_dims
  ()
  >>> in_one_form(rule)(jnp.eye(3), jnp.array([[2, 0], [1, 0]]), **eqn.params).shape
  (2, 1) (0,)
  (2, 1, 3)
  """

  @functools.wraps(rule)
  def of_any_form(
    table, indices, *, dimension_numbers, slice_sizes, mode, **params
  ):
    numbers, kept = dimension_numbers, ()
    told = numbers.start_index_map
    rows = chosen(numbers, slice_sizes, table.shape)
    if mode in _CLAMPED and 0 < len(rows) < len(told):
      indices = indices[..., jnp.array([told.index(i) for i in rows])]
      numbers = numbers._replace(start_index_map=rows)
      if all(slice_sizes[i] == 1 for i in rows):
        numbers, kept = _without_rows(numbers, rows, len(slice_sizes))
    y = rule(
      table,
      indices,
      dimension_numbers=numbers,
      slice_sizes=slice_sizes,
      mode=mode,
      **params,
    )
    return y if isinstance(y, lift.Dense) else jnp.expand_dims(y, kept)

  return of_any_form


def _without_rows(numbers, rows, ndim):
  """The numbers of a gather without axes of rows, and where those were in its result."""
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  there = [i for i in range(ndim) if i not in gone]
  places = dict(zip(there, numbers.offset_dims, strict=True))
  kept = tuple(places[i] for i in rows if i in places)
  # Places in the result move forward by as many as go before them.
  offsets = (p for i, p in places.items() if i not in rows)
  offsets = tuple(p - sum(k < p for k in kept) for p in offsets)
  collapsed = tuple(sorted({*numbers.collapsed_slice_dims, *rows}))
  numbers = numbers._replace(
    offset_dims=offsets, collapsed_slice_dims=collapsed
  )
  return numbers, kept
