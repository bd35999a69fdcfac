"""What to make of a weight, in the field's words, and `quantize`.

W8A16 says weights of 8 bits, activations of 16: as they are. W8A8, W4A8, W4A4 and
FP8_DYNAMIC also round the activations at run time; FP8 in ranges that were
calibrated. MXFP8, MXFP4 and NVFP4 are the block formats of those names.
"""

import collections
from collections.abc import Sequence
import dataclasses
import difflib
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib

Spec = spec_lib.Spec


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How a weight, the operand that it meets, and gradients become codes.

  Each is a `Spec`, or the name of a format for `Spec(format)`.

  Attributes:
    weight: how the weight is stored.
    act: how the other operand is rounded in products; None to leave it.
    grad: while training, how the incoming gradient and the operands of the two
      products of the backward pass are rounded; None for float.
  """

  weight: Spec = Spec('int8')
  act: Spec | None = None
  grad: Spec | None = None

  def __post_init__(self):
    for name, default in (
      ('weight', 'channel'),
      ('act', 'token'),
      ('grad', 'token'),
    ):
      value = getattr(self, name)
      if isinstance(value, str):
        object.__setattr__(self, name, Spec(value, default))
      elif not isinstance(value, Spec) and (
        value is not None or name == 'weight'
      ):
        raise ValueError(
          f'{name}={value!r}; give a jc.Spec or the name of a format.'
        )
    if self.weight.learn in ('pact', 'ema'):
      raise ValueError(
        f"learn={self.weight.learn!r} is for activations; weights have 'lsq'."
      )
    if self.weight.static:
      raise ValueError('static=True is for activations; a weight is always.')
    if self.act is not None and self.act.learn and not self.act.static:
      raise ValueError(
        f'Activations {self.act.describe()!r}: a range that is learned is not'
        " measured at run time. Say 'static', too:"
        f" '{self.act.format} tensor static {self.act.learn}'."
      )
    if self.grad is not None and self.grad not in (
      dataclasses.replace(
        Spec(self.grad.format, granularity),
        symmetric=self.grad.symmetric,
        rounding=self.grad.rounding,
      )
      for granularity in ('token', 'channel')
    ):
      raise ValueError(
        f'Gradients {self.grad.describe()!r}: they have one measured float32 scale'
        " a token. Only 'asym' and 'stochastic' go with their format."
      )
    if self.grad is not None and (
      self.act is None or self.act.numbers.integer != self.grad.numbers.integer
    ):
      raise ValueError(
        'Gradients are multiplied with activations and weights in the format of'
        f' `act`, integers with integers, floats with floats; {self.grad.format}'
        f' does not go with {self.act.format if self.act else None}.'
      )

  def describe(self) -> str:
    """In a few words."""
    words = [self.weight.describe()]
    if self.act:
      words.append(f'{self.act.describe()} activations')
    if self.grad:
      words.append(f'{self.grad.describe()} gradients')
    return ', '.join(words)


_INT8 = Spec('int8', 'token')
_W4 = Spec('int4', 'group', 128, scale='bfloat16')
_MX = functools.partial(Spec, granularity='group', group=32, scale='e8m0')
_NV = Spec('e2m1', 'group', 16, scale='e4m3')

W8A16 = Scheme(Spec('int8'))
W8A8 = Scheme(Spec('int8'), act=_INT8)
W4A16 = Scheme(_W4)
W4A8 = Scheme(_W4, act=_INT8)
W4A4 = Scheme(Spec('int4'), act=Spec('int4', 'token'))
W2A16 = Scheme(Spec('int2', 'group', 64, symmetric=False, scale='bfloat16'))
FP8 = Scheme(Spec('e4m3', 'tensor'), act=Spec('e4m3', 'tensor', static=True))
FP8_DYNAMIC = Scheme(Spec('e4m3'), act=Spec('e4m3', 'token'))
NF4 = Scheme(Spec('nf4', 'group', 64, scale='int8'))
MXFP8 = Scheme(_MX('e4m3'), act=_MX('e4m3'))
MXFP6 = Scheme(_MX('e2m3'), act=_MX('e2m3'))
MXFP4 = Scheme(_MX('e2m1'), act=_MX('e2m1'))
MXINT8 = Scheme(_MX('int8'), act=_MX('int8'))
NVFP4 = Scheme(_NV, act=_NV)

PRESETS = {
  'W8A16': W8A16,
  'W8A8': W8A8,
  'W4A16': W4A16,
  'W4A8': W4A8,
  'W4A4': W4A4,
  'W2A16': W2A16,
  'FP8': FP8,
  'FP8_DYNAMIC': FP8_DYNAMIC,
  'NF4': NF4,
  'MXFP8': MXFP8,
  'MXFP6': MXFP6,
  'MXFP4': MXFP4,
  'MXINT8': MXINT8,
  'NVFP4': NVFP4,
}


def scheme(value: Scheme | Spec | str | None) -> Scheme | None:
  """A scheme from itself, the spec of a weight, words, or None.

  Words are the name of a preset; or those of a spec (`jc.Spec.describe`) for the
  weight, then after commas for activations and for gradients: 'int4 g128',
  'int4 tensor, int8 token', 'e4m3, e4m3, e5m2'.
  """
  if value is None or isinstance(value, Scheme):
    return value
  if isinstance(value, Spec):
    return Scheme(value)
  text = value if isinstance(value, str) else ''
  words = [w.strip() for w in text.split(',')]
  if text not in PRESETS and words[0].split(' ')[0] not in formats.FORMATS:
    close = difflib.get_close_matches(str(value), PRESETS, n=1)
    guess = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(
      f'{value!r} is no scheme.{guess} Presets: {list(PRESETS)}; or words that'
      " begin with a format, as in 'int4 g128' (formats:"
      f' {list(formats.FORMATS)}); or write a jc.Scheme(...).'
    )
  if text in PRESETS:
    return PRESETS[text]
  if len(words) > 3:
    raise ValueError(
      f'{value!r} has {len(words)} parts; weight, activations and gradients are'
      ' expected.'
    )
  weight, *others = words
  return Scheme(
    spec_lib.parse(weight), *(spec_lib.parse(w, 'token') for w in others)
  )


def layout(path: str, leaf: Any, spec: Spec, uses: dict | None):
  """What shares a scale, along which axis codes are packed, what is stacked.

  Args:
    path: name of the leaf, for messages.
    leaf: anything with a shape.
    spec: of the weight.
    uses: what `jc.uses(apply)(params, x)` returned, or None.

  Returns:
    blocks ((axis, size), ...), packed axis, stacked axes; from the end.
  """
  contracted, stacked, free = uses_lib.axes(path, leaf, uses)
  if spec.granularity in ('channel', 'token') and not free:
    raise ValueError(
      f'{path}, shape {leaf.shape}, is contracted over all of its axes'
      f' ({_sources(uses, path)}), so it has no output channels. Use a scheme'
      " with granularity='tensor', or leave it as it is."
    )
  axis = max(contracted, key=lambda a: (leaf.shape[a], a))
  sizes = spec.group if isinstance(spec.group, tuple) else (spec.group,) * 2
  whole = lambda axes: tuple((a, 0) for a in axes)
  blocks = {
    'tensor': whole(contracted + free),
    'group': ((axis, sizes[0]),),
    'block': ((axis, sizes[0]), *((a, sizes[1]) for a in free[-1:])),
  }.get(spec.granularity, whole(contracted))
  return tuple(sorted(blocks)), axis, stacked


def quantize_leaf(
  path: str,
  x: Any,
  scheme: Scheme,
  uses: dict | None,
  *,
  act_range: tuple[jax.Array, jax.Array | None] | None = None,
  importance: jax.Array | None = None,
  key: jax.Array | None = None,
) -> qarray.QArray | qarray.QDotArray:
  """Quantises one weight under a scheme.

  Args:
    path: its name, for messages.
    x: floating array, or a compressed leaf whose meaning is quantised.
    scheme: how.
    uses: what `jc.uses(apply)(params, x)` returned, or None for Flax's
      convention.
    act_range: (scale, zero) of a static activation, each of the rank of the
      weight and 1 on all but stacked axes.
    importance: [stacked..., contracted] weights of the squared errors, the mean
      squares of what the weight meets, say.
    key: for stochastic rounding.

  Raises:
    ValueError: not floating, not finite, empty, axes that cannot be told, or a
      static activation without a range.
  """
  x = jnp.asarray(array.materialize(x))
  check_values(path, x)
  blocks, axis, stacked = layout(path, x, scheme.weight, uses)
  if importance is not None:
    importance = _spread(path, importance, x, uses)
  q = _rounded(x, importance, key, scheme.weight, blocks, axis, stacked)
  if scheme.act is None:
    return q
  if scheme.act.static and act_range is None:
    raise no_range(path, scheme)
  scale, zero = act_range or (None, None)
  return qarray.QDotArray(q, scale, zero, scheme.act)


def no_range(path: str, scheme: Scheme) -> ValueError:
  return ValueError(
    f'{path} has a scheme with static activations ({scheme.describe()}), and no'
    ' range of them. Pass ranges=jc.calibrate(apply, params, rules, batches, uses),'
    ' or leave out "static" to measure at run time.'
  )


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _rounded(x, importance, key, spec, blocks, packed, stacked):
  return qarray.quantize_array(
    x,
    spec,
    blocks,
    packed=packed,
    stacked=stacked,
    importance=importance,
    key=key,
  )


def _spread(path, importance, x, uses):
  """[stacked..., contracted] to the rank of the weight, 1 on free axes."""
  axes = uses_lib.axes(path, x, uses)
  of = lambda which: [x.shape[a] for a in which]
  wanted = (*of(axes.stacked), math.prod(of(axes.contracted)))
  if importance.shape not in (wanted, wanted[-1:]):
    raise ValueError(
      f'The importance of {path} has shape {importance.shape}; {wanted} is'
      f' expected: stacked axes {axes.stacked}, then contracted ones'
      f' {axes.contracted}.'
    )
  lead = of(axes.stacked) if importance.ndim > 1 else [1] * len(axes.stacked)
  importance = importance.reshape(*lead, *of(axes.contracted))
  importance = importance.reshape(importance.shape + (1,) * len(axes.free))
  order = (*axes.stacked, *axes.contracted, *axes.free)
  return jnp.transpose(importance, [order.index(a) for a in range(-x.ndim, 0)])


def _sources(uses, path):
  return '; '.join(f'{u.primitive} at {u.source}' for u in uses[path])


def check_values(path: str, x: jax.Array):
  """Raises ValueError for what has no codes: integers, nothing, NaN, infinity."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'{path} is {x.dtype}; only floating leaves are quantised. Put'
      f' (r"{path}", None) before the rule that takes it.'
    )
  if x.size == 0:
    raise ValueError(f'{path} is empty, shape {x.shape}: nothing to quantise.')
  if not isinstance(x, jax.core.Tracer):
    bad = int(x.size - _finite(x))
    if bad:
      raise ValueError(
        f'{path} holds {bad} values that are NaN or infinite in float32, of'
        f' {x.size}.'
        ' Quantising would spread them over their scales; find where training'
        ' went wrong.'
      )


