"""A student's example is nearer to the teacher's of the same than to others.

    L_i = -log softmax_j(s_i . t_j / tau)_i        s, t: of length one

Tian et al. 2019 (CRD), https://arxiv.org/abs/1910.10699, with the other examples of the
batch in place of a memory of negatives: the InfoNCE of van den Oord et al. 2018,
https://arxiv.org/abs/1807.03748, eq. 4.
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.features import examples
from jaxopt_compress.distillation.features import hints


def contrastive(
  student: jax.Array,
  teacher: jax.Array,
  *,
  temperature: float | jax.Array = 0.1,
  mask: jax.Array | None = None,
  axis_name: examples.AxisName = None,
) -> positions.SumAndCount:
  """Cross entropy of finding one's own example among the batch's.

  Args:
    student, teacher: [batch, ..., features], of the same shape: a connector comes
      first where widths differ.
    temperature: tau > 0.
    mask: as for `similarity`.
    axis_name: mesh axes along which the batch is cut: see `examples`.

  Returns:
    (sum, count) over examples.

  >>> x = jnp.eye(2)
  >>> round(float(contrastive(x, x, temperature=1.)[0]), 4)  # 2 log(1 + 1 / e)
  0.6265
  """
  if student.shape != teacher.shape:
    raise ValueError(
      f'The student has values of shape {student.shape}, the teacher'
      f' {teacher.shape}. A connector makes them alike: distillation.features.'
      'connectors.'
    )
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(
      f'temperature={temperature}; a number above 0 is expected.'
    )

  def loss(s, t, counts):
    s, t = (hints.unit(jnp.where(counts[:, None], x, 0.0)) for x in (s, t))
    scores = jnp.matmul(s, t.T, precision='highest') / temperature
    # An example that does not count is no alternative; as a row it is left out.
    seen = counts[None] | ~counts.any()
    log_p = jax.nn.log_softmax(jnp.where(seen, scores, -jnp.inf))
    own = jnp.where(counts, -jnp.diag(log_p), 0.0)
    return positions.mean(*positions.total(own, counts))

  return examples.related(loss, student, teacher, mask, axis_name)
