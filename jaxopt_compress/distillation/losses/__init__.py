"""What a student is asked to match: functions of logits.

    divergences     kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, total_variation
    distances       mse, cosine
    decoupled       dkd: the label's class and the others, each with its weight
    correlation     dist: relations of classes and of examples
    ranking         hinge_ranking, logistic_ranking, list_mle: the first k in order
    labels          cross_entropy, hard (the teacher's first choice), distill
    weighting       weighted: a sum of losses, or over teachers
    scaled          centered, standardized: logits as any of them may take them
    tail            topk_kl, topk_reverse_kl, topk_jsd: the k likeliest classes, and the rest as one
    chunked         any of these of `Logits(hidden, kernel)`, a block of positions at a time
    agreement       1 where student and teacher have the same argmax

All are pure functions of arrays that return (sum, count) over positions, so that a
mean over padding, microbatches and devices is exact: add sums, add counts, divide
once, by `mean`. `mask` weights positions, alpha the terms of a mixture: what has weight
0 has no part in the sum or in any gradient, whatever it holds, NaN included.
Arithmetic is float32 even for bfloat16 logits. Losses with a temperature are
multiplied by the power of it that keeps the size of the gradient, mostly T^2.

A logit may be -inf: a class that cannot occur. It adds 0 where both sides have it.
If only the distribution averaged over (p in KL(p || q)) has mass there, the divergence
is inf, as it should be. A position whose logits are all -inf is no distribution: mask
it. No loss but `mse` sees a constant that is added to all logits of a position.
"""

from jaxopt_compress.distillation.losses import tail
from jaxopt_compress.distillation.losses.agreement import agreement
from jaxopt_compress.distillation.losses.chunked import chunked
from jaxopt_compress.distillation.losses.chunked import Logits
from jaxopt_compress.distillation.losses.correlation import dist
from jaxopt_compress.distillation.losses.decoupled import dkd
from jaxopt_compress.distillation.losses.distances import cosine
from jaxopt_compress.distillation.losses.distances import mse
from jaxopt_compress.distillation.losses.divergences import jsd
from jaxopt_compress.distillation.losses.divergences import kl
from jaxopt_compress.distillation.losses.divergences import reverse_kl
from jaxopt_compress.distillation.losses.divergences import skew_kl
from jaxopt_compress.distillation.losses.divergences import skew_reverse_kl
from jaxopt_compress.distillation.losses.divergences import total_variation
from jaxopt_compress.distillation.losses.labels import cross_entropy
from jaxopt_compress.distillation.losses.labels import distill
from jaxopt_compress.distillation.losses.labels import hard
from jaxopt_compress.distillation.losses.ranking import hinge_ranking
from jaxopt_compress.distillation.losses.ranking import list_mle
from jaxopt_compress.distillation.losses.ranking import logistic_ranking
from jaxopt_compress.distillation.losses.scaled import centered
from jaxopt_compress.distillation.losses.scaled import standardized
from jaxopt_compress.distillation.losses.tail import topk_jsd
from jaxopt_compress.distillation.losses.tail import topk_kl
from jaxopt_compress.distillation.losses.tail import topk_reverse_kl
from jaxopt_compress.distillation.losses.weighting import weighted
from jaxopt_compress.distillation.positions import mean
from jaxopt_compress.distillation.positions import SumAndCount

__all__ = [
  'Logits',
  'SumAndCount',
  'agreement',
  'centered',
  'chunked',
  'cosine',
  'cross_entropy',
  'distill',
  'dist',
  'dkd',
  'hard',
  'hinge_ranking',
  'jsd',
  'kl',
  'list_mle',
  'logistic_ranking',
  'mean',
  'mse',
  'reverse_kl',
  'skew_kl',
  'skew_reverse_kl',
  'standardized',
  'tail',
  'topk_jsd',
  'topk_kl',
  'topk_reverse_kl',
  'total_variation',
  'weighted',
]
