"""Turns weights into codes: `jc.quantize`, leaf by leaf.

    scale = of what shares one        what is contracted together, or a part of it
    code  = round(weight / scale)

Which axes of a weight are contracted, stacked or free, its uses tell; which of them
share a scale, its scheme.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import math
import re
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import modules
from jaxopt_compress.analysis import storage
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import agreement
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import schemes as schemes_lib
from jaxopt_compress.quantization import spec as spec_lib

_PRUNED = 0.2  # so many zeros are no accident
# Rows of results below this cosine with the float ones, on average, are others.
_COLLAPSED = 0.9
# Below this one, who wants to know what it is lost by is told whom to ask.
_NEAR = 0.99


def layout(path: str, leaf: Any, spec: spec_lib.Spec, uses: dict | None):
  """What shares a scale, along which axis codes are packed, what is stacked.

  Args:
    path: name of the leaf, for messages.
    leaf: anything with a shape.
    spec: of the weight.
    uses: what `jc.uses(apply)(params, x)` returned, or None.

  Returns:
    blocks ((axis, size), ...), packed axis, stacked axes; from the end.
  """
  if uses is None and spec.granularity == 'tensor' and len(leaf.shape) == 2:
    # A matrix that has one scale has it whichever of its axes is contracted.
    return _whole((-2, -1)), -2, ()
  contracted, stacked, free = uses_lib.axes(path, leaf, uses)
  if spec.granularity in ('channel', 'token') and not free:
    raise ValueError(
      f'{path}, shape {leaf.shape}, is contracted over all of its axes'
      f' ({_sources(uses, path)}), so it has no output channels. Use a scheme'
      " with granularity='tensor', or leave it as it is."
    )
  axis = max(contracted, key=lambda a: (leaf.shape[a], a))
  sizes = spec.group if isinstance(spec.group, tuple) else (spec.group,) * 2
  group = _group(leaf.shape, contracted, axis, sizes[0])
  blocks = {
    'tensor': _whole(contracted + free),
    'group': group,
    'block': (*group, *((a, sizes[1]) for a in free[-1:])),
  }.get(spec.granularity, _whole(contracted))
  return tuple(sorted(blocks)), axis, stacked


def _group(shape, contracted, axis, size):
  """At most `size` entries along `axis`; if it is shorter, whole axes beside it.

  The window of a depthwise convolution, say, has one channel: a group is the window.
  """
  blocks, room = [(axis, size)], size // shape[axis]
  # From the last axis on, as neighbours in memory are those that kernels read together.
  for a in sorted(set(contracted) - {axis}, reverse=True):
    if shape[a] > room:
      break
    blocks.append((a, 0))
    room //= shape[a]
  return tuple(blocks)


def _whole(axes):
  """Blocks that hold all entries along some axes."""
  return tuple((a, 0) for a in axes)


def quantize_leaf(
  path: str,
  x: Any,
  scheme: schemes_lib.Scheme,
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
    uses: what `jc.uses(apply)(params, x)` returned, or None, as for `quantize`.
    act_range: (scale, zero) of a static activation, each of the rank of the
      weight and 1 on all but stacked axes.
    importance: [stacked..., contracted] weights of the squared errors, the mean
      squares of what the weight meets, say.
    key: for stochastic rounding.

  Raises:
    ValueError: not floating, not finite, empty, axes that cannot be told, or a
      static activation without a range.
  """
  if not hasattr(x, 'dtype'):
    raise ValueError(
      f'{path} is {x!r}, which is no array. Leave it as it is: put'
      f' (r"{re.escape(path)}", None) before the rule that takes it.'
    )
  x = jnp.asarray(array.materialize(x))
  _check_kind(path, x)
  blocks, axis, stacked = layout(path, x, scheme.weight, uses)
  if importance is not None:
    importance = _spread(path, importance, x, uses)
  # One program for each shape: counting and rounding are compiled together.
  how = scheme.weight, blocks, axis, stacked
  q, bad = _rounded(x, importance, key, *how)
  _check_finite(path, x, bad)
  _tell_lost_zeros(path, x, scheme.weight)
  if scheme.act is None:
    return q
  if scheme.act.static and act_range is None:
    raise no_range(path, scheme)
  scale, zero = act_range or (None, None)
  return qarray.QDotArray(q, scale, zero, scheme.act)


def no_range(path: str, scheme: schemes_lib.Scheme) -> ValueError:
  """The error of a scheme that needs a range which was not given."""
  return ValueError(
    f'{path} has a scheme with static activations ({scheme.describe()}), and no'
    ' range of them. Pass ranges=jc.calibrate(apply, params, rules, batches, uses),'
    ' or leave out "static" to measure at run time.'
  )


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _rounded(x, importance, key, spec, blocks, packed, stacked):
  """The leaf, and how many values of `x` have no codes."""
  q = qarray.quantize_array(
    x,
    spec,
    blocks,
    packed=packed,
    stacked=stacked,
    importance=importance,
    key=key,
  )
  return q, _count_bad(x)


