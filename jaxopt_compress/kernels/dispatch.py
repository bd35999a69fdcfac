"""The one place where a product is given to a kernel.

    product(x, leaf) = x @ leaf,  x [..., m, k], leaf [..., k, n]
    products(x, leaves, norm) = norm(x) @ leaf  of each

On CPUs the library of C++ computes it, on GPUs and TPUs what was laid out for them
goes to its kernel; anywhere else, and where the library was not built, the rules of
`QArray` do: the same up to the order of sums. Derivatives are those of the latter.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import norms
from jaxopt_compress.kernels import operands
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import floats
from jaxopt_compress.kernels.leaves import layers
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable
from jaxopt_compress.quantization import straight


def product(
  x: jax.Array,
  leaf: leaves.PackedArray | leaves.TiledArray,
  result: jnp.dtype,
  epilogue: epilogues.Epilogue | None = None,
) -> jax.Array:
  """Rows times matrices laid out for kernels.

  Args:
    x: [stack..., m, k] floating.
    leaf: stands for [stack..., *matrix.shape]; seen as [stack..., k, n].
    result: dtype that the results are for.
    epilogue: what is done with the results.

  Returns:
    [stack..., m, n] float32; bfloat16 if they are for that. NotImplemented for an
    epilogue that is for XLA.
  """
  out_dtype = _out_dtype(result)
  if epilogue is not None and not _is_ours(leaf, epilogue):
    return NotImplemented
  kernels = {}
  if isinstance(leaf, leaves.TiledArray):
    names = ('tpu',) if leaf.plan.target == 'tpu' else ('cuda', 'rocm')
    if leaf.suits(x.shape[-2]):
      tiled = functools.partial(_tiled, out_dtype=out_dtype)
      kernels = dict.fromkeys(names, tiled)
  elif native.available():
    kernels['cpu'] = functools.partial(_matmul, out_dtype=out_dtype)
  in_xla = functools.partial(_in_xla, out_dtype=out_dtype)
  return _by_kernel(kernels, in_xla, x, leaf, epilogue)


def products(
  x: jax.Array,
  weights: Sequence[leaves.PackedArray | leaves.TiledArray],
  results: Sequence[jnp.dtype],
  epilogue_of: Sequence[epilogues.Epilogue | None],
  norm: norms.Norm | None = None,
  keep: bool = False,
) -> tuple[jax.Array, ...]:
  """What several products with the same rows give: `norm(x) @ w` for each weight.

  Args:
    x: [stack..., m, k] floating.
    weights: each as for `product`, with k rows.
    results: for each weight, the dtype that its results are for.
    epilogue_of: for each weight, what is done with its results, or None.
    norm: of the rows of x, or None.
    keep: whether the norm of x is wanted, too.

  Returns:
    [stack..., m, n] for each weight, float32, or bfloat16 if they are for that; and
    with `keep` the rows that were multiplied: [stack..., m, k] of the dtype of x.
  """
  out_dtypes = tuple(map(_out_dtype, results))
  weights, epilogue_of = tuple(weights), tuple(epilogue_of)

  def whole(x, weights, epilogue_of, norm):
    rows = x if norm is None else norm(x)
    out = []
    for leaf, epilogue, dtype in zip(
      weights, epilogue_of, out_dtypes, strict=True
    ):
      y = _in_xla(rows, leaf, out_dtype=dtype)
      out.append(y if epilogue is None else epilogue(y))
    return (*out, rows) if keep else tuple(out)

  # The library takes no empty operand; XLA makes an empty result for nothing.
  sizes = *x.shape, *(n for leaf in weights for n in leaf.shape)
  if _in_one_call(x, weights, epilogue_of) and 0 not in sizes:
    if norm is not None and not operands.rounds_rows(x, weights[0]):
      rows = norm(x)
      out = products(rows, weights, results, epilogue_of)
      return (*out, rows) if keep else out
    fused = functools.partial(_matmuls, out_dtypes=out_dtypes, keep=keep)
    args = x, weights, epilogue_of, norm
    return _where_there_are({'cpu': fused}, whole, *args)
  rows = x if norm is None else norm(x)
  out = []
  for leaf, result, epilogue in zip(weights, results, epilogue_of, strict=True):
    y = product(rows, leaf, result, epilogue)
    # An epilogue that is for XLA.
    y = epilogue(product(rows, leaf, result)) if y is NotImplemented else y
    out.append(y)
  return (*out, rows) if keep else tuple(out)


def _in_one_call(x, weights, epilogue_of) -> bool:
  """Whether the library multiplies rows by all of the weights at once."""
  if not native.available():
    return False

  def kind(leaf):
    plan, sparse = leaf.plan, leaf.plan.sparse
    skips = sparse and (sparse.type, sparse.skips)
    path = plan.path_for(x.shape[-2])
    # Weights of one call differ in columns alone: one kernel runs through all of them.
    how = plan.format, plan.group, plan.act, skips, path
    return type(leaf), plan.matrix.k, *how, plan_lib.stack(leaf)

  panels = all(
    isinstance(leaf, (leaves.PanelArray, leaves.StreamArray))
    for leaf in weights
  )
  return (
    panels
    and all(kind(leaf) == kind(weights[0]) for leaf in weights)
    # Else rows are rounded before the call, for each weight by its own range.
    and all(
      leaf.plan.act is None or operands.suits(leaf.plan.act, leaf)
      for leaf in weights
    )
    and all(
      epilogue is None or _is_ours(leaf, epilogue)
      for leaf, epilogue in zip(weights, epilogue_of, strict=True)
    )
  )


def _out_dtype(result):
  return jnp.bfloat16 if result == jnp.bfloat16 else jnp.float32


def _is_ours(leaf, epilogue) -> bool:
  """Whether a kernel does what follows its product."""
  if not isinstance(leaf, leaves.PackedArray) or not native.available():
    return False
  # Streams of floats have no scales that one of the epilogue could be taken into.
  return not isinstance(leaf, leaves.StreamArray) or (
    bool(leaf.plan.format) or epilogue.scale is None
  )


def _where_there_are(kernels, whole, *args):
  """By the kernel of the platform, if any; with the derivative of `whole`."""
  if not kernels:
    return whole(*args)
  # A call of the library has no derivative; `as_if` has that of `whole`.
  fixed = jax.tree.map(lax.stop_gradient, args)
  out = lax.platform_dependent(*fixed, **kernels, default=whole)
  return straight.as_if(whole, out, *args)


def _by_kernel(kernels, in_xla, x, leaf, epilogue):
  """The product of one leaf by its kernel, as `in_xla` defines it."""

  def whole(x, leaf, epilogue):
    y = in_xla(x, leaf)
    return y if epilogue is None else epilogue(y)

  kernels = {} if 0 in (*x.shape, *leaf.shape) else kernels
  return _where_there_are(kernels, whole, x, leaf, epilogue)


def convolution(
  x: jax.Array,
  leaf: leaves.PanelArray | leaves.QuadArray | leaves.FloatArray,
  in_xla: Callable[[jax.Array, Any], jax.Array],
  epilogue: epilogues.Epilogue | None = None,
  **geometry,
) -> jax.Array:
  """Images and a packed kernel.

  Args:
    x: [images, height, width, channels] floating.
    leaf: stands for [window..., channels, features].
    in_xla: the same of (x, leaf) in XLA.
    epilogue: what is done with the results.
    **geometry: strides, padding and dilations, as for `cpu.conv.Windows`.

  Returns:
    [images, out height, out width, features] float32. NotImplemented for an
    epilogue that is for XLA.
  """
  if epilogue is not None and not _is_ours(leaf, epilogue):
    return NotImplemented
  kernels = {}
  if native.available():
    rows = leaf.plan.matrix.rows
    # The last of the rows is the channel; an image of one axis has height one.
    taps = rows[:-1] if len(rows) == 3 else (1, *rows[:-1])
    kernels['cpu'] = functools.partial(
      _CONVOLUTIONS[type(leaf)],
      windows=conv.Windows(taps, **geometry),
      path=leaf.plan.path_for(x.shape[1] * x.shape[2]),
    )
  return _by_kernel(kernels, in_xla, x, leaf, epilogue)


def _conv(x, leaf, epilogue, **how):
  """A convolution of a leaf in panels, on the library."""
  plan = leaf.plan
  groups, n = plan.feature_groups, plan.matrix.n // plan.feature_groups
  # Vectors of columns lie as the kernel reads them: group by group, if there are any.
  columns = (groups, 1, n) if groups > 1 else (1, n)
  x, payload, *others = operands.of(
    x, leaf, epilogue, (1, 2, 3), columns, jnp.float32
  )
  return conv.conv(
    x,
    layers.cut(payload),
    *others,
    format=numbers.LAYOUT[plan.format].name,
    n=n,
    group=plan.group,
    feature_groups=groups,
    **how,
  )


def _depthwise(x, leaf, epilogue, **how):
  """A convolution that keeps channels apart, on the library."""
  n = leaf.plan.matrix.n
  given = operands.of(x, leaf, epilogue, (1, 2, 3), (1, n), jnp.float32)
  return conv.depthwise(*given, n=n, **how)


def _float_conv(x, leaf, epilogue, **how):
  """A convolution whose weight is of floats, on the library."""
  plan = leaf.plan
  groups = 0 if plan.depthwise else plan.feature_groups
  n = plan.matrix.n // max(groups, 1)
  payload = plan_lib.part(leaf, 'payload')
  if epilogue is not None and epilogue.scale is not None:
    payload = floats.times_columns(leaf, epilogue.scale)
  columns = (groups, 1, n) if groups > 1 else (1, n)
  finish = operands.finish_of(epilogue, columns, jnp.float32)
  return conv.float_conv(x, payload, finish, n=n, feature_groups=groups, **how)


_CONVOLUTIONS = {
  leaves.PanelArray: _conv,
  leaves.QuadArray: _depthwise,
  leaves.FloatArray: _float_conv,
}


def _matmul(x, leaf, epilogue, *, out_dtype):
  """A product on the library."""
  how = dict(out_dtypes=(out_dtype,), keep=False)
  return _matmuls(x, (leaf,), (epilogue,), None, **how)[0]


def _matmuls(x, weights, epilogue_of, norm, *, out_dtypes, keep):
  """Products of the same rows on the library, in one call."""
  plan, passed = weights[0].plan, []
  for leaf, epilogue, out_dtype in zip(
    weights, epilogue_of, out_dtypes, strict=True
  ):
    n, sparse = leaf.plan.matrix.n, leaf.plan.sparse
    rows, payload, scale, zero, rounding, finish = operands.of(
      x, leaf, epilogue, (x.ndim - 1,), (1, n), out_dtype
    )
    payload, layer = layers.parts(payload)
    weight = native.Weight(
      payload, scale, n, zero, rounding, finish, out_dtype, layer=layer
    )
    if sparse:
      offsets = plan_lib.part(leaf, 'offsets')
      weight = weight._replace(offsets=offsets, constant=sparse.constant)
    passed.append(weight)
  sparse = plan.sparse
  return native.matmuls(
    rows,
    passed,
    norm,
    format=sparse.type if sparse else numbers.LAYOUT[plan.format].name,
    k=plan.matrix.k,
    group=plan.group,
    keep=keep,
    sparse=sparse is not None,
    skips=sparse is not None and sparse.skips,
    path=plan.path_for(x.shape[-2]),
  )


def _tiled(x, leaf, epilogue, *, out_dtype):
  """On a kernel for GPUs or TPUs, which takes no epilogue."""
  del epilogue
  return leaf.multiply(x).astype(out_dtype)


def _in_xla(x, leaf, *, out_dtype):
  """By the rules of the leaf that it was packed from."""
  q = portable.unpack(plan_lib.as_matrices(leaf))
  # [stack..., m, k] times [stack..., k, n]: stacked axes go side by side.
  batch = tuple(range(x.ndim - 2))
  options = dict(
    dimension_numbers=(((x.ndim - 1,), (q.ndim - 2,)), (batch, batch)),
    precision=None,
    preferred_element_type=jnp.dtype(jnp.float32),
  )
  if leaf.plan.format:
    rule = lift.rule_for(lax.dot_general_p, type(q))
    y = rule(x, q, out_sharding=None, **options)
  else:
    y = lax.dot_general(x, q, **options)
  return y.astype(out_dtype)