@jax.jit
def _finite(x):
  return jnp.isfinite(x.astype(jnp.float32)).sum()


def quantize(
  params: Any,
  rules: Sequence[tuple[str, Scheme | Spec | str | None]],
  uses: dict | None = None,
  *,
  ranges: dict | None = None,
  importance: dict | None = None,
  key: jax.Array | None = None,
  donate: bool = False,
) -> Any:
  """Turns the weights that rules name into codes.

  Args:
    params: a tree of arrays: dicts, `nnx.State`, FrozenDict, dataclasses. Leaves
      that are compressed already (masks, say) are quantised by their meaning.
    rules: ordered `(regex, scheme)`; a scheme is `jc.W8A8` and the like, a
      `jc.Scheme`, the `jc.Spec` of a weight, a preset's name, or None for "as it
      is". First match wins, every leaf must be covered and every rule used.
    uses: what `jc.uses(apply)(params, x)` returned; tells which axes are
      contracted. Without it Flax's convention is used (last axis out), and what
      it does not settle is refused.
    ranges: {path: (scale, zero)} of static activations, from `jc.calibrate`.
    importance: {path: [stacked..., contracted]} weights of squared errors for
      'mse' ranges: the sum of squares that `jc.observe` finds.
    key: for stochastic rounding; a different one is drawn for each leaf.
    donate: delete each array of `params` once it is quantised, so that no more
      than one leaf is held twice.

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
  known_paths('ranges', ranges, schemes)
  known_paths('importance', importance, schemes)
  # Of arrays that are there twice, the last to be quantised deletes them.
  left = collections.Counter(
    id(part)
    for _, x in rules_lib.named_leaves(params)
    for part in jax.tree.leaves(x)
  )
  order = {path: i for i, path in enumerate(schemes)}

  def one(path, x):
    if schemes[path] is None:
      return x
    mine = None if key is None else jax.random.fold_in(key, order[path])
    q = quantize_leaf(
      path,
      x,
      schemes[path],
      uses,
      act_range=(ranges or {}).get(path),
      importance=(importance or {}).get(path),
      key=mine,
    )
    if donate:
      jax.block_until_ready(q)
      for part in jax.tree.leaves(x):
        left[id(part)] -= 1
        if not left[id(part)]:
          part.delete()
    return q

  return rules_lib.map_named(one, params)


def known_paths(what: str, given: dict | None, leaves: dict) -> None:
  """Raises ValueError where something is given for a leaf that is not there."""
  for path in given or {}:
    if path not in leaves:
      close = difflib.get_close_matches(path, leaves, n=1)
      guess = f' Did you mean {close[0]!r}?' if close else ''
      raise ValueError(
        f'{what} has {path!r}, and there is no such leaf.{guess} Leaves:'
        f' {list(leaves)[:8]}.'
      )


def by_leaf(rules, params: Any) -> dict[str, Scheme | None]:
  """The scheme of each leaf, by its path."""
  return {p: scheme(s) for p, s in rules_lib.match(rules, params).items()}
