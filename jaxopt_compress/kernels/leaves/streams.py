"""The leaf of matrices without their zeros: `sparse_layout.to_streams`.

    payload [stack..., bytes]

Where half or more of the numbers are zero. What is left takes less memory, and so is
read faster; but its columns are put together again for each product, which takes
longer than to multiply by zeros. `pays` says which it is.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import sparse_layout
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import panels
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable as portable_lib

# So many must be zero (half, where rounding made a few more or fewer), and so much
# of the memory may be left.
LEAST_ZEROS = 0.48
_WORTH = 0.8

# What products take on two cores with AVX512, in nanoseconds an entry: once, and for
# each row. The dense product of floats is XLA's. `launch.bench.kernels --zeros` prints
# what comes of it.
_DENSE = {1: (0.012, 0.0050), 4: (0.050, 0.0115)}
_THIN = {1: (0.0145, 0.0060), 4: (0.030, 0.0123)}
_READ = 0.05  # nanoseconds a byte that comes from memory
_CACHES = 32 << 20  # bytes, where the system does not tell


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class StreamArray(array.CompressedArray):
  """Stands for `number * scale`, or for floats: [stack..., *matrix.shape] of `dtype`.

  Its products are those of a `PanelArray` of the same numbers. With floats, sums are
  of float32 and a row with NaN or infinity gives what it gives with the dense matrix.

  Attributes:
    payload: [stack..., bytes] uint8.
    offsets: [stack..., panels + 1] int32, where the panels begin.
    scale: [stack..., groups, n] float32, bfloat16 or float8_e8m0fnu; None for floats.
    totals: None; or [stack..., 1, n] float32, the sums of the columns, for codes of
      the other operand with zero points.
    act_scale, act_zero: [stack..., 1, 1] or None: a given range of the other
      operand.
    plan: what is static.
  """

  payload: jax.Array
  offsets: jax.Array
  scale: jax.Array | None
  totals: jax.Array | None
  act_scale: jax.Array | None
  act_zero: jax.Array | None
  plan: plan_lib.Plan = dataclasses.field(metadata={'static': True})

  shape = property(plan_lib.shape)
  dtype = property(plan_lib.dtype)
  stored = jnp.uint8  # the payload's own
  dtypes = plan_lib.dtypes
  can_cut = plan_lib.can_cut
  materialize = portable_lib.materialize
  portable = portable_lib.portable

  @staticmethod
  def axes(plan: plan_lib.Plan) -> dict[str, int]:
    del plan
    return dict(
      payload=1, offsets=1, scale=2, totals=2, act_scale=2, act_zero=2
    )

  def matrices(self) -> portable_lib.Matrices:
    """What the leaf stands for, as matrices."""
    plan = self.plan
    x = sparse_layout.from_streams(
      plan_lib.part(self, 'payload'),
      plan_lib.part(self, 'offsets'),
      plan.sparse,
      plan.group,
      plan.matrix.k,
      plan.matrix.n,
    ).astype(jnp.float32)
    if plan.format:
      x = x * np.float32(numbers.LAYOUT[plan.format].unit)
    return portable_lib.Matrices(x, plan_lib.part(self, 'scale'))

  def describe(self):
    return plan_lib.describe(self, 'packed without zeros')


def of_codes(dense: panels.PanelArray) -> StreamArray | None:
  """A leaf without its zeros; None where it has few, or is not of bytes."""
  how = numbers.LAYOUT[dense.plan.format]
  given = dense.zero, dense.global_scale
  if how.name != 'int8' or given != (None, None):
    return None
  # What fills panels up has the code 0; that of zero is another.
  zeros = np.asarray(dense.payload) == layout.CODES['int8'].offset
  if np.count_nonzero(zeros) < LEAST_ZEROS * dense.size:
    return None
  thin = _lay_out(
    np.asarray(_integers(dense)),
    dense.plan,
    **{
      name: getattr(dense, name)
      for name in ('scale', 'totals', 'act_scale', 'act_zero')
    },
  )
  worth = storage.nbytes(thin) < _WORTH * storage.nbytes(dense)
  return thin if worth else None


def pays(
  thin: int, dense: int, entries: int, rows: Sequence[int], all_read: int
) -> bool:
  """Whether products without zeros are faster, for each of the numbers of rows.

      time = max(bytes from memory, entries (once + rows each))

  Args:
    thin, dense: bytes of the weight without its zeros and with them.
    entries: of the weight; one byte each means products of codes.
    rows: how many rows the other operand may have.
    all_read: bytes of all weights that a program reads. If the caches hold them,
      none comes from memory.

  >>> float_bytes = 4 * 4096**2
  >>> size = dict(thin=float_bytes // 2, dense=float_bytes, entries=4096**2)
  >>> [pays(**size, rows=(m,), all_read=2**40) for m in (1, 32, 260)]
  [True, False, False]
  """
  kind = 1 if dense < 2 * entries else 4
  read = _READ if all_read > _cache_bytes() else 0.0

  def time(nbytes, cost, m):
    once, each = cost[kind]
    return max(nbytes * read, entries * (once + m * each))

  return all(time(thin, _THIN, m) < time(dense, _DENSE, m) for m in rows)


@functools.cache
def _cache_bytes() -> int:
  """Of the largest cache of this machine."""
  try:
    return os.sysconf('SC_LEVEL3_CACHE_SIZE') or _CACHES
  except (AttributeError, OSError, ValueError):
    return _CACHES


@jax.jit
def _integers(dense):
  """int8 [stack..., k, n]: a program for each shape, not for each operation."""
  unit = numbers.LAYOUT[dense.plan.format].unit
  return jnp.round(dense.matrices().numbers / unit).astype(jnp.int8)


def of_floats(w: np.ndarray, matrix: matrix_lib.Matrix) -> StreamArray | None:
  """Floats without their zeros; None where that saves little.

  Args:
    w: [stack..., *matrix.shape] float32 or bfloat16.
    matrix: how its axes are those of matrices.
  """
  plan = plan_lib.Plan('', jnp.dtype(w.dtype), matrix, matrix.k)
  thin = _lay_out(np.asarray(matrix.to_matrix(jnp.asarray(w))), plan)
  return thin if storage.nbytes(thin) < _WORTH * w.nbytes else None


def _lay_out(
  entries, plan, scale=None, totals=None, act_scale=None, act_zero=None
):
  """The leaf of [stack..., k, n] entries, and of parts as leaves hold them."""
  stream, offsets, how = sparse_layout.to_streams(entries, plan.group)
  stack = entries.shape[:-2]
  return StreamArray(
    jax.device_put(plan_lib.full(stream, stack, plan.matrix)),
    jax.device_put(plan_lib.full(offsets, stack, plan.matrix)),
    scale,
    totals,
    act_scale,
    act_zero,
    plan._replace(sparse=how),
  )
