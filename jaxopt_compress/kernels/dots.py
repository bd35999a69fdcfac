"""Products of `dot_general` as rows times the matrices of a leaf, and back.

    x [batch, time, k], w [k, heads, n]   ->   rows [batch * time, k] @ [k, heads * n]

Every order of axes is a transposition and a reshape before the product and after it;
where axes lie as the kernel reads and writes them, these do nothing.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.kernels import dispatch
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import norms
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import product

PACKED = (
  leaves.PanelArray,
  leaves.StreamArray,
  leaves.QuadArray,
  leaves.FloatArray,
)
# Seen as matrices, leaves of every layout move and multiply alike.
ALL = (*PACKED, leaves.TiledArray)


def dot_general(
  lhs,
  rhs,
  *,
  dimension_numbers,
  preferred_element_type,
  epilogue=None,
  **_,
):
  """The rule; with an epilogue that is for XLA it is `NotImplemented`."""
  side = int(isinstance(rhs, ALL))
  leaf, x = (rhs, lhs) if side else (lhs, rhs)
  how = arranged(x, leaf, side, dimension_numbers, preferred_element_type)
  if isinstance(how, lift.Dense):
    return how
  if epilogue:
    epilogue = how.epilogue(epilogue)
    if epilogue is NotImplemented:
      return NotImplemented
  y = dispatch.product(how.rows(x), leaf, how.result, epilogue)
  return y if y is NotImplemented else how.results(y)


def together(
  x: jax.Array,
  hows: Sequence['Arranged'],
  epilogue_of: Sequence[epilogues.Epilogue | None],
  norm: norms.Norm | None = None,
  keep: bool = False,
) -> Any:
  """Several products that read the same array.

  Args:
    x: the array; with a norm, what that reads, of any shape [..., k].
    hows: how each product is one of rows.
    epilogue_of: for each, what follows it, or None.
    norm: of the rows of x, or None.
    keep: whether x after the norm is wanted, too.

  Returns:
    The results, then with `keep` the normed x; `NotImplemented` where they do not
    read the same rows or what follows cannot be written along them.
  """
  first = hows[0]
  of_rows = [how.epilogue(e) for how, e in zip(hows, epilogue_of, strict=True)]
  alike = all(how.x_order == first.x_order for how in hows)
  stacked = any(plan_lib.stack(how.leaf) for how in hows)
  # The rows of a norm are those of x as it lies in memory.
  in_order = norm is None or first.x_order == tuple(range(len(first.x_order)))
  if not alike or stacked or not in_order or NotImplemented in of_rows:
    return NotImplemented
  (*ys,) = dispatch.products(
    first.rows(x) if norm is None else x.reshape(-1, x.shape[-1]),
    [how.leaf for how in hows],
    [how.result for how in hows],
    of_rows,
    norm,
    keep,
  )
  outs = [how.results(y) for how, y in zip(hows, ys, strict=False)]
  return [*outs, ys[-1].reshape(x.shape)] if keep else outs


@dataclasses.dataclass(frozen=True)
class Arranged:
  """How a `dot_general` is a product of rows and matrices.

  Attributes:
    leaf: stands for the matrices.
    d: the axes of the operands, `product.dims`.
    side: which operand the leaf is.
    x_free: sizes of the axes of the other operand that are not summed over.
    x_order: the axes of the other operand in the order of [stack..., rows, k].
    result: dtype of the results.
  """

  leaf: Any
  d: Any
  side: int
  x_free: tuple[int, ...]
  x_order: tuple[int, ...]
  result: jnp.dtype

  @property
  def count(self) -> int:
    """How many rows there are."""
    return math.prod(self.x_free)

  def rows(self, x):
    """The other operand as [stack..., rows, k]."""
    stack = plan_lib.stack(self.leaf)
    x = lax.transpose(x, self.x_order)
    return x.reshape(*stack, self.count, self.leaf.plan.matrix.k)

  def _free(self) -> tuple[list[int], list[int]]:
    """The axes of the leaf that are not summed over: in its order, by the matrix."""
    lead = len(plan_lib.stack(self.leaf))
    summed = self.d.contracting[self.side]
    free = [i for i in range(lead, self.leaf.ndim) if i not in summed]
    by_matrix = sorted(
      free, key=lambda i: self.leaf.plan.matrix.order[i - lead]
    )
    return free, by_matrix

  def results(self, y):
    """[stack..., rows, n] as [batch..., free of lhs..., free of rhs...]."""
    stack = plan_lib.stack(self.leaf)
    lead, x_end = len(stack), len(stack) + len(self.x_free)
    free, by_matrix = self._free()
    columns = (self.leaf.shape[i] for i in by_matrix)
    y = y.reshape(*stack, *self.x_free, *columns)
    # From there to the order of the product: batch axes as it names them, then the
    # free axes of each operand in the order of that operand.
    batch = self.d.batch[self.side]
    of_batch = [sorted(batch).index(i) for i in batch]
    of_x = list(range(lead, x_end))
    of_leaf = [x_end + by_matrix.index(i) for i in free]
    order = (*of_batch, *(of_x + of_leaf if self.side else of_leaf + of_x))
    return lax.transpose(y, order).astype(self.result)

  def epilogue(self, e: epilogues.Epilogue | None) -> Any:
    """What follows the product, for its rows; `NotImplemented` where it cannot."""
    if e is None:
      return None
    if not self.side or plan_lib.stack(self.leaf):
      return NotImplemented
    free, by_matrix = self._free()
    sizes = [self.leaf.shape[i] for i in free]
    order = [free.index(i) for i in by_matrix]

    def of_columns(p):
      if p is None or p.size == 1:
        return p
      return lax.transpose(p.reshape(sizes), order).reshape(-1)

    other = e.other
    if other is not None:
      rows = range(len(self.x_free))
      last = [len(self.x_free) + i for i in order]
      other = lax.transpose(other, (*rows, *last)).reshape(self.count, -1)
    numbers = {
      name: of_columns(getattr(e, name))
      for name in ('scale', 'shift', 'gain', 'offset')
    }
    return dataclasses.replace(e, other=other, **numbers)


def arranged(
  x, leaf, side, dimension_numbers, preferred_element_type
) -> Arranged | lift.Dense:
  """How a `dot_general` of x and a leaf is a product of rows, or why it is none.

  Args:
    x: the other operand; only its shape and dtype count.
    leaf: one of `ALL`.
    side: which operand the leaf is.
    dimension_numbers, preferred_element_type: of the product.
  """
  d = product.dims(dimension_numbers)
  declined = dot.refuses(x) or _not_its_matrices(
    leaf, d.contracting[side], d.batch[side]
  )
  if declined:
    return declined
  stack, m = plan_lib.stack(leaf), leaf.plan.matrix
  held = d.contracting[1 - side] + d.batch[1 - side]
  x_free = [i for i in range(x.ndim) if i not in held]
  # Contracted axes come in the order in which the matrix has its rows, batch axes in
  # that of the stack; each axis of x has the place of the axis that it meets.
  contracted = sorted(
    zip(d.contracting[side], d.contracting[1 - side], strict=True),
    key=lambda pair: m.order[pair[0] - len(stack)],
  )
  batch = sorted(zip(d.batch[side], d.batch[1 - side], strict=True))
  order = (*(j for _, j in batch), *x_free, *(j for _, j in contracted))
  sizes = tuple(x.shape[i] for i in x_free)
  result = dot.result_dtype(preferred_element_type, x, leaf)
  return Arranged(leaf, d, side, sizes, order, result)


def _not_its_matrices(leaf, contracting, batch) -> lift.Dense | None:
  """Declines products that do not sum over the rows of each matrix."""
  stack, m = len(plan_lib.stack(leaf)), leaf.plan.matrix
  if leaf.plan.feature_groups > 1 or isinstance(leaf, leaves.FloatArray):
    return lift.Dense('it is packed for a convolution')
  if sorted(batch) != list(range(stack)):
    return lift.Dense('its stacked axes are not batch axes of the product')
  if any(i < stack for i in contracting):
    return lift.Dense('a product that sums over a stacked axis')
  summed = {m.order[i - stack] for i in contracting}
  summed = {e for e in summed if m.sizes[e] > 1}
  if summed != {e for e in range(len(m.rows)) if m.rows[e] > 1}:
    return lift.Dense('it is packed for a product over other axes')
  return None
