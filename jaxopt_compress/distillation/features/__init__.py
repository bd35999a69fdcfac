"""Losses between intermediate values of a student and a teacher."""

from jaxopt_compress.distillation.features.relations import minilm
from jaxopt_compress.distillation.features.relations import minilm_v2
from jaxopt_compress.distillation.features.relations import relation

__all__ = ['minilm', 'minilm_v2', 'relation']
