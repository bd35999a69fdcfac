"""Starting a network from another with the same layout but a different size.

    width   smaller target: the leading entries of each axis, or those of `keep`
            larger target:  the source in its leading corner, the rest filled
    depth   target layer i starts from source layer `layers.layer_map(...)[i]`

Nothing is asked of a program here: names and shapes are all that is known. Where the
program is at hand, `jc.grow` starts a larger network that computes the same, and
`jc.select` with `jc.shrink` leave the channels and layers that matter.

Large to small is the form of Samragh et al. 2023, https://arxiv.org/abs/2312.09299
(weight subcloning), with the order of importance left to `keep`. That of the paper,
channels of a residual stream ranked by what they are on data in all layers together, is

    structure = jc.structure(apply)(params, x)
    plan = jc.select(structure, jc.pruning.activations(structure, apply, params, batches),
                     keep=0.5, by=[('.*', 'keep')])
    small = jc.analysis.fold_sizes(apply, plan)(jc.shrink(plan, params), x)[0]

where a stream is one group, so that one order serves all layers, and `fold_sizes` makes
up for what the norms divide by. Small to large in depth, by repeating each layer in
place, is the interpolation of Chang et al. 2017, https://arxiv.org/abs/1710.10348,
section 3.2, who also halve the step of the residual branch: `growth.depth.shared`.

Leading entries are the same channels in all leaves that have them, as all leaves order
their channels alike. But one axis may pack two: a flattened image
[positions * channels], [heads * head_dim] with another head_dim, query heads of fewer
queries for each key head, the gates of a cell. There `blocks` says how many blocks of channels it holds,
and each block starts from a block:

    [s0 s1 | s2 s3]  in 2 blocks of 3:   [s0 s1 .  | s2 s3 . ]
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
  layers: str | Sequence[tuple[str, layers_lib.Which]] = 'uniform',
  keep: Sequence[tuple[str, Mapping[int, Any] | None]] | None = None,
  blocks: Sequence[tuple[str, Mapping[int, int] | None]] | None = None,
  fill: str = 'target',
) -> Any:
  """The target's parameters, started from the source's.

  Layers ('blocks/0/...', 'layer_0/...', 'h.0...', see `layers`) are matched by `layers`
  where target and source have different numbers of them.

  Args:
    target_params: freshly initialised, as the new model needs it.
    source_params: trained. Compressed leaves of both count for what they stand for,
      and what is started is plain.
    rules: ordered `(regex, how)` over the paths of both trees. `how` is 'copy';
      'stacked' for leaves whose first axis is depth (scanned layers), which 'copy'
      would cut like any other axis; or None to keep what the target has, also where
      only one side has the leaf.
    layers: which source layer a target layer starts from: 'uniform', 'first' or 'last';
      see `layers.layer_map`. Or ordered `(regex, word or source layers)`, as in
      `[('blocks', [0, 2, 5])]`, over the paths of lists of layers without their numbers,
      and of leaves that are 'stacked'.
    keep: ordered `(regex, {axis: indices} | None)` over the target's paths: the
      source's entries to keep along an axis where it is larger, axes counted from
      the end. Default: the leading ones.
    blocks: ordered `(regex, {axis: number} | None)` over the target's paths: how many
      blocks of channels, one behind the other, an axis is made of. `keep` then counts
      within one.
    fill: what entries that the source does not have become: 'target' (its own
      initial values) or 'zeros' (new inputs then change nothing at first, except of
      a norm over channels, which counts them; a neuron with neither inputs nor
      outputs learns nothing).

  Returns:
    A tree like `target_params`, same shapes and dtypes.

  Raises:
    ValueError: leaves of one side that the other does not have, listed; ranks that
      differ; `keep` or `blocks` that do not fit; an axis that seems to be of blocks,
      and `blocks` does not say of how many.

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
  packed = rules_lib.match(blocks, target_params) if blocks else {}
  chosen = layers_lib.Chosen(layers)
  starts, skipped = layers_lib.starts(target, source, chosen)
  _check_matched(source, starts, skipped, how)
  copied = [p for p in target if how[p] is not None and starts[p] is not None]
  # The first axis of scanned layers is no width.
  width = {p: slice(1 if how[p] == 'stacked' else 0, None) for p in copied}
  _check_blocks(
    {p: target[p].shape[width[p]] for p in copied},
    {p: source[starts[p]].shape[width[p]] for p in copied},
    {p: {*(kept.get(p) or ()), *(packed.get(p) or ())} for p in copied},
  )

  def started(path, t):
    if how[path] is None or starts[path] is None:
      return t
    t, s = array.materialize((t, source[starts[path]]))
    parts = packed.get(path) or {}
    try:
      # A block has an axis of its own, in front of that of its channels.
      inside = {_behind(a, parts): i for a, i in (kept.get(path) or {}).items()}
      shape, t, s = t.shape, _in_blocks(t, parts), _in_blocks(s, parts)
      if how[path] == 'stacked':
        out = _stacked(path, t, s, chosen, inside, fill)
      else:
        out = _corner(t, _kept_entries(s, t.shape, inside), fill)
      return out.reshape(shape)
    except ValueError as e:
      raise ValueError(f'{path} from {starts[path]}: {e}') from e

  out = rules_lib.map_named(started, target_params)
  chosen.check()
  return out


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
      f'{_without_first(missing + unused, [*starts, *source])}'
    )


