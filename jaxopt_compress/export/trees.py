"""Any tree of arrays and leaves, in one file and back.

    jc.save('net.safetensors', qparams)
    qparams = jc.load('net.safetensors')

The file is a safetensors file: other tools read its arrays under their paths, such as
`a/kernel.qvalue`, and its header says what they are parts of; see `words`. Nothing is
pickled. Every array has a checksum, and so has the header (`disk.tensors`).
"""

from collections.abc import Mapping
import functools
import glob
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jaxopt_compress import modules
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.disk import files
from jaxopt_compress.disk import sealed
from jaxopt_compress.disk import tensors
from jaxopt_compress.export import numbers
from jaxopt_compress.export import words
from jaxopt_compress.parallel import placing

# In the header: which words the description is in.
FORMAT = 'jaxopt_compress.tree/1'


def save(path: str | os.PathLike, tree: Any) -> None:
  """Writes a tree to a safetensors file, which is replaced as a whole or not at all.

  Arrays are written one by one, so that this takes the memory of one beside the tree.
  One array at two places is stored once. Training leaves are saved as they are; those of
  `jc.pack`, which are laid out for one machine, as what `jc.unpack` makes of them.

  In a job of several processes each one that calls this writes the whole tree: let
  process 0 do it.

  Args:
    path: of the file, in a folder that is there.
    tree: any pytree: dicts, lists, tuples and None; arrays of JAX and numpy, PRNG keys,
      compressed leaves, Python numbers and strings. Also `nnx.State`, FrozenDict,
      NamedTuples, dataclasses, and others that JAX knows; see `load` for these.

  Raises:
    ValueError: a leaf that no file says, or of which this process has a part only.

  >>> import tempfile
  >>> folder = tempfile.mkdtemp()
  >>> save(folder + '/net', {'w': np.ones(3, np.float32), 'steps': 9})
  >>> load(folder + '/net')
  {'steps': 9, 'w': Array([1., 1., 1.], dtype=float32)}
  """
  write(path, tree, {})


def write(
  path: str | os.PathLike,
  tree: Any,
  facts: Mapping[str, str],
  shared: bool = True,
) -> None:
  """`save`, with `facts` in the header's metadata.

  With `shared=False` an array that is at two places has both names, for readers who know
  the names only.
  """
  path = pathlib.Path(path)
  if path.is_dir() or not path.parent.is_dir():
    what = 'a folder' if path.is_dir() else 'in a folder that is not there'
    raise ValueError(f'{path} is {what}. Give the path of a file.')
  said, arrays = words.of_tree(tree, shared)
  real = path.resolve()
  files.remove_partial(real.parent, glob.escape(real.name))
  tensors.write(
    path,
    arrays,
    lambda name: arrays[name].read(),
    {'format': FORMAT, **said, **facts},
  )


def load(
  path: str | os.PathLike,
  *,
  like: Any = None,
  where: rules_lib.Rules | None = None,
  sharding: Any = None,
) -> Any:
  """Reads what `save` wrote, array by array, each compared with its checksum.

  Arrays come back as arrays of JAX, to the bit, and those of numpy, too. Of 64 bits they
  stay arrays of numpy unless `jax_enable_x64` is set, as JAX would cut them. dict, list
  and tuple come back as such, and so do compressed leaves; nodes of other types, as
  `nnx.State`, NamedTuples or dataclasses, as dicts, or as in `like`.

  Args:
    path: of the file: of `jc.save`, of `jc.export.save_shrunk`, or weights.safetensors
      of an export or of a finished stage.
    like: a tree of the same paths and shapes, maybe abstract: the result has its
      structure. A compressed leaf of the file goes where that has an array.
    where: ordered (regex, True or None): what is not to be read is None.
    sharding: a `jax.sharding.Sharding` for all arrays, or ordered (regex, sharding or
      None). A compressed leaf is cut as the array that it stands for would be. Of an
      array that is cut a device gets its part, and memory is taken for no more.

  Raises:
    ValueError: a file that is damaged, of another version, or not of `save`; or that
      does not have what `like`, `where` or `sharding` speak of.
  """
  with tensors.opened(path) as file:
    tree = _described(file)
    if like is not None:
      tree = _as_in(like, tree, path)
    chosen = _values(where, tree, True)
    if wrong := [v for v in chosen.values() if v not in (True, None)]:
      raise ValueError(f'where says True or None of a path, not {wrong[0]!r}.')
    shardings = _values(sharding, tree, None)
    # An array that is at two places is read once.
    read = functools.cache(functools.partial(_read, file))

    def loaded(name, x):
      if chosen[name] is None:
        return None
      if not hasattr(x, 'shape'):
        return x
      parts, treedef = jax.tree.flatten(x)
      places = _places(name, x, shardings[name])
      return jax.tree.unflatten(treedef, map(read, parts, places))

    return modules.dress(_mapped(loaded, tree), like)


