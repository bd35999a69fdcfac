"""Every optimizer and wrapper of optax, by its name: how to make one, and what it needs.

Found in `dir(optax)` and `dir(optax.contrib)`, so one that a new release brings has to
be made here, or to be in `NOT_HERE` with the reason.
"""

import inspect
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import optax
import optax.contrib

ADAM = optax.adam(0.1)
LABELS = {'w': 'a', 'b': 'b'}
TWO = {'a': optax.adam(0.1), 'b': optax.sgd(0.1)}


# Arguments of those that cannot be made from a learning rate, or nothing, alone.
ARGUMENTS = {
  'adaptive_grad_clip': (0.1,),
  'add_noise': (0.1, 0.5, jax.random.key(0)),
  'apply_if_finite': (ADAM, 3),
  'chain': (optax.scale_by_adam(), optax.scale(-0.1)),
  'clip': (0.1,),
  'clip_by_block_rms': (0.1,),
  'clip_by_global_norm': (0.1,),
  'conditionally_mask': (ADAM, lambda step: step % 2 == 0),
  'conditionally_transform': (ADAM, lambda step: step % 2 == 0),
  'ema': (0.9,),
  'flatten': (ADAM,),
  'freeze': ({'w': True, 'b': False},),
  'lookahead': (ADAM, 2, 0.5),
  'masked': (ADAM, {'w': True, 'b': False}),
  'mechanize': (ADAM,),
  'multi_transform': (TWO, LABELS),
  'named_chain': (('one', optax.scale_by_adam()), ('two', optax.scale(-0.1))),
  'noisy_sgd': (0.1, 0.01, 0.5, jax.random.key(0)),
  'partition': (TWO, LABELS),
  'sam': (optax.sgd(0.1), optax.sgd(0.1)),
  'scale': (-0.1,),
  'scale_by_backtracking_linesearch': (4,),
  'scale_by_schedule': (lambda step: -0.1,),
  'scale_by_zoom_linesearch': (4,),
  'schedule_free': (optax.adam(0.1, b1=0.0), 0.1),
  'selective_transform': (ADAM,),
  'snapshot': ('seen', lambda *args, **kwargs: jnp.ones(())),
  'split_real_and_imaginary': (ADAM,),
  'stateless': (lambda updates, params: updates,),
  'stateless_with_tree_map': (lambda g, w: -0.1 * g,),
  'trace': (0.9,),
  'with_extra_args_support': (ADAM,),
}
KEYWORDS = {
  'selective_transform': dict(freeze_mask={'w': False, 'b': True}),
  'sam': dict(sync_period=2),
}
MADE = {
  'inject_hyperparams': lambda: optax.inject_hyperparams(optax.adam)(0.1),
  'inject_stateful_hyperparams': lambda: optax.inject_stateful_hyperparams(
    optax.adam
  )(0.1),
  'MultiSteps': lambda: optax.MultiSteps(ADAM, 2),
  'monitor': lambda: optax.monitor({}),
}
NOT_HERE = {
  'differentially_private_aggregate': 'its gradients have an axis of examples',
  'scale_by_muon': 'it takes matrices alone; muon, which uses it, is here',
  'measure_with_ema': 'it returns a measure where updates are expected',
  'dpsgd': 'its gradients have an axis of examples',
}


def names() -> dict[str, Any]:
  """{name: function} of all that returns a transformation of gradients."""
  found = {'MultiSteps': optax.MultiSteps}
  for module in (optax, optax.contrib):
    for name, f in vars(module).items():
      if name.startswith('_') or not inspect.isfunction(f):
        continue
      says = str(inspect.signature(f).return_annotation)
      if 'GradientTransformation' in says or name in UNSAID:
        found[name] = f
  return found


UNSAID = (
  'monitor',
  'scale_by_factored_rms',
  'hutchinson_estimator_diag_hessian',
)


def make(name: str) -> Any:
  """A transformation, of parameters {'w': [4, 6], 'b': [6]}."""
  with warnings.catch_warnings():
    # Those that are deprecated are there all the same.
    warnings.simplefilter('ignore', DeprecationWarning)
    if name in MADE:
      return MADE[name]()
    f = names()[name]
    takes_rate = 'learning_rate' in inspect.signature(f).parameters
    rate = dict(learning_rate=0.1) if takes_rate else {}
    if name in ARGUMENTS or name in KEYWORDS:
      return f(*ARGUMENTS.get(name, ()), **KEYWORDS.get(name, {}))
    return f(**rate)
