"""Parameters as a flat dict of plain arrays.

    {'dense': {'kernel': QArray(qvalue, scale), 'bias': b}}
    -> {'dense/kernel.qvalue': ..., 'dense/kernel.scale': ..., 'dense/bias': ...}

The static fields of a leaf stay in the program, so whoever has these needs no leaf types.
A file of `jc.save` has its arrays under the same names.
"""

from collections.abc import Callable
from collections.abc import Mapping
import os
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import rules
from jaxopt_compress.disk import tensors
from jaxopt_compress.export import trees

Weights = dict[str, np.ndarray]

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
  """`x` on the host, contiguous."""
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


def load(path: str | os.PathLike, dtypes: Mapping[str, str]) -> Weights:
  """The arrays of a file of `jc.save` by name, `dtypes` as they were.

  Raises:
    ValueError: a damaged file, one of another version, or with other arrays.
  """
  with tensors.opened(path) as file:
    trees.check(file)
    if set(file.entries) != set(dtypes):
      raise ValueError(
        f'{path} holds {sorted(file.entries)}, but the manifest lists'
        f' {sorted(dtypes)}. Export again.'
      )
    found = {name: file.read(name) for name in dtypes}
  return {
    name: x if str(x.dtype) == dtypes[name] else x.view(np.dtype(dtypes[name]))
    for name, x in found.items()
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
