"""What a QArray does in a gather of rows, as in an embedding.

Only the codes and the scales of the rows that are asked for are read.
"""

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import table_rows
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import qarray


@table_rows.in_one_form
def gather_rows(operand, indices, *, dimension_numbers, slice_sizes, **params):
  """Rows of a table: the codes and the scales of just those rows."""
  if not isinstance(operand, qarray.QArray):
    return lift.Dense('it is an index')
  plain = operand.global_scale is None and operand.scale.dtype == jnp.float32
  q = operand if plain else operand.of_one_level()
  picked = set(dimension_numbers.start_index_map)
  whole = all(
    slice_sizes[i] == (1 if i in picked else q.shape[i]) for i in range(q.ndim)
  )
  if not whole or dimension_numbers.operand_batching_dims:
    return lift.Dense('a gather of something other than whole rows')
  parts = q.parts()
  units = {q.ndim + a for part in parts.values() for a in part.units}
  if units & picked:
    return lift.Dense('codes are packed or grouped along the gathered axis')
  fill = params.pop('fill_value')
  if fill is not None and fill == fill:
    return lift.Dense(f'a gather that fills with {fill}')

  collapsed = dimension_numbers.collapsed_slice_dims
  kept = [i for i in range(q.ndim) if i not in collapsed]
  rows = {}
  for name, part in parts.items():
    x = part.array
    # A part that all rows share has size one there, and an index other than 0
    # would be out of bounds: it is repeated first.
    shape = [q.shape[i] if i in picked else n for i, n in enumerate(x.shape)]
    x = jnp.broadcast_to(x, shape)
    sizes = tuple(1 if i in picked else n for i, n in enumerate(shape))
    # Where an index is out of bounds the scale is filled, so the row is.
    value = fill if name == 'scale' else None
    out = lax.gather(
      x, indices, dimension_numbers, sizes, fill_value=value, **params
    )
    # Axes that are kept appear in the result, in their order, at `offset_dims`.
    offsets = dimension_numbers.offset_dims
    moved = {
      offsets[kept.index(q.ndim + a)] - out.ndim: unit
      for a, unit in part.units.items()
    }
    rows[name] = part._replace(array=out, units=moved)
  return q.with_parts(rows).materialize()


def gather_weight_rows(operand, indices, **params):
  """Rows of the weight of a QDotArray: a gather rounds no activations."""
  if not isinstance(operand, qarray.QDotArray):
    return lift.Dense('it is an index')
  return gather_rows(operand.weight, indices, **params)
