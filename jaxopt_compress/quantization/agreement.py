"""How near the results of a compressed network are to those of the float one.

    error   = sqrt(sum |y - y'|^2 / sum |y|^2)
    cosine  = mean over rows of  <y, y'> / |y| |y'|
    argmax  = how many rows have their largest entry at the same place

A row is the last axis of a result: a sentence's embedding, the logits of an example or
of a token. Results of one number, or none on the last axis, are one row together.

Masks are left out: where both results are of one sign and 1e8 or more, as -1e9 and the
least number of float32 are, or both the least or the largest number of their type. In
no row are they compared, and rows that have nothing else are not counted.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.core import lift

# What is as large in both results is a mask.
_MASK = 1e8


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How near results are, over all batches; prints itself.

  Attributes:
    error: the difference's norm over that of the float results.
    cosine, least: the mean and the least of the rows' cosines; of two rows of zeros
      it is 1, of one 0.
    argmax: the fraction of rows whose largest entry is at the same place; None where
      no result has rows of several numbers.
    rows: how many there were.
    lost: how many numbers are NaN or infinite that were not.
    masked: how many are masks, and left out.
  """

  error: float
  cosine: float
  least: float
  argmax: float | None
  rows: int
  lost: int = 0
  masked: int = 0

  def __str__(self):
    if self.lost:
      return f'{self.lost:,} numbers of the results are NaN or infinite'
    said = f'error {self.error:.2g}, cosine {self.cosine:.5f}'
    said += f' (least {self.least:.5f})'
    if self.argmax is not None:
      said += f', argmax the same in {self.argmax:.1%}'
    said += f' of {self.rows:,} rows'
    return said + (f', without {self.masked:,} masks' if self.masked else '')


class Sums(NamedTuple):
  """What an `Agreement` is made of: sums over rows, two norms, the least cosine."""

  apart: Any = 0.0
  size: Any = 0.0
  cosine: Any = 0.0
  least: Any = math.inf
  rows: Any = 0
  same: Any = 0
  ranked: Any = 0
  lost: Any = 0
  masked: Any = 0

  def added(self, other: 'Sums') -> 'Sums':
    pairs = zip(self, other, strict=True)
    total = Sums(*(a + b for a, b in pairs))
    return total._replace(
      apart=jnp.hypot(self.apart, other.apart),
      size=jnp.hypot(self.size, other.size),
      least=jnp.minimum(self.least, other.least),
    )

  def agreement(self) -> Agreement:
    s = Sums(*(jax.device_get(tuple(self))))
    if not s.rows:
      raise ValueError(
        f'Nothing is left to compare: {int(s.masked):,} numbers of the results are'
        f' {_MASK:.0e} or more in both networks and taken for masks, and the float'
        ' one has no others. If they are none, let apply divide its results.'
      )
    size, apart = float(s.size), float(s.apart)
    found = Agreement(
      error=apart / size if size else math.inf if apart else 0.0,
      cosine=float(s.cosine) / int(s.rows),
      least=float(s.least),
      argmax=int(s.same) / int(s.ranked) if s.ranked else None,
      rows=int(s.rows),
      lost=int(s.lost),
      masked=int(s.masked),
    )
    measures = found.error, found.cosine, found.least
    if not found.lost and not all(map(math.isfinite, measures)):
      raise ValueError(
        f'The results cannot be compared: {found}, where all were to be finite.'
        f" The norm of the float network's is {size:.3g}, of the difference"
        f' {apart:.3g}. Look at the numbers that apply returns, or let it return'
        ' fewer.'
      )
    return found


def floats_of(out: Any) -> list[jax.Array]:
  """The floating results, which are what is compared."""
  leaves = jax.tree.leaves(out)
  return [y for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]


@jax.jit
def sums(got: list[jax.Array], want: list[jax.Array]) -> Sums:
  """The sums of one batch.

  Args:
    got, want: results of both networks, of the same shapes.
  """
  total = Sums()
  for y, y_hat in zip(want, got, strict=True):
    if not y.size:
      continue
    limits = jnp.finfo(y.dtype)
    mask = (y == y_hat) & ((y == limits.min) | (y == limits.max))
    y, y_hat = (x.astype(jnp.float32) for x in (y, y_hat))
    for sign in (-1, 1):
      mask |= (sign * y >= _MASK) & (sign * y_hat >= _MASK)
    lost = jnp.isfinite(y) & ~jnp.isfinite(y_hat)
    # What the float network itself has no number for is not compared.
    mask &= jnp.isfinite(y) & jnp.isfinite(y_hat)
    kept = jnp.isfinite(y) & ~mask
    several = y.ndim > 0 and y.shape[-1] > 1
    y, y_hat, kept = (
      x.reshape(-1, x.shape[-1] if several else x.size)
      for x in (y, y_hat, kept)
    )
    count = jnp.sum(kept.any(-1))
    # Left out, they are never the largest.
    first, second = (
      jnp.argmax(jnp.where(kept, x, -jnp.inf), -1) for x in (y, y_hat)
    )
    y, y_hat = (jnp.where(kept, x, 0.0) for x in (y, y_hat))
    cosine = _cosine(y, y_hat)
    total = total.added(
      Sums(
        apart=_norm(y - y_hat),
        size=_norm(y),
        cosine=jnp.sum(jnp.where(kept.any(-1), cosine, 0.0)),
        least=jnp.min(jnp.where(kept.any(-1), cosine, jnp.inf)),
        rows=count,
        same=jnp.sum((first == second) & kept.any(-1)) * several,
        ranked=count * several,
        lost=jnp.sum(lost),
        masked=jnp.sum(mask),
      )
    )
  return total


