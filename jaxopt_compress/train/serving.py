"""What a finished stage runs as where it is used: packed, where kernels compute it.

Evaluation says what a stage answers; latency is that of what one would deploy.
"""

from typing import Any
import warnings

import jax
import jax.numpy as jnp

from jaxopt_compress import kernels
from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.kernels.cpu import native


def served(params: Any, uses: dict[str, Any]) -> tuple[Any, str]:
  """The parameters as they are deployed on this backend, and what was done.

  Args:
    params: of a finished stage.
    uses: what `jc.uses` says of them.

  Returns:
    The tree, packed where a kernel is there; and a sentence for the report, ''
    where nothing is compressed.
  """
  compressed = _count(params, array.CompressedArray)
  backend = jax.default_backend()
  if backend != 'cpu' or not native.available():
    why = f'these are for CPUs, this is {backend!r}; products run by XLA'
    if backend == 'cpu':
      why = (
        f'NOT used: {native.MISSING}. Products of integers run by XLA, which on'
        ' CPUs is slower than float32'
      )
    return params, why if compressed else ''
  skipped = []
  with warnings.catch_warnings():
    # The report says it.
    warnings.filterwarnings('ignore', 'Nothing is packed')
    packed = kernels.pack(
      params, uses, skipped=lambda path, why: skipped.append(f'{path}: {why}')
    )
  done = _count(packed, kernels.PackedArray)
  more = f' and {len(skipped) - 3} more' if len(skipped) > 3 else ''
  by_xla = f'by XLA: {"; ".join(skipped[:3])}{more}'
  if not done:
    return params, f'NOT used; {by_xla}' if compressed else ''
  said = f'{done} of {done + len(skipped)} leaves, on {native.paths()[0]}'
  if skipped:
    said += f'; {by_xla}'
  return packed, f'{said}; {storage.nbytes(packed):,} bytes as laid out'


def _count(tree, kind) -> int:
  return sum(isinstance(x, kind) for _, x in rules_lib.named_leaves(tree))


def difference(forward, stored, packed, variables, x) -> str:
  """How far outputs of the packed parameters are from those of the stored ones.

  Raises:
    RuntimeError: further than codes that round the other way explain.
  """
  y, expected = (forward(p, variables, x) for p in (packed, stored))
  largest = float(jnp.max(jnp.abs(expected)))
  off = float(jnp.max(jnp.abs(y - expected)))
  # Written so that NaN is too far as well.
  if not off <= 0.25 * largest:
    raise RuntimeError(
      f'Packed parameters compute something else: outputs differ by up to {off:.3g},'
      f' of {largest:.3g}. Build the kernels again (pip install -e .); if it stays,'
      ' this is a defect.'
    )
  return f'outputs differ by at most {off:.2g} of {largest:.3g}'
