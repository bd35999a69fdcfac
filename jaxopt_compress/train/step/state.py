"""What a training run is at one step.

The parameters stay plain: optimizers, shardings and checkpoints never meet a mask.
All randomness comes from `rng` and `step`, so a run that resumes draws what it
would have drawn.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress.core import array
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.parallel import mesh as mesh_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a step reads and writes; a pytree of arrays.

  Attributes:
    step: scalar int32, how many optimizer steps are done.
    params: plain parameters, as the model has them.
    variables: what else the model keeps (batch statistics).
    opt_state: of the optimizer of `params`.
    comp_state: of the compression, without what is learned.
    learned: `{path: value}`, what is learned beside the weights.
    learned_opt_state: of the optimizer of `learned`.
    rng: a key that never changes; step i uses `fold_in(rng, i)`.
    average: (params, variables), the moving average of what the student computes
      with, float32; () where nobody asks for it. No part of what a stage leaves.
    origins: {path: where a penalty draws a parameter to}, see `train.penalty`.
    connectors: of features, see `train.features`; () if there are none. They are
      trained as the parameters are, and no part of what a stage leaves.
    connectors_opt_state: of their optimizer.
  """

  step: jax.Array
  params: Any
  variables: Any
  opt_state: Any
  comp_state: Any
  learned: Any
  learned_opt_state: Any
  rng: jax.Array
  average: Any = ()
  origins: Any = ()
  connectors: Any = ()
  connectors_opt_state: Any = ()


def create(
  params: Any,
  variables: Any,
  rng: jax.Array,
  optimizer: optax.GradientTransformation,
  *,
  compression: compression_lib.Compression | None = None,
  learned_optimizer: optax.GradientTransformation | None = None,
  follow: bool = False,
  origins: Any = (),
  connectors: Any = (),
) -> TrainState:
  """The state before the first step. Works under `jax.eval_shape`.

  Args:
    params, variables: of the model.
    rng: see `TrainState`.
    optimizer: of the parameters.
    compression: what happens to the parameters meanwhile.
    learned_optimizer: of what the compression learns; the same by default.
    follow: whether a moving average of the student is kept.
    origins, connectors: see `TrainState`.

  Raises:
    ValueError: a leaf of `params` is compressed: the optimizer would take its codes
      for weights.
  """
  mesh_lib.check_plain(params, 'the parameters of an optimizer')
  compression = compression or compression_lib.chain()
  full = compression.init(params)
  learned, comp_state = compression_lib.split_learned(full)
  average = ()
  if follow:
    seen = compression.apply(params, full), variables
    average = jax.tree.map(_wide, array.materialize(seen))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    variables=variables,
    opt_state=optimizer.init(params),
    comp_state=comp_state,
    learned=learned,
    learned_opt_state=(learned_optimizer or optimizer).init(learned),
    rng=rng,
    average=average,
    origins=origins,
    connectors=connectors,
    connectors_opt_state=optimizer.init(connectors) if connectors else (),
  )


def _wide(x):
  # A small share of a step is lost in bfloat16.
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def compressed(
  state: TrainState, compression: compression_lib.Compression
) -> Any:
  """The parameters as the forward pass of `state` sees them."""
  full = compression_lib.merge_learned(state.learned, state.comp_state)
  return compression.apply(state.params, full)
