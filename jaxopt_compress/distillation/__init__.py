"""Distillation: a small network learns from a large one."""

from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation import draws
from jaxopt_compress.distillation import features
from jaxopt_compress.distillation import layers
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import matching
from jaxopt_compress.distillation import on_policy
from jaxopt_compress.distillation import penalties
from jaxopt_compress.distillation import sequences
from jaxopt_compress.distillation import teachers
from jaxopt_compress.distillation.accumulation import accumulated
from jaxopt_compress.distillation.growth.grow import grow
from jaxopt_compress.distillation.growth.warm_start import warm_start
from jaxopt_compress.distillation.growth.widen import widen
from jaxopt_compress.distillation.matching import regularized
from jaxopt_compress.distillation.matching import squared_distance
from jaxopt_compress.distillation.vocabulary import check_vocabulary
from jaxopt_compress.distillation.vocabulary import Vocabulary

__all__ = [
  'Vocabulary',
  'accumulated',
  'cache',
  'check_vocabulary',
  'draws',
  'features',
  'grow',
  'layers',
  'losses',
  'matching',
  'on_policy',
  'penalties',
  'regularized',
  'sequences',
  'squared_distance',
  'teachers',
  'warm_start',
  'widen',
]
