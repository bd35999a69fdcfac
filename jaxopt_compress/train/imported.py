"""What a stage starts from that no stage of its run has made: `init='path'`.

    init = '/ckpt/1000'                 a folder that Orbax wrote, or the one above its steps
    init = 'net.safetensors'            of `jc.save`, or of anybody
    init = '/tmp/digits'                a finished workdir: its last stage
    init = '/tmp/digits:student'        another one of its stages

Names are compared with those of the model. What comes before all of them in the file, such
as 'params/', may be anything; where names differ otherwise, `init_map` says how:

    init_map = ((r'head/.*', None),                     as it is initialised
                (r'layers/(\\d+)/(.*)', r'h_\\1/\\2'))      the model's name -> the file's

Weights that were compressed are read as the arrays that they stand for.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import json
import pathlib
import re
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.disk import tensors
from jaxopt_compress.export import trees
from jaxopt_compress.train import fields
from jaxopt_compress.train import options

Flat = dict[str, Any]


def start(
  said: str,
  name_map: Sequence[tuple[str, str | None]],
  params: Any,
  variables: Any,
) -> tuple[Any, Any, str]:
  """(params, variables) with the arrays of a file, and what is said of the others.

  Args:
    said: what `init` says.
    name_map: what `init_map` says.
    params, variables: of the model, as it is initialised; or abstract, to see whether
      all is there.

  Raises:
    ValueError: nothing that can be read, names that are missing or ambiguous, or
      arrays of another shape.
  """
  found = read(said)
  prefix, used, result, unsure = None, set(), [], []
  for what, tree in (('params', params), ('variables', variables)):
    wanted = dict(rules_lib.named_leaves(tree))
    names, prefix = _names(said, wanted, found, name_map, what, prefix)
    used |= {n for n in names.values() if n is not None}
    result.append(_filled(said, tree, names, found))
    unsure += _unsure(wanted, names)
  _check_used(name_map, params, variables)
  left = [n for n in found if n not in used]
  told = f'{len(used)} arrays of {said}'
  if left:
    more = ', ...' if len(left) > 4 else ''
    told += f'; {len(left)} others are not read: {", ".join(left[:4])}{more}'
  if unsure:
    more = ', ...' if len(unsure) > 4 else ''
    told += (
      f'; {", ".join(unsure[:4])}{more}, square, from names that end in weight: taken'
      ' for [in, out] as they are, and PyTorch has [out, in]'
    )
  return *result, told


def read(said: str) -> Flat:
  """{name: array} of what a path names; names are joined by '/'."""
  path, _, stage = said.rpartition(':')
  if not path or pathlib.Path(said).expanduser().exists():
    path, stage = said, ''
  place = pathlib.Path(path).expanduser()
  if not place.exists():
    raise ValueError(f'init is {said!r}, and there is no {place.absolute()}.')
  if (place / 'stages').is_dir():
    return _flat(trees.load(_stage_of(said, place, stage)))
  if stage:
    raise ValueError(
      f'init is {said!r}, and {place} is no workdir of a run: it has no stages.'
    )
  if place.is_file():
    return _of_file(said, place)
  return _flat(_of_orbax(said, place))


def _stage_of(said, work, stage):
  """The file of a finished stage."""
  there = [
    p.name for p in (work / 'stages').iterdir() if p.suffix != '.partial'
  ]
  if not stage:
    order = json.loads((work / 'config.json').read_text())['stages']
    stage = next((n for n in reversed(order) if n in there), '')
  if stage not in there:
    raise ValueError(
      f'init is {said!r}, and {work} has finished {sorted(there) or "no stage"}.'
      f" Write '{work}:STAGE' with one of them."
    )
  return work / 'stages' / stage / 'weights.safetensors'


def _of_file(said, path):
  try:
    with tensors.opened(path) as file:
      if file.metadata.get('format') != trees.FORMAT:
        return _joined((n, file.read(n)) for n in file.entries)
    return _flat(trees.load(path))
  except ValueError as e:
    raise ValueError(
      f'init is {said!r}, which is not read: {e} A safetensors file, a folder of'
      ' Orbax or a finished workdir is expected.'
    ) from e


def _of_orbax(said, path):
  steps = [p for p in path.iterdir() if p.name.isdigit() and p.is_dir()]
  if steps and not (path / '_CHECKPOINT_METADATA').exists():
    path = max(steps, key=lambda p: int(p.name))
  if path.name == 'default':
    path = path.parent
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def here(x):
    # Wherever it was written, perhaps on other machines, it is read onto one device.
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

  try:
    saved = ocp.metadata(path.absolute()).metadata
    like = jax.tree.map(lambda x: here(x) if hasattr(x, 'shape') else x, saved)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return ocp.load(path.absolute(), like)
  except Exception as e:  # Orbax has many kinds.
    raise ValueError(
      f'init is {said!r}, and {path} is nothing that Orbax reads'
      f' ({type(e).__name__}). A folder that it wrote, a safetensors file or a'
      ' finished workdir is expected.'
    ) from e


def _flat(tree) -> Flat:
  named = rules_lib.named_leaves(tree)
  return _joined(
    (n, array.materialize(x)) for n, x in named if hasattr(x, 'shape')
  )


def _joined(named) -> Flat:
  """By names that are joined by '/', which no two arrays may share."""
  found, whose = {}, {}
  for theirs, x in named:
    name = '/'.join(_parts(theirs))
    if name in found:
      raise ValueError(
        f'init has {whose[name]!r} and {theirs!r}, and both are called {name!r} here.'
        ' Rename one of them in the file.'
      )
    found[name], whose[name] = x, theirs
  return found


def _parts(name):
  parts = re.split(r'[/.]', name)
  # What NNX and Orbax put below a Variable.
  return parts[:-1] if parts[-1] == 'value' and len(parts) > 1 else parts


def _names(said, wanted, found, name_map, what, beside):
  """({name of the model: that in the file, or None}, the prefix of these)."""
  mapped = {}
  for name in wanted:
    for pattern, new in name_map:
      if match := re.fullmatch(pattern, name):
        mapped[name] = new if new is None else match.expand(new)
        break
  rest = [n for n in wanted if n not in mapped]
  prefix = _prefix(said, rest, found, what, beside)
  return mapped | {n: prefix + n for n in rest}, prefix


def _unsure(wanted, names):
  """Kernels of a file's weights whose shapes cannot tell [in, out] from [out, in]."""
  renamed = {
    n: x.shape
    for n, x in wanted.items()
    if n.endswith('kernel') and len(x.shape) == 2
    if (names[n] or '').endswith('weight')
  }
  # One that is not square, and fits, tells the order of the file.
  return list(renamed) if all(a == b for a, b in renamed.values()) else []


