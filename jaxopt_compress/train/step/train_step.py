"""How one step follows another.

cparams   = compression.apply(params, comp_state)        masks, rounding
outputs, stats = observe(apply, compression.observes(params))(cparams, variables, x)
parts     = loss(outputs, batch, what the teachers say of x, step)
L         = total of the parts, see `loss`
g         = d L / d (params, learned, connectors), averaged over replicas
params, comp_state = pruning.advance(optimizer, compression, params, g, stats)
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import pruning
from jaxopt_compress.analysis import observe
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import teachers as teachers_lib
from jaxopt_compress.train import mixup as mixup_lib
from jaxopt_compress.train.step import accumulate as accumulate_lib
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib


def train_step(
  apply: Callable[..., tuple[jax.Array, Any, Any]],
  loss: loss_lib.Loss,
  optimizer: optax.GradientTransformation,
  *,
  inputs: str,
  compression: compression_lib.Compression | None = None,
  learned_optimizer: optax.GradientTransformation | None = None,
  teachers: Sequence[Callable[..., tuple[jax.Array, Any, Any]]] = (),
  ema_decay: float | None = None,
  mixup: float = 0.0,
  redraw: Callable[..., Any] | None = None,
  accumulate: int = 1,
) -> Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]:
  """A step for one replica, to be run by `parallel.data_parallel`.

  Args:
    apply: `(params, variables, x, *, train, rngs) -> (y, out, variables)`.
    loss: a `loss.Loss`.
    optimizer: of the parameters.
    inputs: the name of the model's input in a batch.
    compression: what happens to the parameters meanwhile.
    learned_optimizer: of what the compression learns; the same by default.
    teachers: apply of each teacher. Their weights are an *argument* of the step,
      never constants of the program, and see no gradient.
    ema_decay: of the moving average of the student, which is the last teacher; None:
      there is none. The state is created with `follow`.
    mixup: concentration of `mixup.mixed`; 0: inputs stay as they are.
    redraw: `(compressed params, variables, batch, step, key, replicas) -> batch`, what
      the student makes of a batch before it learns from it; see `on_policy`.
    accumulate: in how many parts a batch is computed, one after the other.

  Returns:
    `(state, batch, replicas[, ((params, variables) of each teacher, ...)])
    -> (state, metrics)`, metrics being `loss`, its parts where there are several, each
    without its weight, and `grad_norm`.
  """
  compression = compression or compression_lib.chain()
  learned_optimizer = learned_optimizer or optimizer
  # Lifted first: what is frozen are the arrays of its leaves, which stay compressed.
  follow = ema_decay is not None
  all_teachers = (*teachers, *[apply] * follow)
  taught = [teachers_lib.frozen(lift.lift(f)) for f in all_teachers]

  def step(state, batch, replicas, frozen=()):
    key = replicas.fold_in(jax.random.fold_in(state.rng, state.step))
    batch = _redrawn(redraw, state, compression, batch, replicas)
    wanted = compression.observes(state.params)
    look = _Look(
      apply=apply,
      loss=loss,
      compression=compression,
      inputs=inputs,
      mixup=mixup,
      taught=taught,
      frozen=(*frozen, *[state.average] * follow),
      state=state,
      wanted=wanted,
      replicas=replicas,
    )
    whole = batch, state.variables, key
    if accumulate == 1:
      (total, found), grads = look.gradient(*whole)
    else:
      (total, found), grads = accumulate_lib.accumulated(
        look.gradient, look.counts, *whole, n=accumulate, wanted=wanted
      )
    means, variables, stats = found
    total, means, grads = replicas((total, means, grads))
    variables = _mean_of_floats(replicas, variables)
    if stats and replicas.axis is not None:
      stats = observe.reduce_stats(wanted, stats, replicas.axis)
    metrics = _metrics(total, means, grads)
    optimizers = optimizer, learned_optimizer
    state = _connected(state, grads[2], optimizer)
    state = _next(state, grads[:2], variables, stats, optimizers, compression)
    if follow:
      state = _followed(state, compression, ema_decay)
    return state, metrics

  return step


@dataclasses.dataclass(frozen=True)
class _Look:
  """What a forward pass reads beside a batch, in the step of one replica."""

  apply: Callable[..., Any]
  loss: loss_lib.Loss
  compression: compression_lib.Compression
  inputs: str
  mixup: float
  taught: Sequence[Callable[..., Any]]
  frozen: Sequence[Any]  # (params, variables) of each of those
  state: state_lib.TrainState
  wanted: Any  # statistics
  replicas: Any

  @property
  def trained(self):
    """What derivatives are taken of."""
    return self.state.params, self.state.learned, self.state.connectors

  def parts(self, batch, variables, key):
    """`(params, learned, connectors) -> (parts, new variables, statistics)`."""
    x, share = _mixed(batch[self.inputs], key, self.mixup)
    said = _answers(self.taught, self.frozen, x)
    known = _known(self.state, batch, said, share, self.replicas)

    def parts(params, learned, connectors):
      full = compression_lib.merge_learned(learned, self.state.comp_state)
      cparams = self.compression.apply(params, full)

      def forward(params, variables, x):
        return self.apply(params, variables, x, train=True, rngs=key)

      (y, out, new), stats = _observed(forward, self.wanted)(
        cparams, variables, x
      )
      seen = known(outputs=(y, out), params=params, connectors=connectors)
      return self.loss(seen), new, stats

    return parts

  def gradient(self, batch, variables, key, counts=None):
    """((loss, (means, variables, statistics)), gradients); see `loss.total`."""
    parts_of = self.parts(batch, variables, key)

    def total_loss(*trained):
      parts, new, stats = parts_of(*trained)
      total, means = loss_lib.total(
        parts, counts or loss_lib.counts(parts, self.replicas)
      )
      return total, (means, new, stats)

    values = jax.value_and_grad(total_loss, argnums=(0, 1, 2), has_aux=True)
    return values(*self.trained)

  def counts(self, batch, variables, key):
    """Of the parts of the loss."""
    parts, _, _ = self.parts(batch, variables, key)(*self.trained)
    return loss_lib.counts(parts, self.replicas)


def _followed(state, compression, decay):
  """The state after its moving average has moved.

  In the first steps the average is the plain mean, so that it soon forgets how the
  student began: Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780, of the
  authors' code.
  """
  done = state.step.astype(jnp.float32)
  decay = jnp.minimum(decay, 1 - 1 / jnp.maximum(done, 1))
  student = state_lib.compressed(state, compression), state.variables
  average = teachers_lib.moving_average(state.average, student, decay)
  return dataclasses.replace(state, average=average)


def _redrawn(redraw, state, compression, batch, replicas):
  if redraw is None:
    return batch
  # Of all replicas: what they do alike, they draw alike.
  key = jax.random.fold_in(state.rng, state.step)
  student = state_lib.compressed(state, compression), state.variables
  return redraw(*student, batch, state.step, key, replicas)


def _mixed(x, key, concentration):
  if not concentration:
    return x, None
  return mixup_lib.mixed(x, jax.random.fold_in(key, 0), concentration)


def _known(state, batch, said, share, replicas):
  """`Seen`, but for what derivatives are taken of."""
  return functools.partial(
    loss_lib.Seen,
    batch=batch,
    teachers=said,
    step=state.step,
    share=share,
    origins=state.origins,
    axis=replicas.axis,
  )


def _answers(taught, frozen, x):
  """What each teacher says of the inputs."""
  return tuple(f(*tree, x)[:2] for f, tree in zip(taught, frozen, strict=True))


def _metrics(total, means, grads):
  parts = means if len(means) > 1 else {}
  return {'loss': total, **parts, 'grad_norm': optax.tree.norm(grads)}


def _next(state, grads, variables, stats, optimizers, compression):
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
  return dataclasses.replace(
    state,
    step=done.step,
    params=optax.apply_updates(state.params, done.updates),
    variables=variables,
    opt_state=done.opt_states[0],
    comp_state=comp_state,
    learned=learned,
    learned_opt_state=done.opt_states[1],
  )


def _connected(state, grads, optimizer):
  """The state after its connectors have moved."""
  if not jax.tree.leaves(state.connectors):
    return state
  updates, opt_state = optimizer.update(
    grads, state.connectors_opt_state, state.connectors
  )
  return dataclasses.replace(
    state,
    connectors=optax.apply_updates(state.connectors, updates),
    connectors_opt_state=opt_state,
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