def _without_first(unmatched, paths) -> str:
  """A sentence where layers are numbers alone and do not begin at 0."""
  for path in unmatched:
    found = re.match(r'(.*?[/.]|)[0-9]+([/.]|$)', path)
    if found and not any(p.startswith(f'{found[1]}0') for p in paths):
      return (
        f' Numbers without a name, as {path} has, are layers only if they start'
        ' at 0: rename them, to start there or as layer_1, layer_2.'
      )
  return ''


def _check_blocks(target, source, said):
  """Raises where a width grows or shrinks as a multiple of another one does.

  A width that leaves write is one that others read: the last axis here, another axis
  there. One that is only written or only read comes from a program that reshapes.

  Args:
    target, source: `{path: shape}`.
    said: `{path: axes that the user has said something about}`.
  """
  changed = [
    (path, axis, source[path][axis], t[axis])
    for path, t in target.items()
    for axis in range(-min(len(t), len(source[path])), 0)
    if t[axis] != source[path][axis]
  ]
  places = {}
  for _, axis, n, m in changed:
    places.setdefault((n, m), set()).add(axis == -1)
  for path, axis, n, m in changed:
    if len(places[n, m]) == 2 or axis in said[path]:
      continue
    for a, b in places:
      if n > a and not n % a and n * b == m * a:
        k = n // a
        raise ValueError(
          f'{path}: axis {axis} goes from {n} to {m}, {k} times a width that goes'
          f' from {a} to {b}. If it holds {k} blocks of it, one behind the other (a'
          ' flattened image, heads, gates), say'
          f' blocks=[(r"{re.escape(path)}", {{{axis}: {k}}}), (r".*", None)]; if'
          f' its leading entries are meant, {{{axis}: 1}}.'
        )


def _in_blocks(x, blocks):
  """[..., k n, ...] -> [..., k, n, ...] where an axis is of k blocks."""
  shape = []
  for axis, n in enumerate(x.shape, -x.ndim):
    k = blocks.get(axis)
    if k is not None and (k < 1 or n % k):
      raise ValueError(f'axis {axis} of {n} is not made of {k} blocks.')
    shape += [n] if k is None else [k, n // k]
  return jnp.reshape(x, shape)


def _behind(axis, blocks):
  """Where an axis is once blocks have axes of their own."""
  return axis - sum(a > axis for a in blocks)


def _stacked(path, t, s, chosen, kept, fill):
  """Layers of a leaf whose first axis is depth."""
  start = chosen(path, t.shape[0], s.shape[0])
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