def _prefix(said, names, found, what, beside):
  """What is before all of the names in the file: the most likely, or an error."""
  count = {}
  for name in names:
    for other in found:
      if other == name or other.endswith(f'/{name}'):
        before = other[: len(other) - len(name)]
        count[before] = count.get(before, 0) + 1
  most = max(count.values(), default=0)
  best = [p for p in count if count[p] == most]
  for likely in _likely(what, beside):
    if likely in best:
      return likely
  ending = [p for p in best if p.endswith(f'{what}/')]
  if len(best) > 1 and len(ending) != 1:
    raise ValueError(
      f'init is {said!r}, where the names of the model are below each of'
      f' {sorted(best)}. Say which: init_map=((r"(.*)", r"{best[0]}\\1"),).'
    )
  return (ending or best or [''])[0]


def _likely(what, beside) -> Iterator[str]:
  """Prefixes in the order in which they are taken: first where parameters were."""
  if beside is not None:
    above = beside.removesuffix('params/')
    yield from (beside, f'{above}{what}/', above)
  yield from ('', f'{what}/')


def _filled(said, tree, names, found):
  """The tree with the arrays of these names, in its types."""
  missing, shaped = [], []
  for name, x in rules_lib.named_leaves(tree):
    other = names[name]
    if other is None:
      continue
    if other not in found:
      missing.append(name if other == name else f'{name} (there {other})')
    elif tuple(found[other].shape) != tuple(x.shape):
      shaped.append(
        f'{name} is {list(x.shape)}, and {list(found[other].shape)} there'
      )
  if missing or shaped:
    _refuse(said, missing, shaped, names, found)
  nan = [n for n in names.values() if n is not None and _has_nan(found[n])]
  if nan:
    raise ValueError(
      f'init is {said!r}, where {", ".join(nan[:6])} has NaN. Take a checkpoint from'
      ' before it did.'
    )

  def leaf(name, x):
    other = names[name]
    if other is None or isinstance(x, jax.ShapeDtypeStruct):
      return x
    return jnp.asarray(np.asarray(found[other]), x.dtype)

  flat = [leaf(name, x) for name, x in rules_lib.named_leaves(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), flat)


def _has_nan(x):
  x = np.asarray(x)
  return jnp.issubdtype(x.dtype, jnp.inexact) and bool(np.isnan(x).any())


def _refuse(said, missing, shaped, names, found):
  used = set(names.values())
  left = [n for n in found if n not in used]
  lines = []
  for what, some in (
    ('Missing', missing),
    ('Of another shape', shaped),
    ('Only there', left),
  ):
    if some:
      more = f' and {len(some) - 6} more' if len(some) > 6 else ''
      lines.append(f'{what}: {", ".join(some[:6])}{more}.')
  raise ValueError(
    f'init is {said!r}, which does not fit the model. {" ".join(lines)} Say with'
    ' init_map what a name is called there, ((r"old/(.*)", r"new/\\1"),), or leave it'
    ' as it is initialised, ((r"head/.*", None),).'
  )


def _check_used(name_map, params, variables):
  names = [
    n for tree in (params, variables) for n, _ in rules_lib.named_leaves(tree)
  ]
  for pattern, _ in name_map:
    if not any(re.fullmatch(pattern, n) for n in names):
      raise ValueError(
        f'init_map has {pattern!r}, which no name of the model matches:'
        f' {", ".join(names[:8])}{", ..." if len(names) > 8 else ""}.'
      )


def check(where: str, stage: options.Stage) -> None:
  """Raises a ValueError for an `init_map` that is no list of pairs, or has no effect.

  Args:
    where: the path of the stage in the config.
    stage: its options.
  """
  if stage.parent:
    need = 'a path in init, and there the names are those of the model'
    fields.check_unread(where, stage, ['init_map'], need)
  for pair in stage.init_map:
    good = isinstance(pair, tuple) and len(pair) == 2
    if (
      not good
      or not isinstance(pair[0], str)
      or not (pair[1] is None or isinstance(pair[1], str))
    ):
      raise ValueError(
        f'{where}.init_map has {pair!r}; a pair of a regular expression and its'
        ' replacement, or None, is expected.'
      )
    try:
      re.compile(pair[0])
    except re.error as e:
      raise ValueError(
        f'{where}.init_map has {pair[0]!r}, which is no regular expression: {e}.'
      ) from e
    try:
      re.sub(pair[0], pair[1] or '', '')
    except (re.error, IndexError) as e:
      raise ValueError(
        f'{where}.init_map has {pair[1]!r}, which is no replacement for {pair[0]!r}:'
        f' {e}.'
      ) from e
