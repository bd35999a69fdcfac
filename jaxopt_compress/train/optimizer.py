"""The optimizer and the learning rate of a stage."""

import jax
import optax

from jaxopt_compress.core import choices
from jaxopt_compress.train import options as options_lib


def pair(
  options: options_lib.Optimizer, steps: int
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
  """(optimizer of the parameters, optimizer of what is learned beside them).

  Args:
    options: of a stage.
    steps: how many it has.
  """
  schedule = dict(steps=steps, warmup=options.warmup, decay=options.decay)
  parameters = build(
    options.name,
    learning_rate=options.learning_rate,
    weight_decay=options.weight_decay,
    clip=options.clip,
    **schedule,
  )
  slower = options.learned_rate * options.learning_rate
  return parameters, build('adamw', learning_rate=slower, **schedule)


def build(
  name: str,
  *,
  steps: int,
  learning_rate: float,
  warmup: float = 0.0,
  decay: str = 'cosine',
  weight_decay: float = 0.0,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """An optax optimizer over a schedule.

  Args:
    name: 'adamw', 'sgd' (Nesterov momentum 0.9), or 'muon' (orthogonalised
      momentum for kernels, AdamW for the rest; Jordan et al. 2024,
      https://kellerjordan.github.io/posts/muon/).
    steps: length of the schedule.
    learning_rate: its peak.
    warmup: fraction of the steps in which it rises from 0 to the peak.
    decay: how it falls after that: 'cosine' or 'linear' to 0, or 'constant'.
    weight_decay: of matrices and kernels; biases and scales have none.
    clip: largest global norm of a gradient; 0 for no limit.

  Raises:
    ValueError: an unknown optimizer or decay.
  """
  choices.one_of('optimizer', name, ('adamw', 'sgd', 'muon'), '=')
  rate = schedule(decay, steps, learning_rate, warmup)
  if name == 'adamw':
    tx = optax.adamw(rate, weight_decay=weight_decay, mask=_matrices)
  elif name == 'sgd':
    tx = optax.chain(
      optax.add_decayed_weights(weight_decay, mask=_matrices),
      optax.sgd(rate, momentum=0.9, nesterov=True),
    )
  else:
    tx = optax.contrib.muon(
      rate,
      weight_decay=weight_decay,
      adam_b2=0.99,
      muon_weight_dimension_numbers=_kernels,
    )
  return optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx


def _matrices(params):
  return jax.tree.map(lambda x: x.ndim > 1, params)


def _kernels(params):
  """The last two axes of each kernel are its matrix, the others a stack."""

  def axes(path, x):
    # None leaves a parameter to AdamW: biases, scales, embeddings.
    if getattr(path[-1], 'key', None) != 'kernel' or x.ndim < 2:
      return None
    return optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

  return jax.tree_util.tree_map_with_path(axes, params)


def schedule(
  decay: str, steps: int, learning_rate: float, warmup: float = 0.0
) -> optax.Schedule:
  """The learning rate as a function of the step.

  >>> rate = schedule('cosine', 100, 1.0, warmup=0.1)
  >>> [round(float(rate(t)), 3) for t in (0, 5, 10, 55, 100)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  choices.one_of('decay', decay, ('cosine', 'linear', 'constant'), '=')
  rise = round(warmup * steps)
  # A stage of no steps has a schedule all the same.
  rest = max(steps - rise, 1)
  if decay == 'cosine':
    fall = optax.cosine_decay_schedule(learning_rate, rest)
  elif decay == 'linear':
    fall = optax.linear_schedule(learning_rate, 0.0, rest)
  else:
    fall = optax.constant_schedule(learning_rate)
  if not rise:
    return fall
  up = optax.linear_schedule(0.0, learning_rate, rise)
  return optax.join_schedules([up, fall], [rise])
