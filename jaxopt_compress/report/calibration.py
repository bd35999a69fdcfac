"""Whether a network is right as often as it says.

    conf(b), acc(b)   mean confidence and accuracy of the answers in bin b
    ECE = sum_b n_b / n |acc(b) - conf(b)|

The confidence of an answer is the largest probability, and bin b holds those in
((b - 1) / B, b / B]. Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2.
"""

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15


def reliability(
  logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array | None = None,
  bins: int = BINS,
) -> jax.Array:
  """Sums over answers by their confidence; sums of batches add up.

  Args:
    logits: [..., classes].
    labels: [...], integers.
    mask: [...], weights; None: all 1. What has weight 0 may be anything.
    bins: B, as many as there are rows in the diagram.

  Returns:
    [3, bins] float32: how many answers there are, the sum of their confidences, and
    how many are right.

  Raises:
    ValueError: labels or mask do not have the shape of the positions.

  >>> sums = reliability(jnp.log(jnp.array([[.8, .2], [.2, .8]])), jnp.array([0, 0]))
  >>> [round(float(x), 3) for x in (*sums.sum(1), error(sums))]
  [2.0, 1.6, 1.0, 0.3]
  """
  positions = jnp.shape(logits)[:-1]
  for what, x in (('labels', labels), ('the mask', mask)):
    if x is not None and jnp.shape(x) != positions:
      raise ValueError(
        f'Logits are {list(jnp.shape(logits))} and {what} {list(jnp.shape(x))};'
        f' {list(positions)} is expected, one for each position.'
      )
  if bins < 1:
    raise ValueError(f'bins={bins}; one at least is expected.')
  weights = jnp.ones(positions) if mask is None else mask.astype(jnp.float32)
  counts = weights != 0
  wide = jnp.where(counts[..., None], logits.astype(jnp.float32), 0.0)
  confidence = jnp.max(jax.nn.softmax(wide), axis=-1)
  right = jnp.argmax(wide, axis=-1) == labels
  # Bins are open below, so that a confidence of 1 has one. NaN goes to the first, and
  # makes its error NaN.
  place = jnp.ceil(confidence * bins).astype(jnp.int32) - 1
  place = jnp.clip(jnp.where(jnp.isnan(confidence), 0, place), 0, bins - 1)
  of_bin = jax.nn.one_hot(place.reshape(-1), bins) * weights.reshape(-1, 1)
  told = jnp.stack([jnp.ones(positions), confidence, right], axis=-1)
  return told.reshape(-1, 3).T @ of_bin


def error(sums: jax.Array | np.ndarray) -> float:
  """The expected calibration error, from what `reliability` returns, added up.

  Raises:
    ValueError: it counts no answers.
  """
  count, confidence, right = np.asarray(sums, np.float64)
  if not count.sum():
    raise ValueError('No answer counts, so there is nothing to be calibrated.')
  return float(np.abs(right - confidence).sum() / count.sum())
