"""Pruning: weights become zeros, by masks that change while training.

rules = [(r'.*/kernel', pruning.Sparsity(0.8, end=1000, every=10)), (r'.*', None)]
comp = pruning.prune.prune(rules, uses=jc.uses(apply)(params, x))
"""

from jax import lax

from jaxopt_compress.core import lift
from jaxopt_compress.pruning import activations
from jaxopt_compress.pruning import allocate
from jaxopt_compress.pruning import budget
from jaxopt_compress.pruning import compensate
from jaxopt_compress.pruning import gradients
from jaxopt_compress.pruning import importance
from jaxopt_compress.pruning import keep
from jaxopt_compress.pruning import latency
from jaxopt_compress.pruning import masked
from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning import measure
from jaxopt_compress.pruning import members
from jaxopt_compress.pruning import normals
from jaxopt_compress.pruning import prune
from jaxopt_compress.pruning import quotas
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import schedules
from jaxopt_compress.pruning import scores
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import sort
from jaxopt_compress.pruning import stopwatch
from jaxopt_compress.pruning import units
from jaxopt_compress.pruning import vocabulary
from jaxopt_compress.pruning.masked import Masked
from jaxopt_compress.pruning.measure import sparsity
from jaxopt_compress.pruning.prune import prune_now
from jaxopt_compress.pruning.prune import Sparsity

lift.rule(lax.convert_element_type_p, Masked)(masked.convert)

__all__ = [
  'Masked',
  'Sparsity',
  'activations',
  'allocate',
  'budget',
  'compensate',
  'gradients',
  'importance',
  'keep',
  'latency',
  'masks',
  'measure',
  'members',
  'normals',
  'prune',
  'prune_now',
  'quotas',
  'ranking',
  'schedules',
  'scores',
  'select',
  'sort',
  'sparsity',
  'stopwatch',
  'units',
  'vocabulary',
]
