"""What a training run is at one step, and how one step follows another.

    cparams   = compression.apply(params, comp_state)        masks, rounding
    outputs, stats = observe(apply, compression.observes(params))(cparams, variables, x)
    parts     = loss(outputs, batch, what the teachers say of x, step)
    L         = sum over parts of weight * sum / (count, averaged over replicas)
    g         = d L / d (params, learned, connectors), averaged over replicas
    params, comp_state = pruning.advance(optimizer, compression, params, g, stats)

The parameters stay plain: optimizers, shardings and checkpoints never meet a mask.
All randomness comes from `rng` and `step`, so a run that resumes draws what it
would have drawn.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import pruning
from jaxopt_compress.analysis import observe
from jaxopt_compress.core import array
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import teachers as teachers_lib
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.train import mixup as mixup_lib

# Of a model: what it answers, and intermediate values by name.
Outputs = tuple[jax.Array, Any]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a loss is computed from.

  Attributes:
    outputs: of the student.
    batch: the part of it that this replica sees.
    teachers: outputs of each teacher, for the same inputs; without gradient.
    step: scalar int32, traced: how many steps are done.
    share: of its own example in each input, the one before it having the rest; None
      where inputs are no mixtures.
    params: plain, before any compression.
    origins, connectors: what `TrainState` says.
    axis: over which the batch is cut, see `parallel.step`; None where it is whole.
  """

  outputs: Outputs
  batch: Any
  teachers: tuple[Outputs, ...]
  step: jax.Array
  share: jax.Array | None = None
  params: Any = None
  origins: Any = None
  connectors: Any = ()
  axis: str | None = None


class Part(NamedTuple):
  """A part of a loss: `weight` times the mean of what it adds up.

  `sum` and `count` are those of this replica, of the examples that count. Each part
  has a count of its own, as not every example has a label. `weight` is the same on
  all replicas; a sum of weight 0 is finite, and so is its gradient: see
  `positions.gated`.
  """

  sum: jax.Array
  count: jax.Array
  weight: float | jax.Array = 1.0


# The parts by name; they are shown by these names while a stage is trained.
Loss = Callable[[Seen], dict[str, Part]]


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


def train_step(
  apply: Callable[..., tuple[jax.Array, Any, Any]],
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  inputs: str,
  compression: compression_lib.Compression | None = None,
  learned_optimizer: optax.GradientTransformation | None = None,
  teachers: Sequence[Callable[..., tuple[jax.Array, Any, Any]]] = (),
  ema_decay: float | None = None,
  mixup: float = 0.0,
  redraw: Callable[..., Any] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """A step for one replica, to be run by `parallel.data_parallel`.

  Args:
    apply: `(params, variables, x, *, train, rngs) -> (y, out, variables)`.
    loss: a `Loss`.
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
    x, share = _mixed(batch[inputs], key, mixup)
    said = _answers(taught, (*frozen, *[state.average] * follow), x)
    wanted = compression.observes(state.params)
    known = _known(state, batch, said, share, replicas)

    def total_loss(params, learned, connectors):
      full = compression_lib.merge_learned(learned, state.comp_state)
      cparams = compression.apply(params, full)

      def forward(params, variables, x):
        return apply(params, variables, x, train=True, rngs=key)

      (y, out, variables), stats = _observed(forward, wanted)(
        cparams, state.variables, x
      )
      seen = known(outputs=(y, out), params=params, connectors=connectors)
      total, means = _total(loss(seen), replicas)
      return total, (means, variables, stats)

    gradient = jax.value_and_grad(total_loss, argnums=(0, 1, 2), has_aux=True)
    (total, found), grads = gradient(
      state.params, state.learned, state.connectors
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


def _followed(state, compression, decay):
  """The state after its moving average has moved.

  In the first steps the average is the plain mean, so that it soon forgets how the
  student began: Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780, of the
  authors' code.
  """
  done = state.step.astype(jnp.float32)
  decay = jnp.minimum(decay, 1 - 1 / jnp.maximum(done, 1))
  student = compressed(state, compression), state.variables
  average = teachers_lib.moving_average(state.average, student, decay)
  return dataclasses.replace(state, average=average)


def _redrawn(redraw, state, compression, batch, replicas):
  if redraw is None:
    return batch
  # Of all replicas: what they do alike, they draw alike.
  key = jax.random.fold_in(state.rng, state.step)
  student = compressed(state, compression), state.variables
  return redraw(*student, batch, state.step, key, replicas)


def _mixed(x, key, concentration):
  if not concentration:
    return x, None
  return mixup_lib.mixed(x, jax.random.fold_in(key, 0), concentration)


def _known(state, batch, said, share, replicas):
  """`Seen`, but for what derivatives are taken of."""
  return functools.partial(
    Seen,
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


def _total(parts, replicas):
  """The loss, and {name: sum of this replica / mean count} of its parts.

  Averaged, they are the means over all. So are their gradients, however a mask cuts
  the examples. A count has no gradient, and is averaged before that is taken.
  """
  counts = {n: p.count.astype(p.sum.dtype) for n, p in parts.items()}
  counts = replicas(jax.lax.stop_gradient(counts))
  means = {n: losses.mean(p.sum, counts[n]) for n, p in parts.items()}
  return sum(parts[n].weight * mean for n, mean in means.items()), means


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


@jax.jit
def is_finite(tree: Any) -> jax.Array:
  """Whether every floating number of `tree` is finite: scalar bool."""
  finite = jnp.bool_(True)
  for x in jax.tree.leaves(array.materialize(tree)):
    if jnp.issubdtype(x.dtype, jnp.inexact):
      finite &= jnp.isfinite(x).all()
  return finite


def not_finite(values: Mapping[str, Any]) -> str:
  """Which numbers of a step are not, and where to look.

  Args:
    values: what a step tells, by name.

  >>> not_finite({'loss': jnp.nan, 'hard': 2.3, 'soft': jnp.nan})
  'loss is nan and soft is nan (hard is 2.3: look at what the teacher answers)'
  """
  values = {k: float(x) for k, x in values.items()}
  bad = {k: x for k, x in values.items() if not math.isfinite(x)}
  what = ' and '.join(f'{k} is {x}' for k, x in bad.items())
  # The student's own answers are in both.
  hard = values.get('hard', math.nan)
  if any(k.startswith('soft') for k in bad) and math.isfinite(hard):
    what += f' (hard is {hard:.4g}: look at what the teacher answers)'
  return what
