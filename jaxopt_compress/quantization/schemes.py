"""What to make of a weight, in the field's words, and `quantize`.

W8A16: weights int8, activations as they are. W8A8: both int8, the activations
rounded per token at run time. W4A16: weights int4 in groups of 128.
"""

from collections.abc import Sequence
import dataclasses
import difflib
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.core import uses as uses_lib
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization import qarray


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How a weight, and the operand that it meets, become integers.

  Attributes:
    weight: 'int8' or 'int4' (two to a byte).
    granularity: what shares a scale: 'tensor' (one for each matrix, so one for
      each layer of a stack), 'channel' (one for each output), 'group'.
    group: with 'group', how many entries along the longest contracted axis.
    act: 'int8' to round the other operand per token; None to leave it.
    scale_dtype: 'float32' or 'bfloat16'.
  """

  weight: str = 'int8'
  granularity: str = 'channel'
  group: int = 0
  act: str | None = None
  scale_dtype: str = 'float32'

  def __post_init__(self):
    _one_of('weight', self.weight, tuple(numerics.FORMATS))
    _one_of('granularity', self.granularity, ('tensor', 'channel', 'group'))
    _one_of('act', self.act, (None, 'int8'))
    _one_of('scale_dtype', self.scale_dtype, ('float32', 'bfloat16'))
    if (self.granularity == 'group') != (self.group > 0):
      raise ValueError(
        "granularity='group' and a positive group go together, not"
        f' {self.granularity!r} with group={self.group}.'
      )


def _one_of(what, value, choices):
  if value not in choices:
    raise ValueError(f'{what}={value!r}; choose one of {choices}.')


W8A16 = Scheme('int8', 'channel')
W8A8 = Scheme('int8', 'channel', act='int8')
W4A16 = Scheme('int4', 'group', group=128, scale_dtype='bfloat16')

PRESETS = {'W8A16': W8A16, 'W8A8': W8A8, 'W4A16': W4A16}


def scheme(value: Scheme | str | None) -> Scheme | None:
  """A scheme from itself, its preset name, or None."""
  if value is None or isinstance(value, Scheme):
    return value
  if not isinstance(value, str) or value not in PRESETS:
    close = difflib.get_close_matches(str(value), PRESETS, n=1)
    guess = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(
      f'{value!r} is no scheme.{guess} Presets: {list(PRESETS)}; or write a'
      ' jc.Scheme(...).'
    )
  return PRESETS[value]


def quantize_leaf(
  path: str, x: Any, scheme: Scheme, uses: dict | None
) -> qarray.QArray | qarray.QDotArray:
  """Quantises one weight under a scheme.

  Args:
    path: its name, for messages.
    x: floating array, or a compressed leaf whose meaning is quantised.
    scheme: how.
    uses: what `jc.uses(apply)(params, x)` returned, or None for Flax's
      convention.

  Raises:
    ValueError: not floating, not finite, empty, or axes that cannot be told.
  """
  x = jnp.asarray(array.materialize(x))
  _check_values(path, x)
  contracted, _, free = uses_lib.axes(path, x, uses)
  if scheme.granularity == 'channel' and not free:
    raise ValueError(
      f'{path}, shape {x.shape}, is contracted over all of its axes'
      f' ({_sources(uses, path)}), so it has no output channels. Use a scheme'
      " with granularity='tensor', or leave it as it is."
    )
  shared = contracted + free if scheme.granularity == 'tensor' else contracted
  axis = max(contracted, key=lambda a: (x.shape[a], a))
  if scheme.group:
    shared = (axis,)
  q = qarray.quantize_array(
    x,
    scheme.weight,
    shared,
    axis=axis,
    group=scheme.group,
    scale_dtype=jnp.dtype(scheme.scale_dtype),
  )
  return qarray.QDotArray(q, scheme.act) if scheme.act else q


def _sources(uses, path):
  return '; '.join(f'{u.primitive} at {u.source}' for u in uses[path])


def _check_values(path, x):
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'{path} is {x.dtype}; only floating leaves are quantised. Put'
      f' (r"{path}", None) before the rule that takes it.'
    )
  if x.size == 0:
    raise ValueError(f'{path} is empty, shape {x.shape}: nothing to quantise.')
  if not isinstance(x, jax.core.Tracer):
    bad = int(x.size - jnp.isfinite(x.astype(jnp.float32)).sum())
    if bad:
      raise ValueError(
        f'{path} holds {bad} values that are NaN or infinite in float32, of'
        f' {x.size}.'
        ' Quantising would spread them over their scales; find where training'
        ' went wrong.'
      )


def quantize(
  params: Any,
  rules: Sequence[tuple[str, Scheme | str | None]],
  uses: dict | None = None,
) -> Any:
  """Turns the weights that rules name into integers (round to nearest).

  Args:
    params: a tree of arrays: dicts, `nnx.State`, FrozenDict, dataclasses. Leaves
      that are compressed already (masks, say) are quantised by their meaning.
    rules: ordered `(regex, scheme)`; a scheme is `jc.W8A8` and the like, a
      `jc.Scheme`, a preset's name, or None for "as it is". First match wins,
      every leaf must be covered and every rule used.
    uses: what `jc.uses(apply)(params, x)` returned; tells which axes are
      contracted. Without it Flax's convention is used (last axis out), and what
      it does not settle is refused.

  Returns:
    The tree with `QArray` leaves (`QDotArray` where activations are rounded).

  Raises:
    ValueError: uncovered leaf, unused rule, unknown scheme, or a leaf that
      cannot be quantised as its rule says.

  >>> q = quantize({'kernel': jnp.ones((4, 2))}, [(r'kernel', W8A16)])
  >>> q['kernel'].describe(), array.nbytes(q)
  ('int8 channel', 16)
  """
  schemes = by_leaf(rules, params)

  def one(path, x):
    if schemes[path] is None:
      return x
    return quantize_leaf(path, x, schemes[path], uses)

  return rules_lib.map_named(one, params)


def by_leaf(rules, params: Any) -> dict[str, Scheme | None]:
  """The scheme of each leaf, by its path."""
  return {p: scheme(s) for p, s in rules_lib.match(rules, params).items()}
