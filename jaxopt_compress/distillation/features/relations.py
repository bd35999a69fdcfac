"""What tokens are to each other inside of attention: MiniLM.

    R(x, y)_a = softmax(x_a y_a^T / sqrt(d))          a: a head, of d features

    relation    mean over heads of KL(R(teacher) || R(student)), for each token
    minilm      relation of (q, k), which is the attention, + relation of (v, v)
    minilm_v2   relations of (q, q), (k, k) and (v, v)

R is [time, time] whatever the width, so student and teacher may differ in width, and
no connector is needed. `heads` need not be the heads of the attention: features are
cut anew, and student and teacher only have to be cut into as many. For `minilm` they
are the attention's own, of which both then have the same number. One layer is enough:
the last of the student, and of the teacher the last (or one before it, if it is
large).

The mask says which tokens count: others are no key, and as queries have no part in the
sum. (sum, count) are over tokens.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions

Pair = tuple[jax.Array, jax.Array]


def relation(
  student: jax.Array | Pair,
  teacher: jax.Array | Pair,
  *,
  heads: int | None = None,
  mask: jax.Array | None = None,
  chunk: int | None = None,
) -> positions.SumAndCount:
  """KL(teacher || student) of one relation, mean over `heads`, sum over tokens.

  Wang et al. 2020, https://arxiv.org/abs/2012.15828, eq. 4 to 6.

  Args:
    student, teacher: x [..., time, features], related to itself, or a pair (x, y):
      queries and keys, say. Features may differ between the two; leading axes (batch,
      layers) may not.
    heads: of the relation, a divisor of both numbers of features. None: as many as
      leave the teacher 16 features each, as the paper has 48 for 768.
    mask: [..., time], weights of tokens, bool or number; None: all count.
    chunk: sequences that are compared at a time, if the [heads, time, time] relations
      of all of them do not fit in memory; None: all. The backward pass computes them
      again.

  Returns:
    (sum, count), at least float32 scalars.

  Raises:
    ValueError: shapes that do not fit, or heads that do not divide.

  >>> x = jnp.eye(3)[None]
  >>> loss, n = relation(x, 4 * x, heads=1)
  >>> round(float(loss / n), 4), round(float(relation(x, x, heads=1)[0]), 4)
  (0.7508, 0.0)
  """
  pairs = [
    x if isinstance(x, tuple | list) else (x, x) for x in (student, teacher)
  ]
  if heads is None:
    heads = max(pairs[1][0].shape[-1] // 16, 1)
  _check(pairs, heads, mask, chunk)
  *_, time, _ = pairs[0][0].shape
  # All leading axes become one: each element of it is a sequence.
  sequences = jax.tree.map(
    lambda x: positions.prepared(x, mask).reshape(-1, time, x.shape[-1]), pairs
  )
  seen = jnp.ones(sequences[0][0].shape[:2], bool)
  if mask is not None:
    seen = mask.astype(bool).reshape(-1, time)

  def of_one(arguments):
    (s, t), seen = arguments
    return _divergence(
      _log_relation(t, heads, seen), _log_relation(s, heads, seen)
    )

  if chunk is None:
    loss = jax.vmap(of_one)((sequences, seen))
  else:
    of_one = jax.checkpoint(of_one)
    loss = lax.map(of_one, (sequences, seen), batch_size=chunk)
  return positions.total(loss.reshape(pairs[0][0].shape[:-1]), mask)


def minilm(
  student: Sequence[jax.Array],
  teacher: Sequence[jax.Array],
  *,
  heads: int,
  mask: jax.Array | None = None,
  chunk: int | None = None,
) -> positions.SumAndCount:
  """Attention distributions and value relations of one layer.

  Wang et al. 2020, https://arxiv.org/abs/2002.10957, eq. 7 to 10.

  Args:
    student, teacher: (queries, keys, values), each [..., time, features], as they meet
      in the attention: turned already, where positions are rotary.
    heads: of the attention; student and teacher have as many.
    mask, chunk: as for `relation`, which also says what is returned and raised.

  >>> q = k = v = jnp.ones((1, 3, 4))
  >>> float(minilm((q, k, v), (q, 2 * k, v), heads=2)[0])
  0.0
  """
  (q, k, v), (tq, tk, tv) = (
    _three(student, 'student'),
    _three(teacher, 'teacher'),
  )
  options = dict(heads=heads, mask=mask, chunk=chunk)
  attention, count = relation((q, k), (tq, tk), **options)
  return attention + relation(v, tv, **options)[0], count


def minilm_v2(
  student: Sequence[jax.Array],
  teacher: Sequence[jax.Array],
  *,
  heads: int | None = None,
  weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
  mask: jax.Array | None = None,
  chunk: int | None = None,
) -> positions.SumAndCount:
  """Relations of queries, of keys and of values, each among themselves.

  Wang et al. 2020, https://arxiv.org/abs/2012.15828, eq. 3: the diagonal of alpha_ij.

  Args:
    student, teacher: (queries, keys, values), each [..., time, features].
    weights: of the three; what has weight 0 has no part, whatever it holds.
    heads, mask, chunk: as for `relation`, which also says what is returned and raised.

  >>> q = k = v = jnp.ones((1, 3, 4))
  >>> [float(x) for x in minilm_v2((q, k, v), (q, k, v), heads=4)]
  [0.0, 3.0]
  """
  compared = functools.partial(relation, heads=heads, mask=mask, chunk=chunk)
  parts = [
    (weight, positions.gated(weight, compared, s, t))
    for weight, s, t in zip(
      weights,
      _three(student, 'student'),
      _three(teacher, 'teacher'),
      strict=True,
    )
  ]
  return sum(weight * total for weight, (total, _) in parts), parts[0][1][1]


def _log_relation(pair, heads, seen):
  """log R of one sequence, [heads, time, time]; 0 for keys that are not seen."""
  # [time, heads * d] -> [heads, time, d]: heads are consecutive features.
  x, y = (x.reshape(len(x), heads, -1).swapaxes(0, 1) for x in pair)
  scores = jnp.einsum('htd,hsd->hts', x, y, precision='highest')
  # A sequence of nothing but padding would have no key: its rows are not counted.
  seen = seen | ~seen.any()
  scores = jnp.where(seen, scores * x.shape[-1] ** -0.5, -jnp.inf)
  # log 0 of both sides, subtracted, would be NaN.
  return jnp.where(seen, jax.nn.log_softmax(scores), -jnp.inf)


def _divergence(log_p, log_q):
  """KL(p || q), mean over heads: [time]."""
  p = jnp.exp(log_p)
  ratio = jnp.where(p > 0, log_p, 0.0) - jnp.where(p > 0, log_q, 0.0)
  return jnp.mean(jnp.sum(p * ratio, -1), 0)


def _three(qkv, whose):
  is_array = hasattr(qkv, 'shape')
  if is_array or len(qkv) != 3:
    found = f'an array {qkv.shape}' if is_array else f'{len(qkv)} arrays'
    raise ValueError(
      f'The {whose} gives {found}; three (queries, keys, values), each [...,'
      ' time, features], are expected. Take one layer of it.'
    )
  return qkv


def _check(pairs, heads, mask, chunk):
  shapes = [[x.shape for x in pair] for pair in pairs]
  (first, *_), *_ = shapes
  for name, pair in zip(('student', 'teacher'), shapes, strict=True):
    for shape in pair:
      if len(shape) < 2 or shape[:-1] != first[:-1] or not all(shape[-2:]):
        raise ValueError(
          f'The {name} has values of shape {shape} beside {first}; [..., time,'
          ' features] with equal axes up to the features, and some of both, is'
          ' expected. Give both the same tokens.'
        )
      if heads < 1 or shape[-1] % heads:
        raise ValueError(
          f'heads={heads} does not divide the {shape[-1]} features of the'
          f' {name}. Choose a common divisor of {sorted({s[-1] for p in shapes for s in p})}.'
        )
    if pair[0] != pair[1]:
      raise ValueError(
        f'The {name} relates {pair[0]} to {pair[1]}; equal shapes are expected.'
        ' Repeat keys that several query heads share.'
      )
  if mask is not None and mask.shape != first[:-1]:
    raise ValueError(
      f'The mask has shape {mask.shape}; {first[:-1]} is expected, a weight for'
      ' each token.'
    )
  positions.check_weights(mask)
  if chunk is not None and chunk < 1:
    raise ValueError(
      f'chunk={chunk}; a number of sequences from 1, or None, is expected.'
    )
