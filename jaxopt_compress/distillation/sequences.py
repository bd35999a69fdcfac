"""What a sequence model is asked at each position: the token after it.

    tokens     a b c | d e f 0      two sequences packed in one row, and padding
    segments   1 1 1   2 2 2 0
    inputs     a b c   d e f
    labels     b c d   e f 0
    weights    1 1 0   1 1 0       c is not asked for d, nor f for what pads

Losses take the weights as their mask. Their sum and count are then those of the
sequences one by one, however they are packed and cut into batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Asked(NamedTuple):
  """Inputs of a model, and what it should say at each position.

  Attributes:
    inputs: [batch, time - 1], tokens.
    labels: [batch, time - 1], the token after each.
    weights: [batch, time - 1], what each counts; float32.
  """

  inputs: jax.Array
  labels: jax.Array
  weights: jax.Array


def next_tokens(
  tokens: jax.Array,
  *,
  weights: jax.Array | None = None,
  segments: jax.Array | None = None,
) -> Asked:
  """Every token is asked of the position before it.

  Args:
    tokens: [batch, time] integers.
    weights: [batch, time], what each token counts as a label, bool or number: such as 1
      for the tokens of an answer and 0 for those of a prompt; None: all count.
    segments: [batch, time] integers, 1, 2, ... for the sequences packed in a row, 0 for
      padding; None: each row is one sequence. No loss crosses the border of two. A
      model whose attention crosses it still sees what lies before: give it the
      segments, too.

  Raises:
    ValueError: shapes differ, or there is no token to ask for.

  >>> asked = next_tokens(jnp.array([[7, 8, 9, 5]]), segments=jnp.array([[1, 1, 2, 2]]))
  >>> asked.labels.tolist(), asked.weights.tolist()
  ([[8, 9, 5]], [[1.0, 0.0, 1.0]])
  """
  for name, x in (('weights', weights), ('segments', segments)):
    if x is not None and x.shape != tokens.shape:
      raise ValueError(
        f'{name} have shape {x.shape}, tokens {tokens.shape}: one for each token is'
        ' expected.'
      )
  if tokens.ndim != 2 or tokens.shape[1] < 2:
    raise ValueError(
      f'Tokens have shape {tokens.shape}; [batch, time] with a time of 2 or more is'
      ' expected: the first token is given, and asked of no position.'
    )
  counts = jnp.ones(tokens.shape) if weights is None else weights
  counts = counts[:, 1:].astype(jnp.float32)
  if segments is not None:
    same = segments[:, 1:] == segments[:, :-1]
    counts = jnp.where(same & (segments[:, 1:] != 0), counts, 0.0)
  return Asked(tokens[:, :-1], tokens[:, 1:], counts)
