"""Convolutions on the library of C++ kernels.

    y[i, p, n] = a_i (sum_g s_gn sum_{k in g} (w_kn - z_gn) x_i[p, k] - b_i t_n) + bias_n

followed by the `Finish` of `native`. A row x_i[p] is the window of image i at the
pixel p: k runs over the taps of a window and its channels. The codes of an image
share a scale a and a zero point b. A padded position is a real zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import native

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Windows:
  """Where the windows of an image are; pairs are of (height, width).

  Attributes:
    taps: of a window.
    strides, lhs_dilation, rhs_dilation: as for `lax.conv_general_dilated`.
    padding: below and above, along height and width; not negative.
  """

  taps: Pair
  strides: Pair = (1, 1)
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
  lhs_dilation: Pair = (1, 1)
  rhs_dilation: Pair = (1, 1)

  def __post_init__(self):
    if min(*self.padding[0], *self.padding[1]) < 0:
      raise ValueError(
        f'padding is {self.padding}: the kernels cut nothing off an image.'
        ' Slice it before the convolution.'
      )
    positive = (self.taps, self.strides, self.lhs_dilation, self.rhs_dilation)
    if min(n for pair in positive for n in pair) < 1:
      raise ValueError(
        'Sizes of windows, strides and dilations are at least one, got'
        f' {positive}.'
      )

  def attribute(self) -> np.ndarray:
    """What C++ decodes: `scene_of` in `source/scene.h`."""
    # Padding is (below, above) for each axis here, and an axis for each end there.
    low, high = zip(*self.padding, strict=True)
    return np.array(
      (
        self.taps,
        self.strides,
        self.lhs_dilation,
        self.rhs_dilation,
        low,
        high,
      ),
      np.int64,
    ).reshape(-1)

  def count(self, height: int, width: int) -> Pair:
    """How many windows an image has along height and width."""
    size = []
    for axis, entries in enumerate((height, width)):
      # A dilated image has zeros between its entries, but none after the last.
      inside = max((entries - 1) * self.lhs_dilation[axis] + 1, 0)
      padded = inside + sum(self.padding[axis])
      reach = (self.taps[axis] - 1) * self.rhs_dilation[axis] + 1
      fitting = (padded - reach) // self.strides[axis] + 1
      size.append(fitting if padded >= reach else 0)
    return tuple(size)


def conv(
  x: jax.Array,
  w: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None = None,
  rounding: native.Rounding = native.Rounding(),
  finish: native.Finish = native.Finish(),
  *,
  windows: Windows,
  format: str,
  n: int,
  group: int,
  feature_groups: int = 1,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """A stack of convolutions; no derivative.

  Leading axes broadcast. The axis of `feature_groups` below is there only if there
  are several; `rounding.totals`, `finish.bias` and `finish.after` have it, too.

  Args:
    x: [..., images, height, width, channels] float32 or bfloat16; int8 codes for
      Act.CODES.
    w: [..., feature_groups, panels, units, bytes], `layout.to_panels` of the kernel
      seen as [height * width * channels, features] of each group.
    scale: [..., feature_groups, groups, n] of the types of `native.matmul`;
      None for codes.
    zero: [..., feature_groups, groups, n] float32 or int8, in numbers of the
      format; None for Act.CODES.
    rounding: how x is rounded, an image at a time; zero points of Act.STATIC are
      int8 numbers. Weights in 'nf4' meet x itself, so of an image with a NaN or an
      infinity only the windows that see it are NaN.
    finish: what is done with results.
    windows: where they are.
    format: in `layout.CODES`.
    n: features of one of their groups.
    group: rows of the matrix of windows that share scales.
    feature_groups: how many groups of features.
    out_dtype: float32 or bfloat16; int32 for codes.
    path: an instruction path; '' for the best.

  Returns:
    [..., images, out height, out width, feature_groups * n].

  Raises:
    RuntimeError: the library was not built.
  """
  # C++ always has an axis of groups of features, so that of one group is added.
  native.check_totals(rounding)
  parts = dict(
    scale=scale,
    zero=zero,
    totals=rounding.totals,
    bias=finish.bias,
    after=finish.after,
  )
  parts = {
    name: None if p is None else _grouped(p, feature_groups, 2)
    for name, p in parts.items()
  }
  return native.call(
    'conv',
    [(x, 4), (_grouped(w, feature_groups, 3), 4)],
    [(parts['scale'], 3), (parts['zero'], 3)],
    dataclasses.replace(rounding, totals=parts['totals']),
    dataclasses.replace(finish, bias=parts['bias'], after=parts['after']),
    (x.shape[-4], *windows.count(*x.shape[-3:-1]), feature_groups * n),
    out_dtype,
    format=format,
    n=np.int64(n),
    group=np.int64(group),
    windows=windows.attribute(),
    path=path,
  )


def depthwise(
  x: jax.Array,
  w: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None = None,
  rounding: native.Rounding = native.Rounding(),
  finish: native.Finish = native.Finish(),
  *,
  windows: Windows,
  n: int,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """A stack of convolutions that keep channels apart; no derivative.

  Args:
    x: [..., images, height, width, channels] float32 or bfloat16; int8 codes for
      Act.CODES.
    w: [..., quads, width, columns, 4] int8, `layout.to_quads` of the kernel.
    scale: [..., 1, n] of the types of `native.matmul`; None for codes.
    zero: [..., 1, n] float32 or int8; None for Act.CODES.
    rounding: as for `conv`.
    finish: what is done with results; its bias is [..., 1, n], `after` [..., 2, n].
    windows: where they are.
    n: features, a multiple of the channels.
    out_dtype, path: as for `conv`.

  Returns:
    [..., images, out height, out width, n].
  """
  return native.call(
    'depthwise',
    [(x, 4), (w, 4)],
    [(scale, 2), (zero, 2)],
    dataclasses.replace(rounding, totals=None),
    finish,
    (x.shape[-4], *windows.count(*x.shape[-3:-1]), n),
    out_dtype,
    windows=windows.attribute(),
    path=path,
  )


def float_conv(
  x: jax.Array,
  w: jax.Array,
  finish: native.Finish = native.Finish(),
  *,
  windows: Windows,
  n: int,
  feature_groups: int = 1,
  path: str = '',
) -> jax.Array:
  """A stack of convolutions with weights of floats; no derivative.

      y[i, p, n] = sum_k w_kn x_i[p, k] + bias_n

  Nothing is multiplied by the zeros of `windows.lhs_dilation`. Sums are of float32;
  a window of padding alone gives the bias.

  Args:
    x: [..., images, height, width, channels] float32 or bfloat16.
    w: [..., feature_groups, panels, height * width * channels, 16] float32,
      `layout.to_float_panels` of the kernel of each group; or [..., height * width,
      columns], `layout.to_float_taps`, where channels are kept apart.
    finish: what is done with results; numbers of columns as for `conv`.
    windows: where they are.
    n: features of one of their groups; all, where channels are kept apart.
    feature_groups: how many groups of features; 0 where channels are kept apart.
    path: an instruction path; '' for the best.

  Returns:
    [..., images, out height, out width, features] float32.

  Raises:
    RuntimeError: the library was not built.
  """
  apart = feature_groups == 0
  of_columns = 2 if apart else 3
  if not apart:
    w = _grouped(w, feature_groups, 3)
    bias, after = (
      None if p is None else _grouped(p, feature_groups, 2)
      for p in (finish.bias, finish.after)
    )
    finish = dataclasses.replace(finish, bias=bias, after=after)
  return native.call(
    'float_conv',
    [(x, 4), (w, 2 if apart else 4)],
    [(None, of_columns), (None, of_columns)],
    native.Rounding(),
    finish,
    (
      x.shape[-4],
      *windows.count(*x.shape[-3:-1]),
      n if apart else feature_groups * n,
    ),
    jnp.float32,
    apart=apart,
    n=np.int64(n),
    windows=windows.attribute(),
    path=path,
  )


def _grouped(p, feature_groups, inner):
  """With an axis of groups of features, of which there may be one."""
  if feature_groups > 1:
    return p
  return p.reshape(*p.shape[:-inner], 1, *p.shape[-inner:])
