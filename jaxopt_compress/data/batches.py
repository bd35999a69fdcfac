"""Batches by number: `batches(...)[step]` is the batch of that step.

    epoch e is a permutation that depends only on (seed, e); joined end to end, the
    epochs are one endless sequence of examples, and batch s is its s-th slice

A run that resumes at step 1000 asks for batch 1000 and has no iterator to restore. The
permutations are elements of a grain `MapDataset`, https://google-grain.readthedocs.io.
A whole epoch is drawn at once, because grain's `shuffle` costs some 40 us for each
example, more than a small model's step.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools

import grain
import numpy as np

Arrays = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Batches:
  """An endless sequence of batches. Index it by the step."""

  arrays: Arrays
  batch_size: int
  seed: int
  order: Callable[[int], np.ndarray]  # epoch -> a permutation, [n] int.
  transform: Callable[[Batch, np.random.Generator], Batch] | None

  def __getitem__(self, step: int) -> Batch:
    indices = self.indices(int(step))
    batch = {name: x[indices] for name, x in self.arrays.items()}
    if self.transform is None:
      return batch
    # Random numbers depend on the step, not on how many batches came before it.
    return self.transform(batch, np.random.default_rng((self.seed, int(step))))

  def __iter__(self):
    step = 0
    while True:
      yield self[step]
      step += 1

  def indices(self, step: int) -> np.ndarray:
    """The indices of a step's examples, [batch_size] int."""
    if step < 0:
      raise IndexError(f'Batches are numbered from 0; this is {step}.')
    n = len(next(iter(self.arrays.values())))
    begin = step * self.batch_size
    epoch, place = divmod(begin, n)
    # A batch is no larger than the data, so it spans at most two epochs.
    last = (begin + self.batch_size - 1) // n
    order = np.concatenate([self.order(e) for e in range(epoch, last + 1)])
    return order[place : place + self.batch_size]


def batches(
  arrays: Arrays,
  *,
  batch_size: int,
  seed: int,
  transform: Callable[[Batch, np.random.Generator], Batch] | None = None,
) -> Batches:
  """Shuffled, repeated batches with random access by step.

  Every epoch has another order; a batch may span two epochs, so that all have
  the same size and no example is dropped.

  Args:
    arrays: named arrays, all [n, ...].
    batch_size: examples in a batch, at most n.
    seed: of the order and of the transform.
    transform: `(batch, rng) -> batch`; `rng` depends on seed and step only.

  Returns:
    An object whose `[step]` is a dict of arrays [batch_size, ...].

  Raises:
    ValueError: no data, arrays of different lengths, or too large a batch.

  >>> stream = batches({'x': np.arange(4)}, batch_size=2, seed=0)
  >>> sorted(np.concatenate([stream[0]['x'], stream[1]['x']]).tolist())
  [0, 1, 2, 3]
  """
  n = _length(arrays)
  if not 1 <= batch_size <= n:
    raise ValueError(
      f'batch_size is {batch_size}, and there are {n} examples. Choose a batch'
      f' size from 1 to {n}.'
    )
  orders = (
    grain.MapDataset.source([n])
    .repeat()
    .seed(seed)
    .random_map(lambda n, rng: rng.permutation(n))
  )
  # Two, since a batch may need the end of one epoch and the start of the next.
  order = functools.lru_cache(maxsize=2)(orders.__getitem__)
  return Batches(dict(arrays), batch_size, seed, order, transform)


def eval_batches(arrays: Arrays, batch_size: int) -> list[Batch]:
  """All examples once, in order, the last batch padded with its first example.

  Args:
    arrays: named arrays, all [n, ...].
    batch_size: examples in a batch; may exceed n.

  Returns:
    Batches of arrays [batch_size, ...], with `mask` [batch_size] bool: True for
    an example, False for padding.

  Raises:
    ValueError: no data, arrays of different lengths, or `mask` among them.

  >>> [b['mask'].tolist() for b in eval_batches({'x': np.arange(3)}, 2)]
  [[True, True], [True, False]]
  """
  n = _length(arrays)
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; it must be at least 1.')
  if 'mask' in arrays:
    raise ValueError(
      "An array is called 'mask', which is the name of the padding mask of an"
      ' evaluation batch. Give it another name.'
    )
  result = []
  for begin in range(0, n, batch_size):
    indices = np.arange(begin, begin + batch_size)
    mask = indices < n
    # Padding repeats a real example, so that models see nothing out of range.
    indices = np.where(mask, indices, begin)
    result.append({k: x[indices] for k, x in arrays.items()} | {'mask': mask})
  return result


def _length(arrays: Arrays) -> int:
  lengths = {name: len(x) for name, x in arrays.items()}
  if not lengths or 0 in lengths.values():
    raise ValueError(
      f'There is nothing to batch: the lengths are {lengths}. Check the path'
      ' and the split that the data came from.'
    )
  if len(set(lengths.values())) > 1:
    raise ValueError(
      f'The arrays have different lengths: {lengths}. Each holds one row for'
      ' each example.'
    )
  return next(iter(lengths.values()))
