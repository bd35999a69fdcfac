"""Text with bytes to be filled in: what an encoder is trained on.

    of the bytes of a window 15% are asked for; of these
    80% are replaced by MASK, 10% by another byte of the text, 10% stay

Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1, on bytes. MASK is 255,
which no UTF-8 has, so that there are 256 tokens still. The random byte is from anywhere in
the text, not one of all 256, most of which no text has.

Texts are read as `text` reads them. What is asked for depends on seed and step alone, and
on held-out text on the seed, so that every model is asked for the same bytes.
"""

import numpy as np

from jaxopt_compress.data import text as text_lib
from jaxopt_compress.data.batches import Batch
from jaxopt_compress.data.batches import Batches
from jaxopt_compress.data.batches import batches
from jaxopt_compress.data.batches import eval_batches
from jaxopt_compress.data.text import excerpts

__all__ = ['eval_windows', 'excerpts', 'hide', 'load', 'vocabulary', 'windows']

MASK = 255


def load(split: str, *args, **kwargs) -> np.ndarray:
  """The files of one split, as `text.load`.

  Raises:
    ValueError: as there; or a file has a byte 255, so that it is no UTF-8.
  """
  found = text_lib.load(split, *args, **kwargs)
  _check_utf8(found)
  return found


def vocabulary(text: np.ndarray) -> int:
  """How many tokens there are: with MASK, 256, whatever the text."""
  del text
  return MASK + 1


def hide(
  tokens: np.ndarray,
  text: np.ndarray,
  rng: np.random.Generator,
  rate: float = 0.15,
) -> Batch:
  """Hides some tokens, to be filled in.

  Args:
    tokens: [batch, length], bytes of a text.
    text: [n] uint8, where random bytes come from.
    rng: consumed.
    rate: of the tokens that are asked for, in (0, 1).

  Returns:
    `tokens` as the model sees them, `label` as they were, int32, `mask`, where they
    are asked for, and `input_mask`, where there are any: everywhere, bool; all [batch,
    length]. In each window at least one is asked for.

  >>> rng = np.random.default_rng(0)
  >>> batch = hide(np.full((1, 8), 97), np.full(9, 98, np.uint8), rng)
  >>> batch['tokens'].tolist(), int(batch['mask'].sum())
  ([[97, 97, 98, 255, 97, 97, 97, 97]], 2)
  """
  if not 0 < rate < 1:
    raise ValueError(
      f'rate={rate}; a part of the tokens, in (0, 1), is expected.'
    )
  label = tokens.astype(np.int32)
  chance = rng.random(tokens.shape)
  # The one with the smallest draw is asked for in any case: a window with no question
  # would be read in vain.
  asked = (chance < rate) | (chance == chance.min(-1, keepdims=True))
  what = rng.random(tokens.shape)
  other = text[rng.integers(0, len(text), tokens.shape)]
  seen = np.where(what < 0.8, MASK, np.where(what < 0.9, other, label))
  seen = np.where(asked, seen, label).astype(np.int32)
  there = np.ones(label.shape, bool)
  return {'tokens': seen, 'label': label, 'mask': asked, 'input_mask': there}


def windows(
  text: np.ndarray,
  *,
  batch_size: int,
  length: int,
  seed: int,
  rate: float = 0.15,
) -> Batches:
  """Windows of a text to train on, as batches indexed by the step.

  They start where those of `text.windows` do: up to `length` bytes later by chance.

  Args:
    text: [n] uint8.
    batch_size: windows in a batch.
    length: bytes in a window.
    seed: for the order, the starts and what is asked for.
    rate: of the bytes that are asked for.

  Returns:
    Batches of `tokens`, `label`, `mask` and `input_mask`: see `hide`.

  Raises:
    ValueError: the text is shorter than a window, or has too few for a batch.

  >>> text = np.frombuffer(b'abcdefgh', np.uint8)
  >>> batch = windows(text, batch_size=1, length=4, seed=0)[0]
  >>> bool((batch['label'] == batch['tokens'])[~batch['mask']].all())
  True
  """
  _check_utf8(text)
  last = text_lib.last_start(text, length)

  def read_windows(batch, rng):
    start = batch['start'] + rng.integers(0, length, len(batch['start']))
    tokens = _at(text, np.minimum(start, last), length)
    return hide(tokens, text, rng, rate)

  return batches(
    {'start': np.arange(0, last + 1, length)},
    batch_size=batch_size,
    seed=seed,
    transform=read_windows,
  )


def eval_windows(
  text: np.ndarray,
  *,
  batch_size: int,
  length: int,
  seed: int = 0,
  rate: float = 0.15,
) -> list[Batch]:
  """Windows side by side, each byte of a text in one of them; the same every time.

  Args:
    text: [n] uint8.
    batch_size: windows in a batch; the last is padded.
    length: bytes in a window.
    seed: for what is asked for.
    rate: of the bytes that are asked for.

  Returns:
    Batches of the same arrays. Bytes that the last
    window shares with the one before it are asked for in one of them only.

  Raises:
    ValueError: the text is shorter than a window.
  """
  _check_utf8(text)
  last = text_lib.last_start(text, length)
  rng = np.random.default_rng(seed)
  # The last window ends with the text; what it shares with the one before is not asked.
  ends = np.arange(length, len(text) + length, length)
  start = np.minimum(ends - length, last)
  result = []
  for batch in eval_batches({'start': start, 'end': ends}, batch_size):
    found = hide(_at(text, batch['start'], length), text, rng, rate)
    place = batch['start'][:, None] + np.arange(length)
    own = (place >= batch['end'][:, None] - length) & batch['mask'][:, None]
    found['mask'] &= own
    # What is not asked for is shown as it is.
    found['tokens'] = np.where(own, found['tokens'], found['label'])
    result.append(found)
  return result


def _check_utf8(text):
  if (text == MASK).any():
    raise ValueError(
      f'The text has a byte {MASK} at {int(np.argmax(text == MASK))}, so it is no'
      ' UTF-8, and that byte stands for what is hidden. Re-encode it, or leave the'
      ' file out.'
    )


def _at(text, start, length):
  return text[start[:, None] + np.arange(length)]
