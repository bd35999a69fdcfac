"""Losses between intermediate values of a student and a teacher.

`jc.features` gives the values, `connectors` make them as wide as each other, and
`getattr(features, name)` is the loss that a config names. As those on logits, they are
pure functions of arrays that return (sum, count): over positions (`hints`), examples
(`attention_maps`; those on relations between examples: see `examples`) or tokens
(`relations`).
"""

from jaxopt_compress.distillation.features import connectors
from jaxopt_compress.distillation.features.attention_maps import (
  attention_transfer,
)
from jaxopt_compress.distillation.features.batch_similarity import similarity
from jaxopt_compress.distillation.features.hints import cosine
from jaxopt_compress.distillation.features.hints import hint
from jaxopt_compress.distillation.features.hints import normalized
from jaxopt_compress.distillation.features.info_nce import contrastive
from jaxopt_compress.distillation.features.pooling import pooled
from jaxopt_compress.distillation.features.relational import angles
from jaxopt_compress.distillation.features.relational import distances
from jaxopt_compress.distillation.features.relations import minilm
from jaxopt_compress.distillation.features.relations import minilm_v2
from jaxopt_compress.distillation.features.relations import relation

__all__ = [
  'angles',
  'attention_transfer',
  'connectors',
  'contrastive',
  'cosine',
  'distances',
  'hint',
  'minilm',
  'minilm_v2',
  'normalized',
  'pooled',
  'relation',
  'similarity',
]
