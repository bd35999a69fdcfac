"""What kernels of convolutions do: images of any layout to what the C++ kernels read.

    y = conv(there(x), leaf),   back(y)

`there` takes the axes of an image to [images, height, width, channels], `back` the
results to the order that the operation gives.
"""

import dataclasses
import functools

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.kernels import dispatch
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import phases as phases_lib
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import qarray

KERNELS = (
  leaves.PanelArray,
  leaves.StreamArray,
  leaves.QuadArray,
  leaves.FloatArray,
)


def convolution(lhs, rhs, epilogue=None, **params):
  if not isinstance(rhs, KERNELS):
    return lift.Dense('it is the image of a convolution, not the kernel')
  declined = dot.refuses(lhs) or _not_its_windows(rhs, params)
  if declined:
    return declined
  if phases := phases_lib.of(rhs, params, lhs):
    spec = params['dimension_numbers'].out_spec
    y = convolution(
      lhs,
      phases_lib.as_columns(rhs, phases),
      phases_lib.epilogue_of(epilogue, phases, spec),
      **phases_lib.ordinary(params, phases),
    )
    done = y is not NotImplemented and not isinstance(y, lift.Dense)
    return phases_lib.together(y, phases, spec) if done else y
  images, feature, *space = params['dimension_numbers'].lhs_spec
  out_images, out_feature, *out_space = params['dimension_numbers'].out_spec
  # Kernels read [images, height, width, channels]; an image of one axis has height
  # one. `there` takes the axes of the operand to that order, `back` its results to
  # the order that the operation gives.
  there = (images, *space, feature)
  given = (out_images, *out_space, out_feature)
  back = tuple(given.index(i) for i in range(lhs.ndim))
  flat = len(space) == 1

  def to_kernel(x, order):
    x = lax.transpose(x, order)
    return x[:, None] if flat else x

  def from_kernel(y, order):
    return lax.transpose(y[:, 0] if flat else y, order)

  in_order = _of_portable(rhs.plan, params)
  origin = tuple(there.index(i) for i in range(lhs.ndim))

  def in_xla(x, leaf):
    y = in_order(from_kernel(x, origin), portable.unpack(leaf))
    return to_kernel(y, given)

  if epilogue and epilogue.other is not None:
    other = to_kernel(epilogue.other, given)
    epilogue = dataclasses.replace(epilogue, other=other)
  y = dispatch.convolution(
    to_kernel(lhs, there), rhs, in_xla, epilogue, **_geometry(params, flat)
  )
  if y is NotImplemented:
    return y
  preferred = params['preferred_element_type']
  return from_kernel(y, back).astype(dot.result_dtype(preferred, lhs, rhs))


def _of_portable(plan, params):
  """The convolution with what a packed kernel was before: (x, leaf or array) -> y."""
  wide = params | {'preferred_element_type': jnp.dtype(jnp.float32)}
  if not plan.format:
    return functools.partial(lax.conv_general_dilated, **wide)
  kind = qarray.QArray if plan.act is None else qarray.QDotArray
  rule = lift.rule_for(lax.conv_general_dilated_p, kind)
  return functools.partial(rule, **wide)


def _geometry(params, flat):
  """Strides, padding and dilations along height and width."""
  ones = ((1,), ((0, 0),)) if flat else ((), ())
  return dict(
    strides=(*ones[0], *params['window_strides']),
    padding=(*ones[1], *map(tuple, params['padding'])),
    lhs_dilation=(*ones[0], *params['lhs_dilation']),
    rhs_dilation=(*ones[0], *params['rhs_dilation']),
  )


def _not_its_windows(leaf, params) -> lift.Dense | None:
  """Declines convolutions that it is not the kernel of."""
  m = leaf.plan.matrix
  out, feature, *space = params['dimension_numbers'].rhs_spec
  if plan_lib.stack(leaf) or leaf.plan.sparse is not None or len(space) > 2:
    return lift.Dense('no kernel for this convolution')
  if params['batch_group_count'] != 1:
    return lift.Dense('a convolution grouped over the batch')
  if params['feature_group_count'] != leaf.plan.feature_groups:
    return lift.Dense('it is packed for another number of groups of features')
  if any(p < 0 for pair in params['padding'] for p in pair):
    return lift.Dense('a convolution that cuts its image')
  rows = tuple(m.order[i] for i in (*space, feature))
  if rows != tuple(range(len(m.rows))) or len(m.columns) != 1:
    return lift.Dense('it is packed in another order than windows')
  return None


def turned(leaf, *, dimensions):
  """A kernel with its windows turned round, as a transposed convolution has them.

  The payload is laid out anew in each call, which takes little beside a convolution.
  """
  plan, stack = leaf.plan, plan_lib.stack(leaf)
  m = plan.matrix
  entries = [m.order[i - len(stack)] for i in dimensions]
  if min(dimensions) < len(stack) or max(entries) >= len(m.rows) - 1:
    return lift.Dense('turned round along other axes than those of a window')
  if plan.grouped or plan.sparse is not None:
    return lift.Dense('turned round, with scales that change along it')

  def turn(rows):
    """[..., k, n] with the entries of these axes backwards."""
    lead = rows.shape[:-2]
    x = rows.reshape(*lead, *m.rows, rows.shape[-1])
    return jnp.flip(x, [len(lead) + e for e in entries]).reshape(rows.shape)

  payload = plan_lib.part(leaf, 'payload')
  if isinstance(leaf, leaves.FloatArray):
    payload = turn(payload)
  elif isinstance(leaf, leaves.QuadArray):
    height, n = m.rows[-3], m.n
    taps = layout.from_quads(payload, height, n)
    rows = turn(taps.reshape(*taps.shape[:-3], -1, n))
    payload = layout.to_quads(rows.reshape(taps.shape))
  else:
    name = numbers.LAYOUT[plan.format].name
    n = m.n // plan.feature_groups
    codes = layout.from_panels(payload, name, plan.group, m.k, n)
    payload = layout.to_panels(turn(codes), name, plan.group)
  payload = plan_lib.full(payload, stack, m)
  return dataclasses.replace(leaf, payload=payload)
