"""Arrays in a safetensors file, with a checksum of each, read with suspicion.

    8 bytes   the length of the header, little endian
    header    {"__metadata__": {...}, name: {"dtype", "shape", "data_offsets"}}, JSON
    data      the bytes of the arrays, without gaps

Any reader of safetensors reads what `write` wrote. Its metadata also have the CRC-32 of
each array, in the order of the data, and the SHA-256 of all the rest of the header:
they find damage, not forgery. Whatever a header says is checked before memory is taken
for it, and names in it are keys, never paths.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import math
import mmap
import os
import pathlib
from typing import Any
from typing import BinaryIO
from typing import NamedTuple
import zlib

import ml_dtypes
import numpy as np

from jaxopt_compress.disk import files
from jaxopt_compress.disk import sealed

# The words of the format for types of numbers.
_TYPES = {
  'BOOL': np.dtype('bool'),
  **{f'I{8 * n}': np.dtype(f'<i{n}') for n in (1, 2, 4, 8)},
  **{f'U{8 * n}': np.dtype(f'<u{n}') for n in (1, 2, 4, 8)},
  **{f'F{8 * n}': np.dtype(f'<f{n}') for n in (2, 4, 8)},
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'C64': np.dtype('<c8'),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
}
# Those that safetensors.numpy reads, too: one other would keep it from the whole file.
WRITTEN = {t.name: t for w, t in _TYPES.items() if 'F8' not in w}

METADATA = '__metadata__'  # no name of an array

# About 200 bytes an array: some 80,000. A hostile one takes 25 times its size to parse.
# The safetensors package takes 100 MB.
_LONGEST_HEADER = 1 << 24
_MOST_AXES = 64  # of numpy
_ALIGNED = 64  # bytes; XLA uses host memory as it lies if it is aligned so
_CHUNK = 1 << 24
_HUGE = 1 << 22  # bytes; of so many numpy asks the system for huge pages


class Entry(NamedTuple):
  """One array of a file.

  Attributes:
    dtype, shape: of the array.
    begin, end: in bytes from the start of the data.
  """

  dtype: np.dtype
  shape: tuple[int, ...]
  begin: int
  end: int


def write(
  path: str | os.PathLike,
  shapes: Mapping[str, Any],
  array: Callable[[str], np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes arrays one by one; the file is there as a whole, or as it was.

  Args:
    path: of the file.
    shapes: name -> what has a `shape` and a `dtype`, one of `WRITTEN`.
    array: name -> the array, C-contiguous and little endian; called once for each
      name, in the order of the file.
    metadata: for readers, beside 'crc32' and 'sha256'.
  """
  if METADATA in shapes:
    raise ValueError(f'{METADATA!r} is no name of an array. Rename it.')
  entries = _laid_out(shapes)
  # Sums are known once the data are written, and take as much room as these.
  room = _header(entries, metadata, ['0' * 8] * len(entries))
  if len(room) > _LONGEST_HEADER:
    raise ValueError(
      f'{path} would have a header of {len(room)} bytes for {len(entries)} arrays,'
      f' and readers take {_LONGEST_HEADER}. Save the tree in several files.'
    )
  with files.replacing(path) as f:
    f.write(room)
    sums = []
    for name, entry in entries.items():
      x = array(name)
      assert (x.dtype, x.shape) == (entry.dtype, entry.shape), name
      assert x.flags.c_contiguous, name
      content = _bytes_of(x)
      f.write(content)
      sums.append(f'{zlib.crc32(content):08x}')
    f.seek(0)
    f.write(_header(entries, metadata, sums))


