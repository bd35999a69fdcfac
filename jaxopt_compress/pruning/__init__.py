"""Pruning: weights become zeros, by masks that change while training.

uses = jc.uses(apply)(params, x)
pruned = jc.prune(params, [(r'.*/kernel', '2:4'), (r'.*', None)], uses)
comp = jc.methods.gradual([(r'.*/kernel', '0.8 end=1000'), (r'.*', None)], uses)
"""

from jax import lax

from jaxopt_compress.core import lift
from jaxopt_compress.pruning import advance
from jaxopt_compress.pruning import allocate
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import exchange
from jaxopt_compress.pruning import masked_array
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning import measure
from jaxopt_compress.pruning import methods
from jaxopt_compress.pruning import optimizer
from jaxopt_compress.pruning import prune
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import schedules
from jaxopt_compress.pruning import scores
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import storage
from jaxopt_compress.pruning import structured
from jaxopt_compress.pruning import units
from jaxopt_compress.pruning import words
from jaxopt_compress.pruning.masked_array import Masked
from jaxopt_compress.pruning.measure import sparsity
from jaxopt_compress.pruning.optimizer import masked
from jaxopt_compress.pruning.optimizer import sparse
from jaxopt_compress.pruning.spec import Sparsity
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import n_m_array
from jaxopt_compress.pruning.storage import sparse_codes
from jaxopt_compress.pruning.storage import sparsify
from jaxopt_compress.pruning.storage.bitmask import Bitmask
from jaxopt_compress.pruning.storage.n_m_array import NMArray
from jaxopt_compress.pruning.storage.sparse_codes import SparseCodes
from jaxopt_compress.pruning.structured import budget
from jaxopt_compress.pruning.structured import depth
from jaxopt_compress.pruning.structured import experts
from jaxopt_compress.pruning.structured import importance
from jaxopt_compress.pruning.structured import keep
from jaxopt_compress.pruning.structured import latency
from jaxopt_compress.pruning.structured import members
from jaxopt_compress.pruning.structured import normals
from jaxopt_compress.pruning.structured import quotas
from jaxopt_compress.pruning.structured import stopwatch
from jaxopt_compress.pruning.structured import vocabulary
from jaxopt_compress.pruning.structured import votes
from jaxopt_compress.pruning.structured.activations import activations
from jaxopt_compress.pruning.structured.compensate import compensate
from jaxopt_compress.pruning.structured.compensate import readers
from jaxopt_compress.pruning.structured.gradients import fisher
from jaxopt_compress.pruning.structured.gradients import gradients
from jaxopt_compress.pruning.structured.sort import sort
from jaxopt_compress.pruning.structured.vocabulary import trim_vocabulary

lift.rule(lax.convert_element_type_p, Masked)(masked_array.convert)
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
  'depth',
  'exchange',
  'experts',
  'fisher',
  'gradients',
  'importance',
  'keep',
  'latency',
  'masked',
  'masked_array',
  'masking',
  'masks',
  'measure',
  'members',
  'methods',
  'n_m_array',
  'normals',
  'optimizer',
  'prune',
  'quotas',
  'ranking',
  'readers',
  'schedules',
  'scores',
  'select',
  'sort',
  'sparse',
  'sparse_codes',
  'sparsify',
  'sparsity',
  'stopwatch',
  'storage',
  'structured',
  'trim_vocabulary',
  'units',
  'vocabulary',
  'votes',
  'words',
]