def _spread(path, importance, x, uses):
  """[stacked..., contracted] to the rank of the weight, 1 on free axes."""
  axes = uses_lib.axes(path, x, uses)
  stacked = [x.shape[a] for a in axes.stacked]
  contracted = [x.shape[a] for a in axes.contracted]
  wanted = (*stacked, math.prod(contracted))
  if importance.shape not in (wanted, wanted[-1:]):
    raise ValueError(
      f'The importance of {path} has shape {importance.shape}; {wanted} is'
      f' expected: stacked axes {axes.stacked}, then contracted ones'
      f' {axes.contracted}.'
    )
  if not isinstance(importance, jax.core.Tracer):
    known = np.asarray(importance, np.float32)
    if not (np.isfinite(known) & (known >= 0)).all():
      raise ValueError(
        f'The importance of {path}, weights of squared errors, has entries that'
        ' are negative or not finite. Look for where the network overflows on'
        ' the data that they come from.'
      )
  lead = stacked if importance.ndim > 1 else [1] * len(stacked)
  # Axes are made in the order stacked, contracted, free, and put where the weight
  # has them afterwards.
  importance = importance.reshape(*lead, *contracted, *(1 for _ in axes.free))
  order = (*axes.stacked, *axes.contracted, *axes.free)
  return jnp.transpose(importance, [order.index(a) for a in range(-x.ndim, 0)])


def _sources(uses, path):
  return '; '.join(f'{u.primitive} at {u.source}' for u in uses[path])


def check_values(path: str, x: jax.Array):
  """Raises ValueError for what has no codes: integers, nothing, NaN, infinity."""
  _check_kind(path, x)
  _check_finite(path, x)


def _check_kind(path, x):
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'{path} is {x.dtype}; only floating leaves are quantised. Put'
      f' (r"{path}", None) before the rule that takes it.'
    )
  if x.size == 0:
    raise ValueError(f'{path} is empty, shape {x.shape}: nothing to quantise.')


def _check_finite(path, x, bad=None):
  """Raises where some of a known array are not finite; `bad`: how many, if known."""
  if isinstance(x, jax.core.Tracer):
    return
  if bad is None or isinstance(bad, jax.core.Tracer):
    # Inside a program that is traced, the count of a known array would be, too.
    with jax.ensure_compile_time_eval():
      bad = _count_bad(x)
  if int(bad):
    raise ValueError(
      f'{path} holds {int(bad)} values that are NaN or infinite in float32, of'
      f' {x.size}.'
      ' Quantising would spread them over their scales; find where training'
      ' went wrong.'
    )


def _tell_lost_zeros(path, x, spec):
  """Warns where a pruned weight will have no zeros any more."""
  if spec.keeps_zeros or isinstance(x, jax.core.Tracer):
    return
  zeros = float(jnp.mean(x == 0, dtype=jnp.float32))
  if zeros >= _PRUNED:
    warnings.warn(lost_zeros(path, spec), stacklevel=4)


def lost_zeros(path: str, spec: spec_lib.Spec) -> str:
  """What is said of pruned weights in a format that has no zero for them."""
  return (
    f'{path} is pruned, and its zeros become other numbers: {spec.describe()!r} has no'
    ' code for zero. Quantise pruned weights in symmetric formats other than binary, or'
    ' in integers of three bits or more.'
  )


@jax.jit
def _count_bad(x):
  return (~jnp.isfinite(x.astype(jnp.float32))).sum()


