"""How a quantised weight becomes matrices [k, n]: its `Plan`, or why there is none.

Which axes are contracted, `uses` says; the order of the rows follows from what the
kernels need, which is that groups that share scales lie together.
"""

from typing import Any
from typing import NamedTuple

import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.quantization import qarray


class Planned(NamedTuple):
  """A plan of a leaf, or why it has none.

  Attributes:
    plan: None where there is none.
    stack: how many axes come before those of the matrices.
    why: '' where there is a plan.
  """

  plan: plan_lib.Plan | None = None
  stack: int = 0
  why: str = ''


def plan(path: str, leaf: Any, uses: dict | None) -> Planned:
  """The plan of a `QArray` or `QDotArray` whose format is in `numbers.LAYOUT`."""
  q = weight_of(leaf)
  matrix, stack, why = as_matrix(path, q, uses)
  if why:
    return Planned(why=why)
  group = _group(q, matrix, stack)
  if isinstance(group, str):
    return Planned(why=group)
  if group > native.MOST_ROWS:
    return Planned(
      why=f'32 bits do not hold sums of more than {native.MOST_ROWS} products'
    )
  act = leaf.act if isinstance(leaf, qarray.QDotArray) else None
  groups = max(
    (u.feature_groups for u in uses_lib.of(path, uses) or ()), default=1
  )
  made = plan_lib.Plan(q.format, q.dtype, matrix, group, act, groups)
  return Planned(made, stack)


def plan_of_floats(path: str, w: Any, uses: dict | None) -> Planned:
  """The plan of an array of floats that convolutions alone read."""
  found = uses_lib.of(path, uses) or ()
  alone = found and all(
    u.primitive == 'conv_general_dilated' and u.contracted and not u.in_product
    for u in found
  )
  if not alone or remade_by(path, uses):
    return Planned(why='other than convolutions read it')
  if w.dtype != jnp.float32 or 0 in w.shape:
    return Planned(why='it is empty or not of float32')
  matrix, stack, why = as_matrix(path, w, uses)
  groups = max(u.feature_groups for u in found)
  if not why and (
    len(matrix.rows) not in (2, 3)
    or len(matrix.columns) != 1
    or (stack and groups > 1)
  ):
    why = 'no kernel for this convolution'
  if why:
    return Planned(why=why)
  dtype = jnp.dtype(jnp.float32)
  made = plan_lib.Plan('', dtype, matrix, matrix.k, feature_groups=groups)
  return Planned(made, stack)


def weight_of(leaf: qarray.QArray | qarray.QDotArray) -> qarray.QArray:
  """The weight itself, without what is said of the other operand."""
  return leaf.weight if isinstance(leaf, qarray.QDotArray) else leaf


def products_of(path: str, uses: dict | None) -> set[str]:
  """The primitives that contract a weight, as far as `uses` knows."""
  found = uses_lib.of(path, uses) or ()
  return {u.primitive for u in found if u.contracted}


def remade_by(path: str, uses: dict | None) -> set[str]:
  """Moves of a weight for which packed leaves have no rule."""
  found = uses_lib.of(path, uses) or ()
  # Transposed convolutions turn windows round, for which there is a rule.
  turned = {'conv_general_dilated': {'rev'}}
  return set().union(
    *(set(u.remade) - turned.get(u.primitive, set()) for u in found)
  )


def as_matrix(
  path: str, q: Any, uses: dict | None
) -> tuple[matrix_lib.Matrix | None, int, str]:
  """(matrix, number of stacked axes, why not) of an array or leaf."""
  contracted, stacked, free = uses_lib.axes(path, q, uses)
  ndim = q.ndim
  if [ndim + a for a in stacked] != list(range(len(stacked))):
    return None, 0, f'its stacked axes {stacked} are not the first'
  # Groups are runs of rows: the axis that they lie along has to be the minor one.
  blocks = getattr(q, 'blocks', ())
  blocked = [a for a, _ in blocks if a in contracted]
  if len(blocked) > 1:
    return None, 0, 'its scales change along two contracted axes'
  order = [a for a in contracted if a not in blocked] + blocked
  # Kernels of convolutions read windows in the order of their axes.
  for use in uses_lib.of(path, uses) or ():
    if use.primitive == 'conv_general_dilated' and use.contracted:
      order = list(use.contracted)
  axes = [*order, *free]
  rows = tuple(q.shape[a] for a in order)
  columns = tuple(q.shape[a] for a in free)
  # Axes count from the end: the first one of a matrix is -(ndim - stack).
  first = len(stacked) - ndim
  places = tuple(axes.index(a) for a in range(first, 0))
  return matrix_lib.Matrix(rows, columns, places), len(stacked), ''


def _group(q, matrix, stack) -> int | str:
  """Rows that share scales, or why there is no such number."""
  first = stack - q.ndim
  axis_of = {entry: first + i for i, entry in enumerate(matrix.order)}
  sizes = dict(q.blocks)
  row_axes = [axis_of[i] for i in range(len(matrix.rows))]
  changing = [a for a in row_axes if q.scale.shape[a] > 1]
  if not changing:
    return matrix.k
  minor = row_axes[-1]
  # Where they change along other rows only, they are those of whole minor axes.
  group = sizes.get(minor, 1)
  if q.scale.shape[minor] == 1:
    group = matrix.rows[-1]
  if group < 4:
    return f'a scale for every {group} rows'
  if matrix.rows[-1] != matrix.k and matrix.rows[-1] % group:
    return (
      f'groups of {group} do not divide the {matrix.rows[-1]} rows they lie in'
    )
  return group


def why_not_on_cpu(planned: Planned) -> str:
  """Why the kernels for CPUs do not compute with a plan; '' if they do."""
  plan = planned.plan
  if plan.feature_groups == 1:
    return ''
  if planned.stack:
    return 'a stack of convolutions in groups'
  if len(plan.matrix.rows) != 3:
    return 'a convolution in groups over other than two axes'
  tabled = numbers.LAYOUT[plan.format].name in numbers.TABLES
  if plan.depthwise and (tabled or plan.grouped):
    return 'channels kept apart are multiplied as int8 with one scale for each'
  return ''
