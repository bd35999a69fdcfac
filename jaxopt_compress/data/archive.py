"""Arrays of an npz file, believed only as far as the file is large.

The header of an array says its shape, and numpy allocates that much before it reads a
byte: a damaged header, or one made by somebody else, asks for all memory there is.
"""

from collections.abc import Sequence
import math
import pathlib
import zipfile

import numpy as np

from jaxopt_compress.core import choices

# Deflate makes at most 1,032 bytes of one.
_DEFLATE = 1_032


def read(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
  """The arrays of those names.

  Raises:
    ValueError: it is no npz file, is damaged, has no such array, or one that is not
      as large as its shape says.
  """
  try:
    with zipfile.ZipFile(path) as file:
      members = [n for n in file.namelist() if n.endswith('.npy')]
      there = sorted(n.removesuffix('.npy') for n in members)
      found = {n: _array(file, n, path) for n in names if n in there}
  # Files that are cut off, encrypted, compressed in a way that Python does not know,
  # headers that are no Python: what zipfile and numpy raise then has many kinds.
  except Exception as e:
    raise ValueError(
      f'{path} is no whole npz file ({e}). Write it again with np.savez.'
    ) from e
  for name in names:
    if name not in found:
      raise ValueError(
        f'{path} has no array {name!r}, only {there}.'
        f'{choices.guess(name, there)} Write it with np.savez({str(path)!r},'
        f' {", ".join(f"{n}=..." for n in names)}).'
      )
  return found


def _array(file, name, path):
  info = file.getinfo(f'{name}.npy')
  with file.open(info) as f:
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(f)
    choices.one_of(f'The version of {name}', version, read_header)
    shape, _, dtype = read_header[version](f)
    want, held = math.prod(shape) * dtype.itemsize, info.file_size - f.tell()
  most = min(held, _DEFLATE * path.stat().st_size)
  if want != most and not dtype.hasobject:
    raise ValueError(
      f'{name} says that it is {dtype}{list(shape)}, {want} bytes, and has {most}'
    )
  with file.open(info) as f:
    return np.lib.format.read_array(f, allow_pickle=False)
