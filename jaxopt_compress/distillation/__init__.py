"""Distillation: a small network learns from a large one."""

from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation import features
from jaxopt_compress.distillation import layers
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import matching
from jaxopt_compress.distillation import penalties
from jaxopt_compress.distillation import teachers
from jaxopt_compress.distillation.growth.warm_start import warm_start
from jaxopt_compress.distillation.matching import regularized
from jaxopt_compress.distillation.matching import squared_distance
from jaxopt_compress.distillation.vocabulary import check_vocabulary
from jaxopt_compress.distillation.vocabulary import Vocabulary

__all__ = [
  'Vocabulary',
  'cache',
  'check_vocabulary',
  'features',
  'layers',
  'losses',
  'matching',
  'penalties',
  'regularized',
  'squared_distance',
  'teachers',
  'warm_start',
]
