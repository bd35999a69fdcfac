"""Pruning: weights become zeros, by masks that change while training.

rules = [(r'.*/kernel', pruning.Sparsity(0.8, end=1000, every=10)), (r'.*', None)]
comp = pruning.prune.prune(rules, uses=jc.uses(apply)(params, x))
"""

from jax import lax

from jaxopt_compress.core import lift
from jaxopt_compress.pruning import activations
from jaxopt_compress.pruning import advance
from jaxopt_compress.pruning import allocate
from jaxopt_compress.pruning import bitmask
from jaxopt_compress.pruning import budget
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import compensate
from jaxopt_compress.pruning import depth
from jaxopt_compress.pruning import exchange
from jaxopt_compress.pruning import experts
from jaxopt_compress.pruning import gradients
from jaxopt_compress.pruning import importance
from jaxopt_compress.pruning import keep
from jaxopt_compress.pruning import latency
from jaxopt_compress.pruning import masked
from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning import measure
from jaxopt_compress.pruning import members
from jaxopt_compress.pruning import methods
from jaxopt_compress.pruning import n_m_array
from jaxopt_compress.pruning import normals
from jaxopt_compress.pruning import optimizer
from jaxopt_compress.pruning import prune
from jaxopt_compress.pruning import quotas
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import schedules
from jaxopt_compress.pruning import scores
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import sort
from jaxopt_compress.pruning import sparse_codes
from jaxopt_compress.pruning import sparsify
from jaxopt_compress.pruning import stopwatch
from jaxopt_compress.pruning import units
from jaxopt_compress.pruning import vocabulary
from jaxopt_compress.pruning import votes
from jaxopt_compress.pruning.bitmask import Bitmask
from jaxopt_compress.pruning.masked import Masked
from jaxopt_compress.pruning.measure import sparsity
from jaxopt_compress.pruning.n_m_array import NMArray
from jaxopt_compress.pruning.prune import prune_now
from jaxopt_compress.pruning.prune import Sparsity
from jaxopt_compress.pruning.sparse_codes import SparseCodes

lift.rule(lax.convert_element_type_p, Masked)(masked.convert)
for _primitive, _rule in bitmask.RULES.items():
  lift.rule(_primitive, Bitmask)(_rule)
for _primitive, _rule in n_m_array.RULES.items():
  lift.rule(_primitive, NMArray)(_rule)
for _primitive in sparse_codes.PRIMITIVES:
  lift.rule(_primitive, SparseCodes)(sparse_codes.through(_primitive))

__all__ = [
  'Bitmask',
  'Masked',
  'NMArray',
  'SparseCodes',
  'Sparsity',
  'activations',
  'advance',
  'allocate',
  'bitmask',
  'budget',
  'clock',
  'compensate',
  'exchange',
  'gradients',
  'depth',
  'experts',
  'importance',
  'keep',
  'latency',
  'masks',
  'measure',
  'methods',
  'optimizer',
  'members',
  'n_m_array',
  'normals',
  'prune',
  'prune_now',
  'quotas',
  'ranking',
  'schedules',
  'scores',
  'select',
  'sort',
  'sparse_codes',
  'sparsify',
  'sparsity',
  'stopwatch',
  'units',
  'vocabulary',
  'votes',
]
