"""What a training run is at one step, and how one step follows another.

    cparams   = compression.apply(params, comp_state)        masks, rounding
    outputs, stats = observe(apply, compression.observes(params))(cparams, variables, x)
    (sum, n)  = loss(outputs, batch, teacher(x))
    g         = d sum / d (params, learned), averaged over replicas, / mean n
    params, comp_state = pruning.advance(optimizer, compression, params, g, stats)

The parameters stay plain: optimizers, shardings and checkpoints never meet a mask.
All randomness comes from `rng` and `step`, so a run that resumes draws what it
would have drawn.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import pruning
from jaxopt_compress.analysis import observe
from jaxopt_compress.core import array
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import teachers
from jaxopt_compress.parallel import mesh as mesh_lib

# Of a model: what it answers, and intermediate values by name.
Outputs = tuple[jax.Array, Any]
# `(outputs, batch, teacher_outputs) -> (sum, count)` over the examples that count.
# `teacher_outputs` is None without a teacher.
Loss = Callable[[Outputs, Any, Outputs | None], tuple[jax.Array, jax.Array]]


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
  """

  step: jax.Array
  params: Any
  variables: Any
  opt_state: Any
  comp_state: Any
  learned: Any
  learned_opt_state: Any
  rng: jax.Array


def create(
  params: Any,
  variables: Any,
  rng: jax.Array,
  optimizer: optax.GradientTransformation,
  *,
  compression: compression_lib.Compression | None = None,
  learned_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
  """The state before the first step. Works under `jax.eval_shape`.

  Raises:
    ValueError: a leaf of `params` is compressed: the optimizer would take its codes
      for weights.
  """
  mesh_lib.check_plain(params, 'the parameters of an optimizer')
  compression = compression or compression_lib.chain()
  learned, comp_state = compression_lib.split_learned(compression.init(params))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    variables=variables,
    opt_state=optimizer.init(params),
    comp_state=comp_state,
    learned=learned,
    learned_opt_state=(learned_optimizer or optimizer).init(learned),
    rng=rng,
  )


def compressed(
  state: TrainState, compression: compression_lib.Compression
) -> Any:
  """The parameters as the forward pass of `state` sees them."""
  full = compression_lib.merge_learned(state.learned, state.comp_state)
  return compression.apply(state.params, full)


def train_step(
  apply: Callable[..., tuple[jax.Array, Any, Any]],
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  inputs: str,
  compression: compression_lib.Compression | None = None,
  learned_optimizer: optax.GradientTransformation | None = None,
  teacher: Callable[..., tuple[jax.Array, Any, Any]] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """A step for one replica, to be run by `parallel.data_parallel`.

  Args:
    apply: `(params, variables, x, *, train, rngs) -> (y, out, variables)`.
    loss: a `Loss`.
    optimizer: of the parameters.
    inputs: the name of the model's input in a batch.
    compression: what happens to the parameters meanwhile.
    learned_optimizer: of what the compression learns; the same by default.
    teacher: apply of a teacher, or None. Its weights are an *argument* of the step,
      never a constant of the program, and see no gradient.

  Returns:
    `(state, batch, replicas[, (params, variables) of the teacher])
    -> (state, metrics)`, metrics being `loss` and `grad_norm`.
  """
  compression = compression or compression_lib.chain()
  learned_optimizer = learned_optimizer or optimizer
  # Lifted first: what is frozen are the arrays of its leaves, which stay compressed.
  taught = teachers.frozen(lift.lift(teacher)) if teacher else None

  def step(state, batch, replicas, frozen=None):
    x = batch[inputs]
    key = replicas.fold_in(jax.random.fold_in(state.rng, state.step))
    teacher_outputs = taught(*frozen, x)[:2] if taught else None
    wanted = compression.observes(state.params)

    def total_loss(params, learned):
      full = compression_lib.merge_learned(learned, state.comp_state)
      cparams = compression.apply(params, full)

      def forward(params, variables, x):
        return apply(params, variables, x, train=True, rngs=key)

      (y, out, variables), stats = _observed(forward, wanted)(
        cparams, state.variables, x
      )
      total, count = loss((y, out), batch, teacher_outputs)
      return total, (count.astype(total.dtype), variables, stats)

    (total, (count, variables, stats)), grads = jax.value_and_grad(
      total_loss, argnums=(0, 1), has_aux=True
    )(state.params, state.learned)
    # Gradients of sums: averaged over replicas and divided by the mean count they
    # are those of the mean over all examples, however the mask cuts them.
    total, count, grads = replicas((total, count, grads))
    variables = _mean_of_floats(replicas, variables)
    if stats and replicas.axis is not None:
      stats = observe.reduce_stats(wanted, stats, replicas.axis)
    grads = jax.tree.map(lambda g: losses.mean(g, count), grads)

    metrics = {
      'loss': losses.mean(total, count),
      'grad_norm': optax.tree.norm(grads),
    }
    state = _next(
      state,
      grads,
      variables,
      stats,
      optimizers=(optimizer, learned_optimizer),
      compression=compression,
    )
    return state, metrics

  return step


def _next(state, grads, variables, stats, *, optimizers, compression):
  """The state after one step, from gradients of (params, learned)."""
  done = pruning.advance.advance(
    optimizers,
    compression,
    grads,
    (state.opt_state, state.learned_opt_state),
    state.params,
    compression_lib.merge_learned(state.learned, state.comp_state),
    state.step,
    statistics=stats,
  )
  learned, comp_state = compression_lib.split_learned(done.state)
  return TrainState(
    step=done.step,
    params=optax.apply_updates(state.params, done.updates),
    variables=variables,
    opt_state=done.opt_states[0],
    comp_state=comp_state,
    learned=learned,
    learned_opt_state=done.opt_states[1],
    rng=state.rng,
  )


def _observed(forward, wanted):
  """`forward` of compressed parameters: (its result, what they met)."""
  if not wanted:
    return lambda *args: (lift.lift(forward)(*args), {})
  return observe.observe(forward, wanted)


def _mean_of_floats(replicas, variables):
  """Batch statistics are averaged; counters are the same everywhere."""
  return jax.tree.map(
    lambda x: replicas(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x,
    variables,
  )


@jax.jit
def is_finite(tree: Any) -> jax.Array:
  """Whether every floating number of `tree` is finite: scalar bool."""
  finite = jnp.bool_(True)
  for x in jax.tree.leaves(array.materialize(tree)):
    if jnp.issubdtype(x.dtype, jnp.inexact):
      finite &= jnp.isfinite(x).all()
  return finite
