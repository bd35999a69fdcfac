"""Which number an answer has, of those that are kept.

    by example   number i is example i of the data, which comes again unchanged
    by step      number s * b + r is row r of batch s

An example that is augmented, and a window of a text that starts anywhere, is another
one each time: an answer to what it was before would be wrong. Batches are functions of
their step, so by step all answers are right, at the price of one for each row of each
step. Augmented data, texts, and stages shorter than an epoch are numbered by step.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from jaxopt_compress import data as data_lib
from jaxopt_compress.distillation import cache
from jaxopt_compress.train import fields
from jaxopt_compress.train import options


@dataclasses.dataclass(frozen=True)
class Numbered:
  """Inputs by the number of the answer to them.

  Attributes:
    count: how many there are.
    inputs: `numbers [b] -> inputs [b, ...]`; by step, numbers of one batch.
    numbers: `step -> [b]`, of the rows of its batch.
    data: a digest of all inputs.
    by: 'example' or 'step'.
  """

  count: int
  inputs: Callable[[np.ndarray], np.ndarray]
  numbers: Callable[[int], np.ndarray]
  data: str
  by: str


def numbered(
  batches: data_lib.Batches,
  stage: options.Stage,
  data: options.Data,
  content: Any,
) -> Numbered:
  """The inputs of a stage.

  Args:
    batches: that it is trained on.
    stage, data: of the config.
    content: what batches are made of, a tree of arrays.
  """
  name, b = data.input, stage.batch_size
  rows = stage.steps * b
  whole = None if batches.transform else batches.arrays[name]
  if whole is not None and len(whole) <= rows:
    return Numbered(
      count=len(whole),
      inputs=lambda numbers: whole[numbers],
      numbers=batches.indices,
      data=cache.fingerprint(whole),
      by='example',
    )

  def inputs(numbers):
    steps, places = np.divmod(numbers, b)
    assert (steps == steps[0]).all(), steps
    return batches[steps[0]][name][places]

  return Numbered(
    count=rows,
    inputs=inputs,
    numbers=lambda step: step * b + np.arange(b),
    data=_digest(batches, stage, data, content),
    by='step',
  )


def _digest(batches, stage, data, content):
  """Of the batches of a stage, without making them all."""
  said = {
    'data': fields.written(data),
    'seed': batches.seed,
    'batch_size': stage.batch_size,
    'augment': stage.augment,
    'files': stage.files,
    'content': cache.fingerprint(content),
    # How batches are cut and augmented may change with a version of this library.
    'ends': [
      cache.fingerprint(batches[step][data.input])
      for step in (0, stage.steps - 1)
    ],
  }
  text = json.dumps(said, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
