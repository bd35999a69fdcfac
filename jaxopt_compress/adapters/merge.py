"""Adapters into their weights: dense, or rounded again.

    merged = Q(base + scale * a b)

What was learned is lost where rounding is as large as it: `MergeError` has both.
This file alone of the adapters knows that leaves are rounded.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.adapters import lora
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import quantize
from jaxopt_compress.quantization import schemes


class MergeError(NamedTuple):
  """What became of one weight when its adapters were merged.

  Attributes:
    rounding: |merged - meant| / |meant|, Frobenius norms; 0 for a dense weight.
    update: |meant - base| / |meant|, how much had been learned. A rounding that
      is not far smaller loses it.
  """

  rounding: jax.Array
  update: jax.Array


def merge_lora(
  params: Any,
  rules: Sequence[tuple[str, schemes.Scheme | str | None]] | None = None,
  uses: dict | None = None,
) -> tuple[Any, dict[str, MergeError]]:
  """Puts adapters into their weights, dense or rounded again.

  Args:
    params: a tree with `LoRA` leaves.
    rules: ordered `(regex, scheme)` over all leaves, as for `jc.quantize`; only
      those with adapters are touched. Without rules they become dense.
    uses: what `jc.uses(apply)(params, x)` returned, or None.

  Returns:
    The tree without `LoRA` leaves, and `{path: MergeError}` of those it had.

  Raises:
    ValueError: no leaf has an adapter, or rules that do not fit.
  """
  chosen = schemes.by_leaf([(r'.*', None)] if rules is None else rules, params)
  errors = {}

  def merged_leaf(path, x):
    if not isinstance(x, lora.LoRA):
      return x
    meant = x.materialize()
    merged = meant
    if chosen[path] is not None:
      merged = quantize.quantize_leaf(path, meant, chosen[path], uses)
    errors[path] = MergeError(
      _distance(meant, array.materialize(merged)),
      _distance(meant, array.materialize(x.base)),
    )
    return merged

  merged = rules_lib.map_named(merged_leaf, params)
  if not errors:
    raise ValueError(
      'No leaf of these parameters has an adapter. Pass what jc.adapters.with_lora'
      ' returned, not the base or the adapters alone.'
    )
  return merged, errors


def _distance(meant, x):
  """|meant - x| / |meant|."""
  return jnp.linalg.norm((meant - x).ravel()) / jnp.linalg.norm(meant.ravel())
