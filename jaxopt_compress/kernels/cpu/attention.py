"""Attention on the library of C++ kernels.

    out[t] = sum_s p[t, s] v[s],   p[t] = softmax(scale q[t] k[s] + bias[t, s])

with a score of `masked` where a query may not attend to a key. Scores are computed
and used block by block and never stored as a whole (Dao et al. 2022,
https://arxiv.org/abs/2205.14135, algorithm 1): `source/attention.h`.

Keys and values may be codes with a scale for each row, and a layer of a stacked
cache is read where it lies.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import calls
from jaxopt_compress.kernels.cpu import native

# The order of batch, place (token), head and feature in memory.
ORDERS = ('bthd', 'bhtd', 'bhdt')


@dataclasses.dataclass(frozen=True)
class Form:
  """What is static of attention.

  Attributes:
    query, key, value, out: the order of axes of each, in `ORDERS`; of a query, a value
      and a result one of the first two.
    scale: of scores.
    masked: the score of a key that a query may not attend to: the mean of all values
      is what a query gets that may attend to none, NaN if this is -inf.
    causal: whether query t sees keys 0 to t only.
    window: query t sees keys t - window[0] to t + window[1] only; None for all.
  """

  query: str = 'bthd'
  key: str = 'bthd'
  value: str = 'bthd'
  out: str = 'bthd'
  scale: float = 1.0
  masked: float = -0.7 * float(np.finfo(np.float32).max)
  causal: bool = False
  window: tuple[int, int] | None = None

  def __post_init__(self):
    for name in ('query', 'key', 'value', 'out'):
      orders = ORDERS if name == 'key' else ORDERS[:2]
      if getattr(self, name) not in orders:
        raise ValueError(
          f'{name}={getattr(self, name)!r} is no order of axes. Orders are'
          f' {", ".join(orders)}.'
        )

  def attributes(self) -> dict[str, object]:
    """What C++ decodes: `Form` of `source/attention.cc`."""
    left, right = self.window if self.window is not None else (-1, -1)
    return dict(
      causal=self.causal,
      key=self.key,
      left=np.int64(left),
      masked=np.float32(self.masked),
      out=self.out,
      query=self.query,
      right=np.int64(right),
      scale=np.float32(self.scale),
      value=self.value,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Operands:
  """What attention reads; axes of the first three are in the orders of a `Form`.

  Attributes:
    query: [batch, T, heads, d] float32 or bfloat16.
    key: [batch, S, key heads, d] of the same dtype, or int8 codes.
    value: [batch, S, key heads, d of values], likewise.
    bias: [batch, heads, T, S] added to scores; axes of size one broadcast.
    mask: bool, likewise: which scores count.
    query_lengths: [batch] int32: results of queries from there on are 0.
    key_lengths: [batch] int32: no query attends to keys from there on.
    key_scale, value_scale: float32, of the axes of `key` and `value`, where one of
      size one broadcasts; that of the features is one. What codes stand for is
      codes * scale.
    layer: int32 scalar. `key` and `value` have an axis of layers first of all (their
      scales, too, as long), and this is the one to read.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  bias: jax.Array | None = None
  mask: jax.Array | None = None
  query_lengths: jax.Array | None = None
  key_lengths: jax.Array | None = None
  key_scale: jax.Array | None = None
  value_scale: jax.Array | None = None
  layer: jax.Array | None = None


def sizes(p: Operands, form: Form) -> dict[str, int]:
  """{'b', 'h', 't', 'd'} of the result."""
  found = dict(zip(form.query, p.query.shape[-4:], strict=True))
  own = p.value.shape[-4:]
  return found | {'d': own[form.value.index('d')]}


def attention(
  p: Operands, form: Form, *, out_dtype=None, path: str = ''
) -> jax.Array:
  """Attention on the library; no derivative.

  A key that none of a block of queries may attend to is not read, so nothing comes of
  a NaN there; unless a query of the block may attend to no key, or only to such that
  score hardly more than `masked`: its result is of all values then, and a NaN among
  them makes the block NaN. A query that is NaN does nothing to others.

  Args:
    p: what it reads.
    form: what is static.
    out_dtype: float32 or bfloat16; that of the query if it is None.
    path: an instruction path; '' for the best.

  Returns:
    [batch, T, heads, d of values], its axes in the order `form.out`. Leading axes of
    operands broadcast and lead the result.

  Raises:
    RuntimeError: the library was not built.
  """
  if not native.available():
    raise RuntimeError(f'No kernel: {native.MISSING}.')
  cached = 4 + (p.layer is not None)
  passed = calls.Operands([(p.query, 4), (p.key, cached), (p.value, cached)])
  given = passed.add(
    [
      (p.bias, 4),
      (p.mask, 4),
      (p.query_lengths, 1),
      (p.key_lengths, 1),
      (p.key_scale, cached),
      (p.value_scale, cached),
      (p.layer, 0),
    ]
  )
  shape = tuple(sizes(p, form)[axis] for axis in form.out)
  dtype = jnp.dtype(p.query.dtype if out_dtype is None else out_dtype)
  (out,) = passed.call(
    'attention',
    [(shape, dtype)],
    form=form.attributes(),
    given=np.int32(given),
    path=path,
  )
  return out
