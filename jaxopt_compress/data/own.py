"""What a user's own function gives, as arrays, or what is wrong with it.

    def load(split, **keywords):
      return {'features': x, 'target': t}        arrays of one length [n, ...]
      return source                              or a sequence of such dicts of one example

A sequence has a length and is indexed from 0, as a list or a grain `MapDataset` is.
Arrays are taken as they are: nothing is scaled, normalised or moved.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_compress.core import choices

Arrays = dict[str, np.ndarray]


def arrays(found: Any, names: tuple[str, str], where: str) -> Arrays:
  """The inputs and targets among what a function gave.

  Args:
    found: a dict of arrays, or a sequence of dicts.
    names: of the inputs, and of the targets.
    where: what was called, for messages.

  Returns:
    {name: [n, ...]}; of floating numbers, float32.

  Raises:
    ValueError: nothing of these names, no examples, or arrays that do not fit
      together.

  >>> some = [{'x': [1.0, 2.0], 'y': 0}, {'x': [3.0, 4.0], 'y': 1}]
  >>> arrays(some, ('x', 'y'), 'load')['x'].shape
  (2, 2)
  """
  if not isinstance(found, Mapping):
    found = _stacked(found, names, where)
  for name, key in zip(names, ('input', 'target'), strict=True):
    choices.one_of(
      f'{where} gives {sorted(found)}; config.data.{key}', name, found
    )
  result = {name: _array(found[name], f'{where}: {name!r}') for name in names}
  lengths = {name: len(x) for name, x in result.items()}
  if 0 in lengths.values():
    raise ValueError(f'{where} gives no examples: the lengths are {lengths}.')
  if len(set(lengths.values())) > 1:
    raise ValueError(
      f'{where} gives arrays of different lengths: {lengths}. Each has one row for'
      ' each example.'
    )
  return result


def _stacked(found, names, where):
  """A sequence of examples as arrays."""
  if not (hasattr(found, '__getitem__') and hasattr(found, '__len__')):
    raise ValueError(
      f'{where} gives a value of type {type(found).__name__}; a dict of arrays is'
      ' expected, or a sequence of dicts with a length. Of an iterator make a list.'
    )
  if not 0 < len(found) < 2**40:
    said = 'no examples' if not len(found) else 'examples without an end'
    raise ValueError(f'{where} gives {said}. Give each example once.')
  examples = [found[i] for i in range(len(found))]
  if not isinstance(examples[0], Mapping):
    raise ValueError(
      f'{where} gives a sequence of {type(examples[0]).__name__}; of dicts with'
      f' {names[0]!r} and {names[1]!r} is expected.'
    )
  columns = {}
  for name in examples[0]:
    if name not in names:
      continue
    for i, e in enumerate(examples):
      if not isinstance(e, Mapping) or name not in e:
        there = sorted(map(str, e)) if isinstance(e, Mapping) else f'{e!r:.80}'
        raise ValueError(
          f'{where}: example {i} has no {name!r}, as example 0 has: it is {there}.'
          ' Give all of them the same keys, or leave it out.'
        )
    column = [_even(e[name], f'{where}: {name!r}') for e in examples]
    for i, x in enumerate(column):
      if x.shape != column[0].shape:
        raise ValueError(
          f'{where}: {name!r} of example {i} is {list(x.shape)}, and of example 0'
          f' {list(column[0].shape)}. Bring all to one shape.'
        )
    columns[name] = np.stack(column)
  return columns


def _even(x, what):
  try:
    return np.asarray(x)
  except ValueError as e:
    raise ValueError(
      f'{what} has rows of different lengths. Bring all to one shape. ({e})'
    ) from e


def _array(x, what):
  x = _even(x, what)
  if x.dtype.kind in 'USO':
    said = 'text' if x.dtype.kind in 'US' else 'objects of Python'
    raise ValueError(
      f'{what} is {said}, such as {x.reshape(-1)[:1].tolist()}; numbers are expected.'
      ' Number the classes: names, label = np.unique(x, return_inverse=True).'
    )
  if x.dtype.kind not in 'biuf':
    raise ValueError(
      f'{what} is {x.dtype}{list(x.shape)}; numbers are expected.'
    )
  if not x.ndim:
    raise ValueError(f'{what} is one number; one for each example is expected.')
  if x.dtype == np.uint8 and x.ndim > 2:
    raise ValueError(
      f'{what} is uint8{list(x.shape)}, and arrays are taken as they are. Return'
      " them as the network takes them: x.astype('float32') / 255."
    )
  if x.dtype.kind in 'iu' and x.dtype.itemsize > 4:
    info = np.iinfo(np.int32)
    if x.size and not info.min <= x.min() <= x.max() <= info.max:
      raise ValueError(
        f'{what} has numbers from {x.min()} to {x.max()}, which int32 does not hold.'
      )
    x = x.astype(np.int32)
  if x.dtype.kind == 'f':
    x = x.astype(np.float32)
    wrong = ~np.isfinite(x)
    if wrong.any():
      rows = np.flatnonzero(wrong.reshape(len(x), -1).any(1))
      raise ValueError(
        f'{what} has NaN or infinity in {len(rows)} of {len(x)} examples, the first'
        f' of them {rows[0]}. Leave them out, or fill them in.'
      )
  return x


def check_classes(labels: np.ndarray, what: str) -> np.ndarray:
  """Labels as int32.

  Args:
    labels: of any type.
    what: begins the message: 'y is'.

  Raises:
    ValueError: they are no numbers of classes; the message says what to do.
  """
  shown = f'{what} {labels.dtype}{list(labels.shape)}'
  hint = 'whole numbers of classes [n], from 0, are expected.'
  if labels.dtype.kind == 'f':
    more = " For numbers as answers set task='regression'."
    if labels.ndim == 2 and np.all(labels.sum(-1) == 1):
      more = ' These look like one number for each class: take .argmax(-1).'
    elif np.all(labels == np.round(labels)):
      more = f" Of whole numbers take .astype('int32').{more}"
    raise ValueError(f'{shown}; {hint}{more}')
  if labels.dtype.kind not in 'iu':
    raise ValueError(f'{shown}; {hint}')
  if labels.min() < 0:
    raise ValueError(
      f'{shown} with {labels.min()} in {int((labels < 0).sum())} of {labels.size}'
      f' places; {hint}'
    )
  return labels.astype(np.int32)
