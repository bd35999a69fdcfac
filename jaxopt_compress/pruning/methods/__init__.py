"""Methods that change masks while a network trains; one page each.

getattr(pruning.methods, 'rigl')(rules, uses)     a Compression

masked weights    methods
stay as they are  gradual, movement, soft_movement
are zero          static, sparse_evolutionary, rigl, ac_dc
go on learning    straight_through, sr_ste
"""

from jaxopt_compress.pruning.methods.ac_dc import ac_dc
from jaxopt_compress.pruning.methods.gradual import gradual
from jaxopt_compress.pruning.methods.movement import movement
from jaxopt_compress.pruning.methods.rigl import rigl
from jaxopt_compress.pruning.methods.soft_movement import soft_movement
from jaxopt_compress.pruning.methods.sparse_evolutionary import (
  sparse_evolutionary,
)
from jaxopt_compress.pruning.methods.sr_ste import sr_ste
from jaxopt_compress.pruning.methods.static import static
from jaxopt_compress.pruning.methods.straight_through import straight_through

__all__ = [
  'ac_dc',
  'gradual',
  'movement',
  'rigl',
  'soft_movement',
  'sparse_evolutionary',
  'sr_ste',
  'static',
  'straight_through',
]