def quantize(
  params: Any,
  rules: Sequence[tuple[str, schemes_lib.Scheme | spec_lib.Spec | str | None]],
  uses: dict | None = None,
  *,
  ranges: dict | None = None,
  importance: dict | None = None,
  key: jax.Array | None = None,
  donate: bool = False,
  check: Iterable[Any] | None = None,
  apply: Callable | None = None,
) -> Any:
  """Turns the weights that rules name into codes.

  Args:
    params: a tree of arrays: dicts, `nnx.State`, FrozenDict, dataclasses. Leaves
      that are compressed already (masks, say) are quantised by their meaning, and
      of abstract ones (`jax.ShapeDtypeStruct`) abstract ones are made.
    rules: ordered `(regex, scheme)`; a scheme is `jc.W8A8` and the like, a
      `jc.Scheme`, the `jc.schemes.Spec` of a weight, a preset's name, or None for "as it
      is". First match wins, every leaf must be covered and every rule used.
    uses: what `jc.uses(apply)(params, x)` returned; tells which axes are
      contracted. Without it only leaves called `kernel` are taken, [in, out] as
      Flax has them, and matrices with one scale; others are refused, a bare array
      among them.
    ranges: {path: (scale, zero)} of static activations, from `jc.calibrate`.
    importance: {path: [stacked..., contracted]} weights of squared errors for
      'mse' ranges: the sum of squares that `jc.observe` finds.
    key: for stochastic rounding; a different one is drawn for each leaf.
    donate: delete each array of `params` once it is quantised, so that no more
      than one leaf is held twice.
    check: batches, as in `jc.calibrate`, on which the float network is compared with
      the quantised one: cosine and agreement are printed, below a cosine of .99 also
      the call of `jc.sensitivity` that says which weights are to blame, and a network
      that has collapsed is an error. None for no check.
    apply: the function of parameters and a batch that is checked; None where `params`
      is called itself, as NNX modules are.

  Returns:
    The tree with `QArray` leaves (`QDotArray` where activations are rounded).

  Raises:
    ValueError: uncovered leaf, unused rule, unknown scheme, or a leaf that
      cannot be quantised as its rule says; `apply` without `check`. With `check`,
      results that are no numbers any more, or whose mean cosine with the float ones
      is below 0.9.

  >>> q = quantize({'kernel': jnp.ones((4, 2))}, [(r'kernel', 'W8A16')])
  >>> q['kernel'].describe(), storage.nbytes(q)
  ('int8 channel', 16)
  """
  chosen = schemes_lib.by_leaf(rules, params)
  known_paths('ranges', ranges, chosen)
  known_paths('importance', importance, chosen)
  # Before arrays are deleted.
  reference = _reference(apply, params, check)
  before = storage.nbytes(params) if reference is not None else 0
  # Of arrays that are there twice, the last to be quantised deletes them.
  left = collections.Counter(
    id(part)
    for _, x in rules_lib.named_leaves(params)
    for part in jax.tree.leaves(x)
  )
  order = {path: i for i, path in enumerate(chosen)}

  def quantized(path, x):
    if chosen[path] is None:
      return x
    mine = None if key is None else jax.random.fold_in(key, order[path])
    made = functools.partial(
      quantize_leaf,
      path,
      scheme=chosen[path],
      uses=uses,
      act_range=(ranges or {}).get(path),
      importance=(importance or {}).get(path),
      key=mine,
    )
    if any(
      isinstance(part, jax.ShapeDtypeStruct) for part in jax.tree.leaves(x)
    ):
      return jax.eval_shape(made, x)
    q = made(x)
    # What a program that is traced has as a constant, it reads when it runs.
    if donate and not any(
      isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(q)
    ):
      jax.block_until_ready(q)
      _delete(x, left)
    return q

  out = modules.dress(rules_lib.map_named(quantized, params), params)
  if reference is not None:
    _judge(reference, out, before, _question(apply, uses, ranges))
  return out


def _delete(x, left: collections.Counter) -> None:
  """Deletes arrays of which no other leaf is `left` to be quantised."""
  for part in jax.tree.leaves(x):
    left[id(part)] -= 1
    # Numpy's have no memory on the device.
    if not left[id(part)] and isinstance(part, jax.Array):
      part.delete()


def _reference(apply, params, check) -> agreement.Reference | None:
  """What is compared with; None where no batches are given."""
  if check is not None:
    return agreement.Reference(_called(apply, params), params, check)
  if apply is not None:
    raise ValueError(
      'apply= is for check=, which is not given. Give check=batches, on which the'
      ' network is compared, or leave apply out.'
    )
  return None


def _called(apply, params) -> Callable:
  """What is checked: `apply`, or the module itself."""
  if apply is not None:
    return apply
  if not callable(params):
    raise ValueError(
      f'check=batches, and {type(params).__name__} is not called itself. Give the'
      ' function of parameters and a batch, too: apply=apply.'
    )
  return lambda module, *args, **kwargs: module(*args, **kwargs)


def _question(apply, uses, ranges) -> str:
  """The call that tells which weight costs how much, of a network that is checked."""
  called = 'apply' if apply is not None else 'lambda model, *x: model(*x)'
  given = dict(uses=uses, ranges=ranges)
  more = ''.join(f', {k}={k}' for k, v in given.items() if v is not None)
  return f'jc.sensitivity({called}, params, rules, batches{more})'


def _judge(reference, tree, before, question) -> None:
  """Prints how near a quantised network is; raises where it is another one.

  Args:
    reference: the float network.
    tree: the quantised one.
    before: bytes of the float one.
    question: the call that tells more.
  """
  found = reference.compare(tree)
  if not found.lost and found.cosine >= _COLLAPSED:
    after = storage.nbytes(tree)
    print(f'jc.quantize: {found}; {before:,} bytes are {after:,}')
    if found.cosine < _NEAR:
      print(f'Which weight costs how much, and what helps: {question}')
    return
  weights = reference.compare(array.map_leaves(_weight_alone, tree))
  raise ValueError(
    f'The quantised network is another one: {found}, and {_COLLAPSED} is the least'
    f' cosine. Of the weights alone, without what they meet: {weights}.'
    f' {question} tells which weight costs how much, and makes rules that hold.'
    ' To measure it anyway: jc.quantization.compare.'
  )


def _weight_alone(leaf):
  return leaf.weight if isinstance(leaf, qarray.QDotArray) else leaf


def known_paths(what: str, given: dict | None, leaves: dict) -> None:
  """Raises ValueError where something is given for a leaf that is not there."""
  for path in given or {}:
    if path not in leaves:
      raise ValueError(
        f'{what} has {path!r}, and there is no such leaf.'
        f'{choices.guess(path, leaves)} Leaves: {list(leaves)[:8]}.'
      )
