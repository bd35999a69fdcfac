"""Starting a network from another with the same layout but a different size.

    width   smaller target: the leading entries of each axis, or those of `keep`
            larger target:  the source in its leading corner, the rest filled
    depth   target layer i starts from source layer `layers.layer_map(...)[i]`

Large to small is Samragh et al. 2023, https://arxiv.org/abs/2312.09299 (weight
subcloning), with the order of importance left to `keep`. Small to large in depth, by
repeating each layer in place, is the interpolation of Chang et al. 2017,
https://arxiv.org/abs/1710.10348, who also halve the step of the residual branch.

Taking leading entries is consistent everywhere: all leaves order their channels
alike, so a channel is kept or dropped in every leaf that has it. Where one axis packs
two (heads * head_dim), its leading entries are whole heads only if head_dim is the
same in both networks.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation import layers as layers_lib

HOW = ('copy', 'stacked', None)
FILL = ('target', 'zeros')


def warm_start(
  target_params: Any,
  source_params: Any,
  *,
  rules: Sequence[tuple[str, str | None]] = ((r'.*', 'copy'),),
  layers: str = 'uniform',
  keep: Sequence[tuple[str, Mapping[int, Any] | None]] | None = None,
  fill: str = 'target',
) -> Any:
  """The target's parameters, started from the source's.

  Layers in a list ('blocks/0/...', 'blocks/1/...') are matched by `layers` where
  target and source have different numbers of them.

  Args:
    target_params: freshly initialised, as the new model needs it.
    source_params: trained. Compressed leaves of both count for what they stand for,
      and what is started is plain.
    rules: ordered `(regex, how)` over the paths of both trees. `how` is 'copy';
      'stacked' for leaves whose first axis is depth (scanned layers), which 'copy'
      would cut like any other axis; or None to keep what the target has, also where
      only one side has the leaf.
    layers: which source layer a target layer starts from: 'uniform', 'first' or 'last';
      see `layers.layer_map`.
    keep: ordered `(regex, {axis: indices} | None)` over the target's paths: the
      source's entries to keep along an axis where it is larger, axes counted from
      the end. Default: the leading ones.
    fill: what entries that the source does not have become: 'target' (its own
      initial values) or 'zeros' (new inputs then change nothing at first, but a
      neuron with neither inputs nor outputs learns nothing).

  Returns:
    A tree like `target_params`, same shapes and dtypes.

  Raises:
    ValueError: leaves of one side that the other does not have, listed; ranks that
      differ; `keep` that does not fit.

  >>> small, large = {'w': jnp.zeros((1, 2))}, {'w': jnp.arange(6.).reshape(2, 3)}
  >>> warm_start(small, large)['w'].tolist()
  [[0.0, 1.0]]
  >>> warm_start(large, {'w': 9 * jnp.ones((1, 2))})['w'].tolist()
  [[9.0, 9.0, 2.0], [3.0, 4.0, 5.0]]
  """
  choices.one_of('fill', fill, FILL, '=')
  target = dict(rules_lib.named_leaves(target_params))
  source = dict(rules_lib.named_leaves(source_params))
  how = rules_lib.match(rules, dict.fromkeys([*target, *source], 0))
  for choice in how.values():
    choices.one_of('how', choice, HOW, '=')
  kept = rules_lib.match(keep, target_params) if keep else {}
  starts, skipped = layers_lib.starts(target, source, layers)
  _check_matched(source, starts, skipped, how)

  def started(path, t):
    if how[path] is None or starts[path] is None:
      return t
    t, s = array.materialize((t, source[starts[path]]))
    try:
      if how[path] == 'stacked':
        return _stacked(t, s, layers, kept.get(path), fill)
      return _corner(t, _kept_entries(s, t.shape, kept.get(path)), fill)
    except ValueError as e:
      raise ValueError(f'{path} from {starts[path]}: {e}') from e

  return rules_lib.map_named(started, target_params)


def _check_matched(source, starts, skipped, how):
  missing = [
    path
    for path, start in starts.items()
    if how[path] is not None and start is not None and start not in source
  ]
  # A source layer that no target layer starts from is dropped on purpose.
  used = set(starts.values()) | skipped
  unused = [p for p in source if p not in used and how[p] is not None]
  if missing or unused:
    first = (missing + unused)[0]
    raise ValueError(
      f'Only the target has {missing[:8]} ({len(missing)} leaves), only the source'
      f' {unused[:8]} ({len(unused)}). If that is right, say so with a rule'
      f' (r"{re.escape(first)}", None) before the others.'
    )


def _stacked(t, s, layers, kept, fill):
  """Layers of a leaf whose first axis is depth."""
  start = layers_lib.layer_map(t.shape[0], s.shape[0], layers)
  # A layer that starts from none takes layer 0 here, so that the gather has an index
  # for it, and gets its own values back below.
  s = s[np.array([i or 0 for i in start])]
  out = _corner(t, _kept_entries(s, t.shape, kept), fill)
  own = np.array([i for i, layer in enumerate(start) if layer is None], int)
  return out.at[own].set(t[own]) if len(own) else out


def _kept_entries(s, shape, kept):
  """The entries of `s` that a target of `shape` takes."""
  if s.ndim != len(shape):
    raise ValueError(
      f'rank {s.ndim}, shape {s.shape}, does not fit rank {len(shape)}, shape'
      f' {tuple(shape)}. Give it a rule with None, or reshape the source.'
    )
  # Rules count axes from the end; the loop counts them from the front.
  kept = {a % s.ndim: np.asarray(i) for a, i in (kept or {}).items()}
  for axis, n in enumerate(shape):
    indices = kept.get(axis, np.arange(min(n, s.shape[axis])))
    if axis in kept:
      _check_kept(indices, axis - s.ndim, n, s.shape[axis])
    s = jnp.take(s, indices, axis=axis)
  return s


def _corner(t, s, fill):
  """`s` in the leading corner of an array like `t`."""
  rest = jnp.zeros_like(t) if fill == 'zeros' else jnp.asarray(t)
  return rest.at[tuple(slice(n) for n in s.shape)].set(s.astype(t.dtype))


def _check_kept(indices, axis, wanted, there):
  unique = np.unique(indices)
  if (
    indices.ndim != 1
    or len(indices) != wanted
    or len(unique) != wanted
    or unique.min() < 0
    or unique.max() >= there
  ):
    raise ValueError(
      f'keep of axis {axis} is {indices}; {wanted} different indices below'
      f' {there} are expected.'
    )