class File:
  """An open file; see `opened`.

  Attributes:
    metadata: text by name.
    entries: name -> `Entry`, in the order of the data.
  """

  def __init__(self, path, f: BinaryIO, start: int, header: dict[str, Any]):
    self.path, self._file, self._start = path, f, start
    self.metadata: dict[str, str] = header[METADATA]
    self.entries: dict[str, Entry] = header['entries']
    self._sums: dict[str, str] = {}

  def check_header(self) -> None:
    """Raises Damaged unless the header is as `write` wrote it."""
    if self.metadata.get('sha256') != _seal(self.entries, self.metadata):
      raise sealed.Damaged(
        f'{self.path} is damaged: its header is not what was written.'
      )
    sums = self.metadata.get('crc32', '').split()
    if len(sums) != len(self.entries):
      raise sealed.Damaged(
        f'{self.path} has {len(sums)} checksums for {len(self.entries)} arrays.'
      )
    self._sums = dict(zip(self.entries, sums, strict=True))

  def read(self, name: str) -> np.ndarray:
    """One array, in memory of its own that is aligned for XLA.

    Raises:
      Damaged: after `check_header`, numbers that are not those that were written.
    """
    entry = self.entries[name]
    content = _room(entry.end - entry.begin)
    self._read_into(memoryview(content), entry.begin)
    self._check_sum(name, zlib.crc32(content))
    return content.view(entry.dtype).reshape(entry.shape)

  def mapped(self, name: str) -> np.ndarray:
    """The same, mapped and not in memory: for whoever needs a part of it.

    All of it is read once, in pieces, to compare its checksum.
    """
    entry = self.entries[name]
    if name in self._sums:
      chunk = memoryview(bytearray(_CHUNK))
      found = 0
      for at in range(entry.begin, entry.end, _CHUNK):
        piece = chunk[: min(_CHUNK, entry.end - at)]
        self._read_into(piece, at)
        found = zlib.crc32(piece, found)
      self._check_sum(name, found)
    if entry.begin == entry.end:  # of nothing there is no map
      return np.empty(entry.shape, entry.dtype)
    return np.memmap(
      self._file, entry.dtype, 'r', self._start + entry.begin, entry.shape
    )

  def _read_into(self, content: memoryview, at: int) -> None:
    self._file.seek(self._start + at)
    done = 0
    while done < len(content):
      n = self._file.readinto(content[done:])
      if not n:
        raise sealed.Damaged(
          f'{self.path} has become shorter while it is read.'
        )
      done += n

  def _check_sum(self, name, found: int) -> None:
    if self._sums.get(name, f'{found:08x}') != f'{found:08x}':
      raise sealed.Damaged(
        f'{self.path} is damaged: the numbers of {name} are not those that were'
        ' written.'
      )


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[File]:
  """A safetensors file of ours or of others, to read from.

  It stays the file that was opened, also where another replaces it meanwhile.

  Raises:
    ValueError: a header that is none, or that claims what cannot be.
  """
  if pathlib.Path(path).is_dir():
    raise ValueError(
      f'{path} is a folder, and a file is expected. Of an export, jc.export.load'
      ' reads the folder, and weights.safetensors in it has the parameters.'
    )
  with open(path, 'rb') as f:
    start, header = _read_header(path, f)
    yield File(path, f, start, header)


def parsed(text: str | bytes, what: str) -> Any:
  """JSON that says everything once, in numbers that are numbers.

  Args:
    text: the JSON.
    what: it is, for errors.
  """

  def once(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
      seen = set()
      twice = next(key for key, _ in pairs if key in seen or seen.add(key))
      raise ValueError(f'it has two entries {twice!r}')
    return found

  def refused(word):
    raise ValueError(f'{word} is no number')

  def finite(word):
    return float(word) if math.isfinite(float(word)) else refused(word)

  try:
    return json.loads(
      text,
      object_pairs_hook=once,
      parse_float=finite,
      parse_constant=refused,
    )
  except (ValueError, RecursionError) as e:
    raise sealed.Damaged(f'{what} is no JSON that we read: {e}.') from e


def _laid_out(shapes) -> dict[str, Entry]:
  """Where arrays go. Names are in the order of the data."""

  def order(name):
    # Multiples of 64 bytes first, so that each of them lies at one; the data start at
    # one. The others by width, so that each lies at a multiple of its own.
    x = shapes[name]
    width = np.dtype(x.dtype).itemsize
    return math.prod(x.shape) * width % _ALIGNED != 0, -width

  entries, at = {}, 0
  for name in sorted(shapes, key=order):
    dtype, shape = np.dtype(shapes[name].dtype), tuple(shapes[name].shape)
    assert dtype.name in WRITTEN, (name, dtype)
    end = at + math.prod(shape) * dtype.itemsize
    entries[name] = Entry(dtype, shape, at, end)
    at = end
  return entries


def _table(entries) -> dict[str, Any]:
  words = {dtype.name: word for word, dtype in _TYPES.items()}
  return {
    name: {
      'dtype': words[e.dtype.name],
      'shape': list(e.shape),
      'data_offsets': [e.begin, e.end],
    }
    for name, e in entries.items()
  }


def _seal(entries, metadata) -> str:
  """The digest of a header, but for its own entry."""
  rest = {key: text for key, text in metadata.items() if key != 'sha256'}
  return sealed.seal({'metadata': rest, 'table': _table(entries)})['sha256']


def _header(entries, metadata, sums) -> bytes:
  """The length and the JSON, filled with spaces up to where the data start."""
  metadata = {**metadata, 'crc32': ' '.join(sums)}
  metadata['sha256'] = _seal(entries, metadata)
  header = {METADATA: metadata, **_table(entries)}
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-(8 + len(text)) % _ALIGNED)
  return len(text).to_bytes(8, 'little') + text


