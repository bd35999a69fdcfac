"""Parameters as a flat dict of plain arrays, in memory and in a file.

    {'dense': {'kernel': QArray(qvalue, scale), 'bias': b}}
    -> {'dense/kernel.qvalue': ..., 'dense/kernel.scale': ..., 'dense/bias': ...}

The static fields of a leaf stay in the program, so whoever loads the file needs no
leaf types. The file format is safetensors; its header names the layout, and other files
are refused.
"""

from collections.abc import Callable
from collections.abc import Mapping
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import rules
from jaxopt_compress.export import layout

Weights = dict[str, np.ndarray]

# In the header: how names and bytes are to be read.
FORMAT = 'jaxopt_compress.weights/1'

# What safetensors.numpy writes and reads back; other dtypes are stored as bytes.
_STORED = frozenset(
  """
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 bfloat16 float16
    float32 float64 complex64
""".split()
)
_SUB_BYTE = ('int1', 'int2', 'int4', 'uint1', 'uint2', 'uint4', 'float4')


def flatten(params: Any) -> tuple[Weights, Callable[[Mapping], Any]]:
  """The arrays of a tree by name, and the function that puts them back.

  Args:
    params: any pytree of arrays; some leaves may be compressed.

  Returns:
    `{path: array}`, with `path.child` for each array of a compressed leaf, and
    `rebuild` such that `rebuild(weights)` is `params`, also under a trace.

  >>> weights, rebuild = flatten({'a': [np.ones(2), np.zeros(3)]})
  >>> sorted(weights), sorted(rebuild({'a/0': 1, 'a/1': 2})['a'])
  (['a/0', 'a/1'], [1, 2])
  """
  # Two levels: the tree down to its leaves, and each leaf down to its arrays.
  named = rules.named_leaves(params)
  treedef = jax.tree.structure(params, is_leaf=array.is_compressed)
  parts = [_arrays(path, leaf) for path, leaf in named]
  weights = {
    name: host(x, name)
    for names, _, xs in parts
    for name, x in zip(names, xs, strict=True)
  }
  if len(weights) != sum(len(names) for names, _, _ in parts):
    raise ValueError(
      'Two leaves have the same name. Rename one:'
      f' {sorted(n for names, _, _ in parts for n in names)}.'
    )

  def rebuild(arrays):
    leaves = [
      jax.tree.unflatten(structure, [array.on_device(arrays[n]) for n in names])
      for names, structure, _ in parts
    ]
    return jax.tree.unflatten(treedef, leaves)

  return weights, rebuild


def describe(params: Any) -> dict[str, dict[str, Any]]:
  """What each leaf stands for and which arrays it is made of, for readers."""
  return {
    path: {
      'format': leaf.describe()
      if array.is_compressed(leaf)
      else str(np.dtype(leaf.dtype)),
      'shape': list(leaf.shape),
      'dtype': str(np.dtype(leaf.dtype)),
      'bytes': storage.nbytes(leaf),
      'arrays': _arrays(path, leaf)[0],
    }
    for path, leaf in rules.named_leaves(params)
  }


def host(x: Any, name: str) -> np.ndarray:
  """`x` on the host, contiguous.

  safetensors writes memory as it lies, so a transposed or strided array would be
  stored wrongly, and silently so.
  """
  if not hasattr(x, 'dtype') or jax.dtypes.issubdtype(
    x.dtype, jax.dtypes.extended
  ):
    raise ValueError(
      f'{name} is {x!r}, which is no array of numbers. Export arrays: wrap'
      ' scalars in jnp.asarray, and keys in jax.random.key_data.'
    )
  if str(x.dtype).startswith(_SUB_BYTE):
    raise ValueError(
      f'{name} has dtype {x.dtype}, which takes a byte a value in memory and'
      ' in programs. Pack it into uint8, as jc.quantize does.'
    )
  return np.asarray(x, order='C')


def save(
  path: str | os.PathLike,
  weights: Weights,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a safetensors file: the bytes of the arrays after one header.

  It is there as a whole or not at all, and one that it replaces until then.
  """
  stored = {name: _as_stored(x) for name, x in weights.items()}
  # safetensors does not check this, and would write other data.
  assert all(x.flags.c_contiguous for x in stored.values())
  header = {'format': FORMAT, **(metadata or {})}
  path = pathlib.Path(
    path
  ).resolve()  # of a link, what it points to is replaced
  new = path.with_name(f'.{path.name}.new')
  try:
    _safetensors().save_file(stored, new, header)
    layout.sync(new)
    new.replace(path)
  finally:
    new.unlink(missing_ok=True)


def opened(path: str | os.PathLike) -> Any:
  """A safetensors file, to read its header: `with opened(path) as file`."""
  _safetensors()
  import safetensors

  return safetensors.safe_open(path, 'numpy')


def load(path: str | os.PathLike, dtypes: Mapping[str, str]) -> Weights:
  """Reads back what `save` wrote; `dtypes` as they were, by name.

  Raises:
    ValueError: a file of another layout, or with other arrays.
  """
  with opened(path) as file:
    found = (file.metadata() or {}).get('format')
  if found != FORMAT:
    raise ValueError(
      f'The header of {path} has the format {found!r}, not {FORMAT!r}: it was not'
      ' written here, or by another version. Export again with this one.'
    )
  stored = _safetensors().load_file(path)
  if set(stored) != set(dtypes):
    raise ValueError(
      f'{path} holds {sorted(stored)}, but the manifest lists'
      f' {sorted(dtypes)}. Export again.'
    )
  return {
    name: x if str(x.dtype) == dtypes[name] else x.view(np.dtype(dtypes[name]))
    for name, x in stored.items()
  }


def _arrays(path, leaf):
  """(names, structure, arrays) of one leaf; a plain array is its only one."""
  if not array.is_compressed(leaf):
    return [path], jax.tree.structure(0), [leaf]
  leaf.check_dtypes()
  keyed, structure = jax.tree_util.tree_flatten_with_path(leaf)
  names = [f'{path}.{_child(keys)}' for keys, _ in keyed]
  return names, structure, [x for _, x in keyed]


def _child(keys) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator='.')


def _as_stored(x):
  return x if str(x.dtype) in _STORED else x.view(np.uint8)


def _safetensors():
  try:
    import safetensors.numpy
  except ImportError as e:
    raise ImportError(
      'Exports need safetensors. Install it with'
      " `pip install 'jaxopt_compress[examples]'`."
    ) from e
  return safetensors.numpy
