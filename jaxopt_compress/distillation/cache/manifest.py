"""What a cache holds, and of whom: written before its first answer."""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxopt_compress.core import choices
from jaxopt_compress.disk import sealed
from jaxopt_compress.distillation.cache import codec as codec_lib

NAME = 'manifest.json'
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """A teacher, the data that it answers to, and how its answers are kept.

  Attributes:
    model: of the teacher, such as `fingerprint(params)`.
    data: of the inputs, such as `fingerprint(inputs)`. Any string that changes with
      them will do: the name and the version of a data set.
    vocabulary: how many ids (classes) the teacher answers.
    k: entries kept of each answer: the largest, or draws if `sampled`.
    examples: how many.
    positions: shape of the answers to one example, () for a class, (tokens,).
    shard: examples in a file.
    tokenizer: of the encodings of probes, `Vocabulary.fingerprint`; '' if none.
    dtype: in which the teacher computed.
    temperature: T of the distributions, softmax(logits / T).
    sampled: whether entries were drawn from the answer; see `sample`.
    version: of the format.
  """

  model: str
  data: str
  vocabulary: int
  k: int
  examples: int
  positions: tuple[int, ...] = ()
  shard: int = 1024
  tokenizer: str = ''
  dtype: str = 'float32'
  temperature: float = 1.0
  sampled: bool = False
  version: int = VERSION

  def __post_init__(self):
    for name in ('examples', 'shard'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name}={getattr(self, name)}; at least 1 is expected.'
        )
    for name in ('model', 'data'):
      if not getattr(self, name):
        raise ValueError(
          f'{name} is empty, so that nobody could tell it from another. Use'
          f' `cache.fingerprint`.'
        )
    if not self.temperature > 0:
      raise ValueError(
        f'temperature={self.temperature}; a number above 0 is expected.'
      )
    # k and the vocabulary are checked there.
    codec_lib.Codec(self.vocabulary, self.k, self.sampled)

  @property
  def codec(self) -> codec_lib.Codec:
    return codec_lib.Codec(self.vocabulary, self.k, self.sampled)

  @property
  def shards(self) -> int:
    """How many files there are."""
    return -(-self.examples // self.shard)

  @property
  def nbytes(self) -> int:
    """Bytes of all answers, without checksums."""
    positions = self.examples
    for n in self.positions:
      positions *= n
    return positions * self.codec.nbytes

  @property
  def digest(self) -> str:
    """The sha256 that its file states."""
    return sealed.seal(dataclasses.asdict(self))['sha256']


def read(folder: str | os.PathLike) -> Manifest:
  """The manifest of a cache.

  Raises:
    ValueError: there is none, it is damaged, or of another version.
  """
  path = pathlib.Path(folder) / NAME
  if not path.exists():
    raise ValueError(f'{folder} is no cache: it has no {NAME}. Write it first.')
  try:
    record = sealed.read(path)
  except sealed.Damaged as e:
    raise ValueError(f'{e} Remove {folder}, and write the cache again.') from e
  record.pop('sha256')
  if record.get('version') != VERSION:
    raise ValueError(
      f'{path} is of version {record.get("version")!r}, and this library reads'
      f' version {VERSION}. Write the cache again.'
    )
  return Manifest(**{**record, 'positions': tuple(record['positions'])})


def check(
  folder: str | os.PathLike, found: Manifest, expected: Mapping[str, Any]
) -> None:
  """Raises a ValueError that names each field that is another, and both values.

  Args:
    folder: of the cache, for the message.
    found: what it says.
    expected: {field: value}.
  """
  said = dataclasses.asdict(found)
  for name in expected:
    choices.one_of('A field of a manifest', name, said, ' is ')
  # As JSON reads them: a tuple is as good as a list.
  wrong = [
    f'its {name} is {said[name]!r}, and {value!r} is expected'
    for name, value in expected.items()
    if json.dumps(said[name]) != json.dumps(value)
  ]
  if wrong:
    raise ValueError(
      f'The cache in {folder} holds other answers: {"; ".join(wrong)}. Use what it'
      ' was made of, or write another cache into another folder.'
    )