def _room(n: int) -> np.ndarray:
  """Memory of n bytes, aligned for XLA."""
  if n < _HUGE:
    room = np.empty(n + _ALIGNED, np.uint8)
    skipped = -room.ctypes.data % _ALIGNED
    return room[skipped : skipped + n]
  # Where memory is in pieces, Linux moves others' pages to make a huge one, which
  # takes longer than to read the file. These are small, as those of XLA's arrays.
  return np.frombuffer(mmap.mmap(-1, n, access=mmap.ACCESS_COPY), np.uint8)


def _bytes_of(x: np.ndarray) -> memoryview:
  return memoryview(x.reshape(-1).view(np.uint8))


def _read_header(path, f) -> tuple[int, dict[str, Any]]:
  """(where the data start, {'__metadata__': ..., 'entries': ...}), all checked."""
  size = os.fstat(f.fileno()).st_size
  n = int.from_bytes(f.read(8), 'little')
  if size < 8 or n > min(size - 8, _LONGEST_HEADER):
    raise sealed.Damaged(
      f'{path} is no safetensors file, or a part of one: it has {size} bytes, and'
      f' its header should have {n} (of at most {_LONGEST_HEADER}).'
    )
  header = parsed(f.read(n), f'The header of {path}')
  if not isinstance(header, dict):
    raise sealed.Damaged(f'The header of {path} is no table of arrays.')
  metadata = header.pop(METADATA, {})
  if not isinstance(metadata, dict) or not all(
    isinstance(text, str) for text in metadata.values()
  ):
    raise sealed.Damaged(f'The metadata of {path} are not texts by name.')
  entries = {name: _entry(path, name, said) for name, said in header.items()}
  ordered = sorted(entries.items(), key=lambda item: item[1][2:])
  at = 0
  for name, entry in ordered:
    if entry.begin != at:
      raise sealed.Damaged(
        f'In {path}, {name} starts at byte {entry.begin} of the data, and what is'
        f' before it ends at {at}: arrays overlap, or leave a gap.'
      )
    at = entry.end
  if at != size - 8 - n:
    raise sealed.Damaged(
      f'{path} has {size - 8 - n} bytes of data, and its header speaks of {at}: it'
      ' was cut off, or is damaged.'
    )
  return 8 + n, {METADATA: metadata, 'entries': dict(ordered)}


def _entry(path, name, said) -> Entry:
  """What a header says of one array, if that can be."""
  try:
    word, shape, offsets = said['dtype'], said['shape'], said['data_offsets']
    dtype = _TYPES[word]
    begin, end = offsets
    whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
  except (KeyError, TypeError, ValueError):
    whole = False
  if not whole or len(shape) > _MOST_AXES:
    raise sealed.Damaged(
      f'The header of {path} says {str(said)[:200]} of {name!r}, which is no array:'
      f' a dtype of {list(_TYPES)}, a shape and two offsets are expected.'
    )
  # In whole numbers of any size: a product cannot overflow. Numpy counts without zeros.
  if math.prod(n or 1 for n in shape) * dtype.itemsize >= 1 << 63:
    raise sealed.Damaged(f'{name} of {path} has an impossible shape, {shape}.')
  if math.prod(shape) * dtype.itemsize != end - begin:
    raise sealed.Damaged(
      f'{name} of {path} is {dtype}{shape}, and its offsets leave it'
      f' {end - begin} bytes.'
    )
  return Entry(dtype, tuple(shape), begin, end)
