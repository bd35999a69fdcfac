"""What a student is asked to match: functions of logits.

    p = softmax(teacher / T)      q = softmax(student / T)

    kl              T^2 KL(p || q)      = T^2 sum_i p_i (log p_i - log q_i)
    reverse_kl      T^2 KL(q || p)
    mse             mean_i (student_i - teacher_i)^2
    cross_entropy   -log softmax(student)_label
    distill         alpha kl + (1 - alpha) cross_entropy
    topk_kl         KL(p || q) over k classes and the tail, see `tail`
    agreement       1 where student and teacher have the same argmax

All are pure functions of arrays that return (sum, count) over positions, so that a
mean over padding, microbatches and devices is exact: add sums, add counts, divide
once, by `mean`. `mask` weights positions, alpha the terms of a mixture: what has weight 0 has no
part in the sum or in any gradient, whatever it holds, NaN included. Arithmetic is
float32 even for bfloat16 logits.

A logit may be -inf: a class that cannot occur. It adds 0 where both sides have it.
If only the distribution averaged over (p in KL(p || q)) has mass there, the divergence
is inf, as it should be. A position whose logits are all -inf is no distribution: mask
it.
"""

from jaxopt_compress.distillation.losses import tail
from jaxopt_compress.distillation.losses.agreement import agreement
from jaxopt_compress.distillation.losses.distances import mse
from jaxopt_compress.distillation.losses.divergences import kl
from jaxopt_compress.distillation.losses.divergences import reverse_kl
from jaxopt_compress.distillation.losses.labels import cross_entropy
from jaxopt_compress.distillation.losses.labels import distill
from jaxopt_compress.distillation.losses.tail import topk_kl
from jaxopt_compress.distillation.losses.tail import topk_reverse_kl
from jaxopt_compress.distillation.positions import mean
from jaxopt_compress.distillation.positions import SumAndCount

__all__ = [
  'SumAndCount',
  'agreement',
  'cross_entropy',
  'distill',
  'kl',
  'mean',
  'mse',
  'reverse_kl',
  'tail',
  'topk_kl',
  'topk_reverse_kl',
]
