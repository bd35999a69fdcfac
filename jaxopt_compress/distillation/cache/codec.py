"""What a position of a teacher's answer takes on disk, bit by bit.

    entry    = id (ceil(log2 v) bits), then a value
    position = k entries without gaps, filled up to a byte, and the tail

The value of an entry of the top k is -log p in float16 without its sign, 15 bits; the
tail is -log of the mass of all other ids, in float16. With k = 64 and v = 128,000 an
entry has 32 bits, and a position 64 * 4 + 2 = 258 bytes, where dense logits in
bfloat16 take 256,000.

The value of an entry that was sampled is how often its id was drawn,
ceil(log2(k + 1)) bits, and there is no tail: 12 draws of 128,000 take 32 bytes.
"""

import dataclasses

import numpy as np

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Codec:
  """Entries to bytes and back; numpy, on the host.

  Counts come back exactly. Log-probabilities are rounded to float16 and then shifted
  together, so that the masses of all entries and of the tail add up to 1 again. With
  u = 2^-11 each is off by at most

      u |log p| + u log(k + 1) + 2^-24

  where the second part is the shift. bfloat16, of 15 bits without its sign as well,
  would have u = 2^-8: its range is of no use here.

  Attributes:
    vocabulary: v, how many ids there are.
    k: entries of a position.
    sampled: values are counts of k draws, instead of log-probabilities.

  >>> codec = Codec(vocabulary=128_000, k=64)
  >>> codec.nbytes, Codec(128_000, 12, sampled=True).nbytes
  (258, 32)
  """

  vocabulary: int
  k: int
  sampled: bool = False

  def __post_init__(self):
    if not 1 <= self.vocabulary < 2**31:
      raise ValueError(
        f'vocabulary={self.vocabulary}; a number of ids from 1 to 2^31 - 1 is'
        ' expected.'
      )
    most = 2**15 if self.sampled else self.vocabulary
    if not 1 <= self.k <= most:
      raise ValueError(
        f'k={self.k} entries of {self.vocabulary} ids; 1 to {most} are expected.'
      )

  @property
  def id_bits(self) -> int:
    return (self.vocabulary - 1).bit_length()

  @property
  def value_bits(self) -> int:
    return self.k.bit_length() if self.sampled else 15

  @property
  def nbytes(self) -> int:
    """Bytes of a position."""
    bits = self.k * (self.id_bits + self.value_bits)
    return -(-bits // 8) + (0 if self.sampled else 2)

  def encode(
    self, ids: np.ndarray, log_probs: np.ndarray, log_tail: np.ndarray
  ) -> np.ndarray:
    """Bytes of each position.

    Args:
      ids: [..., k] int. Their order is kept.
      log_probs: [..., k], of these ids; natural logarithms.
      log_tail: [...], of the mass of all other ids; -inf where these are all.

    Returns:
      [..., nbytes] uint8.

    Raises:
      ValueError: shapes, ids that are not of the vocabulary, NaN, or masses that do
        not add up to 1.
    """
    ids, log_probs, log_tail = map(np.asarray, (ids, log_probs, log_tail))
    self._check(ids, log_probs, log_tail)
    if self.sampled:
      values = np.rint(self.k * np.exp(log_probs.astype(np.float64)))
    else:
      values = _half_bits(log_probs)
    words = ids.astype(np.uint64) << np.uint64(self.value_bits)
    words |= values.astype(np.uint64)
    packed = pack(words, self.id_bits + self.value_bits)
    if self.sampled:
      return packed
    tail = _half_bits(log_tail).astype('<u2')[..., None].view(np.uint8)
    return np.concatenate([packed, tail], axis=-1)

  def decode(self, codes: np.ndarray) -> Entries:
    """(ids [..., k] int32, log_probs [..., k] and log_tail [...] float32).

    Args:
      codes: [..., nbytes] uint8, from `encode`.
    """
    codes = np.ascontiguousarray(codes)
    packed = codes if self.sampled else codes[..., :-2]
    words = unpack(packed, self.id_bits + self.value_bits, self.k)
    ids = (words >> np.uint64(self.value_bits)).astype(np.int32)
    values = words & np.uint64((1 << self.value_bits) - 1)
    if self.sampled:
      with np.errstate(divide='ignore'):
        log_probs = np.log(values.astype(np.float32) / np.float32(self.k))
      return ids, log_probs, np.full(ids.shape[:-1], -np.inf, np.float32)
    log_probs = -values.astype(np.uint16).view(np.float16).astype(np.float32)
    tail = np.ascontiguousarray(codes[..., -2:]).view('<u2')[..., 0]
    log_tail = -tail.astype(np.uint16).view(np.float16).astype(np.float32)
    mass = np.exp(log_probs).sum(-1) + np.exp(log_tail)
    shift = np.log(mass)
    return ids, log_probs - shift[..., None], log_tail - shift

  def _check(self, ids, log_probs, log_tail):
    shape = (*log_tail.shape, self.k)
    if ids.shape != shape or log_probs.shape != shape:
      raise ValueError(
        f'ids are {list(ids.shape)}, log_probs {list(log_probs.shape)} and log_tail'
        f' {list(log_tail.shape)}; [..., {self.k}] twice and [...] are expected.'
      )
    if ids.size and not (0 <= ids.min() and ids.max() < self.vocabulary):
      raise ValueError(
        f'There are ids from {ids.min()} to {ids.max()}, and a vocabulary of'
        f' {self.vocabulary}. Give that of the teacher.'
      )
    mass = np.exp(log_probs.astype(np.float64)).sum(-1)
    mass = mass + np.exp(log_tail.astype(np.float64))
    # Also of NaN, which is near nothing.
    bad = ~(np.abs(mass - 1) < 1e-2)
    if bad.any():
      where = np.argwhere(bad)[0].tolist()
      raise ValueError(
        f'The masses of {bad.sum():,} of {bad.size:,} positions, first {where}, do not'
        f' add up to 1 but to {mass[bad][0]:.4g}. Give log-probabilities and the'
        ' logarithm of what is left, as `losses.tail.compress` does, not logits; and'
        ' no NaN, also not where a mask is 0.'
      )


def _half_bits(log_p):
  """The bits of -log p as float16, of which the sign is 0: uint16, below 2^15."""
  # A rounded sum may leave log p at 1e-7, above 0; and below -65504, p is 0.
  log_p = np.minimum(log_p.astype(np.float32), 0)
  with np.errstate(over='ignore'):
    return np.abs(log_p).astype(np.float16).view(np.uint16)


def pack(words: np.ndarray, bits: int) -> np.ndarray:
  """The low bits of each word, one after the other, low bits first.

  Args:
    words: [..., k] uint64, below 2^bits.
    bits: of a word, 1 to 56.

  Returns:
    [..., ceil(k * bits / 8)] uint8.

  >>> pack(np.uint64([1, 2, 3]), 4).tolist()
  [33, 3]
  """
  *lead, k = words.shape
  groups = -(-k // 8)
  # Eight words are `bits` bytes, so that each group begins at a byte.
  fill = [(0, 0)] * len(lead) + [(0, 8 * groups - k)]
  words = np.pad(words, fill).reshape(*lead, groups, 8)
  packed = np.zeros((*lead, groups, bits + 8), np.uint8)
  for i in range(8):
    # Word i begins at bit i * bits, and lies in the eight bytes from there on.
    byte, shift = divmod(i * bits, 8)
    window = (words[..., i, None] << np.uint64(shift)).astype('<u8')
    packed[..., byte : byte + 8] |= window.view(np.uint8)
  packed = packed[..., :bits].reshape(*lead, groups * bits)
  return packed[..., : -(-k * bits // 8)]


def unpack(packed: np.ndarray, bits: int, k: int) -> np.ndarray:
  """The first k words of what `pack` made: [..., k] uint64.

  >>> unpack(np.uint8([33, 3]), 4, 3).tolist()
  [1, 2, 3]
  """
  *lead, n = packed.shape
  groups = -(-k // 8)
  fill = [(0, 0)] * len(lead)
  packed = np.pad(packed, [*fill, (0, groups * bits - n)])
  # Eight bytes more, as the window of a last word ends behind its group.
  packed = np.pad(packed.reshape(*lead, groups, bits), [*fill, (0, 0), (0, 8)])
  words = np.empty((*lead, groups, 8), np.uint64)
  for i in range(8):
    byte, shift = divmod(i * bits, 8)
    window = np.ascontiguousarray(packed[..., byte : byte + 8]).view('<u8')
    words[..., i] = window[..., 0] >> np.uint64(shift)
  words &= np.uint64((1 << bits) - 1)
  return words.reshape(*lead, 8 * groups)[..., :k]