def _scaled(x, axis=None):
  """(largest magnitude, entries over it): squares neither vanish nor overflow."""
  largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
  return largest, x / jnp.where(largest > 0, largest, 1)


def _norm(x):
  largest, x = _scaled(x)
  return largest[0, 0] * jnp.sqrt(jnp.sum(jnp.square(x)))


def _cosine(a, b):
  """[rows] of [rows, n]: 1 where both are zero, 0 where one is."""
  (_, a), (_, b) = (_scaled(x, -1) for x in (a, b))
  sizes = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
  a, b = (
    x / jnp.where(n > 0, n, 1) for x, n in zip((a, b), sizes, strict=True)
  )
  none = [n[:, 0] == 0 for n in sizes]
  return jnp.where(none[0] & none[1], 1.0, jnp.sum(a * b, axis=-1))


def compare(
  apply: Callable, params: Any, compressed: Any, batches: Iterable[Any]
) -> Agreement:
  """How near a compressed network is to the float one, on some batches.

  Args:
    apply: a function of parameters and the arguments that a batch is; all floating
      entries that it returns count.
    params: as they were trained.
    compressed: the same with compressed leaves.
    batches: as in `jc.calibrate`: tuples are positional arguments, dicts keyword
      arguments.

  Raises:
    ValueError: no batches, nothing floating in what is returned, nothing but masks,
      a measure that is not finite though no number is lost, arrays that are traced.

  >>> f = lambda w, x: x @ w
  >>> w = jnp.array([[3.0, 0.0], [0.0, 4.0]])
  >>> print(compare(f, w, 0.5 * w, [jnp.eye(2)]))
  error 0.5, cosine 1.00000 (least 1.00000), argmax the same in 100.0% of 2 rows
  """
  return Reference(apply, params, batches).compare(compressed)


class Reference:
  """A network's batches and what it makes of them, to compare others with.

  Attributes:
    apply: of (tree, arguments).
    batches: a list.
    wanted: the floating results of each batch.
  """

  def __init__(self, apply: Callable, params: Any, batches: Iterable[Any]):
    self.apply, self.batches = apply, list(batches)
    _check_known(params, self.batches)
    run = self._runner(params)
    self.wanted = [run(batch) for batch in self.batches]
    check_results(self.wanted)

  def compare(self, compressed: Any) -> Agreement:
    """How near a tree of compressed leaves is."""
    run = self._runner(compressed)
    return total(map(run, self.batches), self.wanted)

  def _runner(self, tree):
    lifted = lift.lift(self.apply)

    def floats(tree, batch):
      return floats_of(batches_lib.call(lifted, (tree,), batch))

    return batches_lib.jitted(floats, tree)


def total(got: Iterable[list[jax.Array]], wanted: list[list[jax.Array]]):
  """The `Agreement` over batches."""
  found = Sums()
  for y, want in zip(got, wanted, strict=True):
    found = found.added(sums(y, want))
  return found.agreement()


def _check_known(params, batches):
  for x in jax.tree.leaves((params, batches)):
    if isinstance(x, jax.core.Tracer):
      raise ValueError(
        'Results are compared in numbers, and one of the arrays is traced and has'
        ' none yet. Call this outside of jax.jit, jax.grad and jax.vmap.'
      )


def check_results(wanted: list[list[jax.Array]]) -> None:
  """Raises ValueError where there is nothing to compare with."""
  if not sum(y.size for y in jax.tree.leaves(wanted)):
    raise ValueError(
      f'{len(wanted)} batches, for which apply returns no floating entry: there is'
      ' nothing to compare. Give batches of examples, and an apply that returns'
      ' logits, an embedding or the like.'
    )
  lost = sum(int(jnp.sum(~jnp.isfinite(y))) for y in jax.tree.leaves(wanted))
  size = sum(y.size for y in jax.tree.leaves(wanted))
  if lost == size:
    raise ValueError(
      f'All {size:,} numbers that the float network returns are NaN or infinite:'
      ' there is nothing to compare with. Look at its parameters and batches.'
    )
