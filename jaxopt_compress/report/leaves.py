"""The coverage table: what became of each leaf, and whether it runs compressed."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import rules
from jaxopt_compress.report import records


def coverage(
  params: Any, reference: Any = None, met: Sequence[Any] | None = None
) -> list[records.LeafRecord]:
  """A record for each leaf of `params` that is numbers, in the order of the tree.

  Args:
    params: parameters, some leaves compressed.
    reference: the float parameters they were made from; leaves of the same path and
      shape are compared. None: the records have no errors.
    met: what `explain(apply)(params, *args)` returned: objects with `path`,
      `primitive`, `native` and `reason`. None: not known.

  >>> w = np.float32([[1., -2.]])
  >>> [(r.path, r.format, r.error_db) for r in coverage({'w': w}, {'w': w})]
  [('w', 'float32', inf)]
  """
  originals = dict(rules.named_leaves(reference))
  return [
    _leaf(path, leaf, originals.get(path), met)
    for path, leaf in records.numbers(params)
  ]


def error_db(w: np.ndarray, w_hat: np.ndarray) -> float:
  """Signal to quantisation noise, 10 log10(sum w^2 / sum (w - w_hat)^2).

  Six decibels are one bit. Exact is inf, noise on a zero signal is -inf.

  Args:
    w, w_hat: arrays of one shape.

  >>> error_db(np.float32([3., 4.]), np.float32([3., 4.5]))
  20.0
  """
  # float64: squares of float32 weights underflow.
  w = np.asarray(w, np.float64)
  noise = np.sum(np.square(w - np.asarray(w_hat, np.float64)))
  signal = np.sum(np.square(w))
  if noise == 0:
    return math.inf
  if signal == 0:
    return -math.inf
  return float(10 * np.log10(signal / noise))


def _leaf(path, leaf, original, met) -> records.LeafRecord:
  value = records.dense(leaf)
  compressed = array.is_compressed(leaf)
  stored = storage.nbytes(leaf)
  native, reason, operations = _met(path, leaf, met)
  return records.LeafRecord(
    path=path,
    shape=tuple(value.shape),
    format=leaf.describe() if compressed else str(value.dtype),
    compressed=compressed,
    bits_per_weight=8 * stored / value.size if value.size else None,
    bytes=stored,
    sparsity=records.sparsity(value),
    error_db=_error(value, original),
    native=native,
    reason=reason,
    operations=operations,
  )


def _error(value, original):
  if original is None or tuple(original.shape) != tuple(value.shape):
    return None
  return error_db(records.dense(original), value)


def _met(path, leaf, met):
  """(native, why not, primitives) of one leaf."""
  if met is None or not array.is_compressed(leaf):
    return None, '', ()
  mine = [m for m in met if m.path == path]
  if not mine:
    return None, 'meets no operation', ()
  # A leaf is native only if every operation that meets it is.
  reasons = [f'{m.primitive}: {m.reason}' for m in mine if not m.native]
  operations = tuple(dict.fromkeys(str(m.primitive) for m in mine))
  return not reasons, '; '.join(dict.fromkeys(reasons)), operations
