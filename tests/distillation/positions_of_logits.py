"""Logits, a mask of positions, and a divergence in float64, for tests of losses."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special


def log_softmax(x):
  return special.log_softmax(np.asarray(x, np.float64), axis=-1)


def kl_oracle(student, teacher, temperature=1.0):
  log_q = log_softmax(np.asarray(student, np.float64) / temperature)
  log_p = log_softmax(np.asarray(teacher, np.float64) / temperature)
  return temperature**2 * special.rel_entr(np.exp(log_p), np.exp(log_q)).sum(-1)


def logits(seed, shape=(3, 5, 7), dtype=jnp.float32):
  return (3 * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


MASK = np.array(
  [[1, 0, 1, 0.5, 1], [0, 0, 0, 0, 0], [2, 1, 0, 1, 1]], np.float32
)