def header(path: str | os.PathLike) -> dict[str, str]:
  """The metadata of a file, which are as they were written."""
  with tensors.opened(path) as file:
    check(file)
    return file.metadata


def check(file: tensors.File) -> None:
  """Raises ValueError unless an open file is of `save` of this version."""
  found = file.metadata.get('format')
  if found != FORMAT:
    raise ValueError(
      f'{file.path} has the format {found!r}, and {FORMAT!r} is expected: jc.save of'
      ' another version wrote it, or another program. Save it again with this one, or'
      ' read its arrays with safetensors.numpy.load_file.'
    )
  file.check_header()


def _described(file):
  """The tree of a file, with a `Ref` in place of each array."""
  check(file)
  try:
    return words.to_tree(file.metadata, file.entries)
  except ValueError as e:
    raise sealed.Damaged(
      f'What the header of {file.path} says does not fit together: {e}.'
    ) from e


def _as_in(like, tree, path):
  """The leaves of `tree` in the structure of `like`."""
  found, wanted = (dict(rules_lib.named_leaves(t)) for t in (tree, like))
  treedef = jax.tree.structure(like, is_leaf=array.is_compressed)
  if len(wanted) < treedef.num_leaves:
    raise ValueError(
      'Two leaves of like have the same path: keys that hold "/" meet nested ones.'
      f' Rename one of {sorted(name for name in wanted if "/" in name)[:8]}.'
    )
  for these, those, here, there in (
    (wanted, found, 'like', path),
    (found, wanted, path, 'like'),
  ):
    if missing := [name for name in these if name not in those]:
      raise ValueError(
        f'{missing[0]!r} of {here} is not in {there}, which has {list(those)[:8]}.'
        ' Give a tree of the same paths as was saved.'
      )
  for name, x in wanted.items():
    if _kind(x, found[name]) != _kind(found[name], x):
      raise ValueError(
        f'{name} of like is {_kind(x, x)}, and of {path} it is'
        f' {_kind(found[name], found[name])}. Load without like, and change it then:'
        ' jc.cast for other types.'
      )
  return jax.tree.unflatten(treedef, [found[name] for name in wanted])


def _kind(x, other) -> str:
  """Type and shape; a Python number is of the type of the other one."""
  shape = list(x.shape if hasattr(x, 'shape') else np.shape(x))
  if not (hasattr(x, 'dtype') and hasattr(other, 'dtype')):
    return str(shape)
  # Types of random keys are none of numpy's, and have names, too.
  dtype = x.dtype if hasattr(x.dtype, 'name') else np.dtype(x.dtype)
  return f'{dtype.name}{shape}'


def _values(rules, tree, of_all):
  """{path: value} by rules, or one value for all paths."""
  if rules is None or isinstance(rules, jax.sharding.Sharding):
    value = of_all if rules is None else rules
    return {path: value for path, _ in rules_lib.named_leaves(tree)}
  return rules_lib.match(rules, tree)


def _mapped(f, tree):
  """`f(path, leaf)` for each leaf, compressed ones as a whole."""
  treedef = jax.tree.structure(tree, is_leaf=array.is_compressed)
  named = rules_lib.named_leaves(tree)
  return jax.tree.unflatten(treedef, [f(path, x) for path, x in named])


def _places(name, x, sharding) -> list[jax.sharding.Sharding | None]:
  """Where each array of a leaf goes."""
  parts = jax.tree.leaves(x)
  if sharding is None:
    return [None] * len(parts)
  try:
    sharding.shard_shape(tuple(x.shape))
    if array.is_compressed(x) and not sharding.is_fully_replicated:
      mesh, spec = sharding.mesh, sharding.spec
      return jax.tree.leaves(placing.shardings(x, mesh, spec))
  except (AttributeError, IndexError, ValueError) as e:
    raise ValueError(
      f'{name}, of shape {list(x.shape)}, cannot be placed by {sharding}: {e}'
    ) from e
  return [sharding] * len(parts)


def _read(file, x, sharding):
  """An array of a file, where it is to be."""
  if x.key:
    keys = jax.random.wrap_key_data(file.read(x.name), impl=x.key)
    return keys if sharding is None else jax.device_put(keys, sharding)
  cut = jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype
  if sharding is None:
    # Memory of its own, which nobody else writes to: a CPU takes it as it is.
    found = numbers.restore(file.read(x.name), x)
    return found if cut else jax.device_put(found)
  if cut:
    raise ValueError(
      f'{x.name} is {x.dtype}, and JAX holds 32 bits: set jax_enable_x64, or leave it'
      ' out of sharding, (regex, None).'
    )
  found = numbers.restore(file.mapped(x.name), x)
  # Copies, as the device may take what is mapped as it is, and the file may change.
  return jax.make_array_from_callback(
    x.shape, sharding, lambda index: np.array(found[index], order='C')
  )
