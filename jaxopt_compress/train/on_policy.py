"""Batches of text that the student writes itself: the words `on_policy` and `prompt`.

    window    a b c d e        of the data; its inputs are 0 a b c d, its labels a b c d e
    prompt    0 a b            the first 3 inputs
    drawn     0 a b x y z      by the student, as it is while it is trained
    inputs    0 a b x y        labels a b x y z, of which x, y and z count

`on_policy` is the share of batches that are drawn, and may change with the steps. The
teacher, and a loss of student and teacher, see the batch as it has become: Agarwal et
al. 2023, https://arxiv.org/abs/2306.13649, algorithm 1.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from jaxopt_compress import models
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import on_policy
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import named
from jaxopt_compress.train import options
from jaxopt_compress.train import schedules

# A key that no replica has: those fold in their number.
_OWN = 2**32 - 1


def check(where: str, stage: options.Stage, data: options.Data) -> None:
  """Raises a ValueError where a student cannot draw what it learns from.

  Args:
    where: the path of the stage in the config.
    stage: its options.
    data: those of the config.
  """
  distil = stage.distil
  if not distil.on_policy:
    return
  schedules.check(f'{where}.on_policy', distil.on_policy, '[0, 1]')
  if data.name != 'text':
    raise ValueError(
      f'{where}.on_policy is {distil.on_policy!r}, and the data are {data.name!r}: a'
      " student draws the next tokens of a text. Set data.name to 'text'."
    )
  if distil.alpha != 1:
    raise ValueError(
      f'{where}.alpha is {distil.alpha!r}, and on_policy makes labels of what the'
      ' student says: it would learn to say it again. Set alpha=1.0.'
    )
  if stage.cache.asked:
    raise ValueError(
      f'{where}.cache holds answers to the data, and on_policy asks the teacher of'
      ' what the student says. Leave one of them out.'
    )
  if distil.prompt > data.window:
    raise ValueError(
      f'{where}.prompt is {distil.prompt}, and a window has {data.window} inputs:'
      ' nothing is left to be drawn. Make it smaller.'
    )


def redraws(
  stage: options.Stage, model: model_lib.Model, data: options.Data
) -> Callable[..., dict[str, Any]] | None:
  """`(params, variables, batch, step, key, replicas) -> batch`, or None.

  Args:
    stage: that trains.
    model: its student, which goes on from a cache.
    data: which says what inputs and labels are called.

  Raises:
    ValueError: the model has no cache.
  """
  if not stage.distil.on_policy:
    return None
  keywords, module = dict(model.keywords), None
  if not named.is_own(keywords['name']):
    module = nnx.eval_shape(
      lambda: models.build(keywords.pop('name'), **keywords)
    )
  if not hasattr(module, 'init_cache'):
    raise ValueError(
      f'on_policy draws token after token from a cache, and the model'
      f' {model.name!r} has none. Choose a decoder, or leave out on_policy.'
    )
  ratio = schedules.at(stage.distil.on_policy, stage.steps)
  length = stage.distil.prompt

  def redraw(params, variables, batch, step, key, replicas):
    x, labels = batch[data.input], batch[data.target]
    known = batch.get('mask', jnp.ones(len(x)))
    known = known.astype(jnp.float32).reshape(len(x), -1)
    tokens = jnp.concatenate([x[:, :1], labels.astype(x.dtype)], axis=1)
    mask = jnp.broadcast_to(known, labels.shape)

    def decode(params, tokens, cache):
      y, out, _ = model.apply(params, variables, (tokens, cache))
      return y, out['cache']

    def draw(key):
      return on_policy.sample(
        lift.lift(decode),
        params,
        tokens[:, :length],
        module.init_cache(len(x)),
        length=tokens.shape[1] - length,
        key=replicas.fold_in(key),
      )

    given = on_policy.Drawn(tokens, jnp.pad(mask, ((0, 0), (1, 0))))
    drawn = on_policy.mixed(
      jax.random.fold_in(key, _OWN), ratio(step), draw, given
    )
    return batch | {
      data.input: drawn.tokens[:, :-1].astype(x.dtype),
      data.target: drawn.tokens[:, 1:].astype(labels.dtype),
      # Padded windows stay out, whoever wrote them.
      'mask': drawn.mask[:, 1:] * (known != 0),
    }

  return redraw
