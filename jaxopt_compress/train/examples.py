"""The examples of a plan: batches to train on, padded batches to be judged by."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from jaxopt_compress import data as data_lib
from jaxopt_compress.train import plan as plan_lib


@dataclasses.dataclass(frozen=True)
class Examples:
  """What a run reads; see `load`.

  Attributes:
    train: named arrays [n, ...].
    test: batches of the held-out examples, with 'mask'.
    module: where they come from; may have an `augment(batch, rng)`.
    example: an abstract batch of inputs.
  """

  train: Mapping[str, np.ndarray]
  test: Sequence[Mapping[str, np.ndarray]]
  module: Any
  example: jax.ShapeDtypeStruct
  seed: int

  def batches(self, stage: plan_lib.Stage) -> data_lib.Batches:
    """The batches of a stage, by step; each stage has an order of its own."""
    return data_lib.batches(
      self.train,
      batch_size=stage.batch_size,
      seed=plan_lib.stage_seed(self.seed, stage.name),
      transform=self.module.augment if stage.augment else None,
    )

  def describe(self) -> str:
    held_out = sum(int(b['mask'].sum()) for b in self.test)
    return (
      f'{len(next(iter(self.train.values())))} to train, {held_out} held out'
    )


def load(data: plan_lib.Data, seed: int) -> Examples:
  """Reads both splits of a dataset that `jaxopt_compress.data` has."""
  module = getattr(data_lib, data.name, None)
  if not hasattr(module, 'load'):
    raise ValueError(
      f'config.data.name is {data.name!r}, which is no module of'
      ' jaxopt_compress.data.'
    )
  train, test = module.load(data.train), module.load(data.test)
  if data.limit:
    test = {k: x[: data.limit] for k, x in test.items()}
  held_out = data_lib.eval_batches(test, data.eval_batch_size)
  x = held_out[0][data.input]
  return Examples(
    train=train,
    test=held_out,
    module=module,
    example=jax.ShapeDtypeStruct(x.shape, x.dtype),
    seed=seed,
  )
