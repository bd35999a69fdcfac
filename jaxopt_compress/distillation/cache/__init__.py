"""Answers of a teacher on disk: asked once, used by many students and epochs.

made = cache.Manifest(
  model=cache.fingerprint(params), data=cache.fingerprint(x),
  vocabulary=50257, k=64, examples=len(x), positions=(256,))
cache.write(folder, made, answers, batch_size=8, progress=tqdm.tqdm)
answers = cache.read(folder, data=cache.fingerprint(x), vocabulary=50257)
source = cache.Joined(examples, answers)                          # for grain
losses.tail.topk_kl(student_logits, **answers.take(indices))
"""

from jaxopt_compress.distillation.cache.codec import Codec
from jaxopt_compress.distillation.cache.fingerprint import fingerprint
from jaxopt_compress.distillation.cache.manifest import Manifest
from jaxopt_compress.distillation.cache.sampled import sample
from jaxopt_compress.distillation.cache.shards import CorruptShard
from jaxopt_compress.distillation.cache.source import Cache
from jaxopt_compress.distillation.cache.source import Joined
from jaxopt_compress.distillation.cache.source import read
from jaxopt_compress.distillation.cache.write import write

__all__ = [
  'Cache',
  'Codec',
  'CorruptShard',
  'Joined',
  'Manifest',
  'fingerprint',
  'read',
  'sample',
  'write',
]
