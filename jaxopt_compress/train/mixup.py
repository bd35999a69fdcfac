"""Inputs that are mixtures of two examples, made inside of the step.

    x_i' = s x_i + (1 - s) x_(i - 1),    s = max(b, 1 - b),   b ~ Beta(c, c)

Zhang et al. 2017, https://arxiv.org/abs/1710.09412, section 2, with one s for a batch; in
`shard_map` and `pmap` each device draws its own. Student and teacher see the same
mixtures: that is what makes distillation match functions, also between the examples.
Beyer et al. 2021, https://arxiv.org/abs/2106.05237, section 3.
"""

import jax
import jax.numpy as jnp


def mixed(
  x: jax.Array, key: jax.Array, concentration: float
) -> tuple[jax.Array, jax.Array]:
  """Each example with the one before it in the batch.

  Args:
    x: [b, ...], floating.
    key: consumed.
    concentration: c > 0; 1 draws b evenly from [0, 1].

  Returns:
    (mixtures [b, ...], s, a scalar in [0.5, 1]): the share of the example itself.

  Raises:
    ValueError: inputs that are not floating, such as tokens.

  >>> x, s = mixed(jnp.eye(2), jax.random.key(0), 1.0)
  >>> bool(jnp.allclose(x[0], jnp.stack([s, 1 - s])))
  True
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'Inputs are {x.dtype}: there is nothing between two of them. Leave mixup at'
      ' 0, which is for images.'
    )
  share = jax.random.beta(key, concentration, concentration)
  share = jnp.maximum(share, 1 - share).astype(x.dtype)
  return share * x + (1 - share) * jnp.roll(x, 1, axis=0), share
