"""On-policy distillation: the student learns on what it says itself.

    with probability lambda:  y ~ student(. | prompt), without a gradient
    otherwise:                y from the data
    L = mean over the tokens of y of D(teacher(. | what is before), student(. | ...))

A student that is trained on the data's sequences alone never sees where its own
mistakes lead. Agarwal et al. 2023, https://arxiv.org/abs/2306.13649, algorithm 1; D is
any of `losses`.

    def loss(params, teacher_params, batch, key, step):
      y = on_policy.mixed(
        key, ratio(step),
        lambda key: on_policy.sample(
          decode, params, batch['prompt'], cache, length=64, key=key),
        on_policy.Drawn(batch['tokens'], batch['is_answer']))
      asked = sequences.next_tokens(y.tokens, weights=y.mask)
      s = student(params, asked.inputs)
      t = teachers.frozen(teacher)(teacher_params, asked.inputs)
      return losses.jsd(s, t, beta=0.9, mask=asked.weights)
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import draws


class Drawn(NamedTuple):
  """Sequences, and which of their tokens are learned from.

  Attributes:
    tokens: [batch, time] int32.
    mask: [batch, time], 1 for the tokens of an answer, 0 for those of a prompt and for
      padding.
  """

  tokens: jax.Array
  mask: jax.Array


def sample(
  step: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
  params: Any,
  prompts: jax.Array,
  cache: Any,
  *,
  length: int,
  key: jax.Array,
  lengths: jax.Array | None = None,
  temperature: float | jax.Array = 1.0,
  top_k: int | None = None,
  top_p: float | jax.Array | None = None,
  end: int | None = None,
  padding: int = 0,
) -> Drawn:
  """Prompts, each continued by tokens that the model draws, one scanned step each.

  No gradient flows to the parameters: a token that is drawn has none, and its
  probability is not what is asked for here.

  Args:
    step: `(params, tokens [batch, t], cache) -> (logits [batch, t, vocab], cache)`,
      which goes on from a cache, as `decode` of `models.decoder`; lifted if
      parameters hold compressed leaves.
    params: of the student.
    prompts: [batch, time] integers, time from 1.
    cache: an empty cache for `time + length - 1` tokens.
    length: how many tokens are drawn at most for a full prompt.
    key: consumed. Under `shard_map`, one of the device's own.
    lengths: [batch], of prompts that end before `time`, from 1; what follows them is
      overwritten, so that they are continued by more tokens. None: all are full, and
      read at once rather than token by token.
    temperature, top_k, top_p: see `draws.draw`.
    end: the token after which nothing is drawn; it counts itself. None: no token ends
      a sequence.
    padding: the token after that.

  Returns:
    Tokens [batch, time + length] int32, and a bool mask of those that were drawn. Where
    the model says NaN, as with a cache that is full, the token is -1, for which a
    model's answer is NaN in turn.

  Raises:
    ValueError: prompts are no tokens, or a length is not positive.

  >>> def step(params, tokens, cache):  # the next token is one more
  ...   return 99. * jax.nn.one_hot((tokens + 1) % 5, 5), cache
  >>> drawn = sample(step, (), jnp.array([[2, 3]]), (), length=3, key=jax.random.key(0),
  ...                end=0)
  >>> drawn.tokens.tolist(), drawn.mask.astype(int).tolist()
  ([[2, 3, 4, 0, 0]], [[0, 0, 1, 1, 0]])
  """
  _check(prompts, length)
  params, cache = lax.stop_gradient((params, cache))
  b, t = prompts.shape
  prompts = prompts.astype(jnp.int32)
  ends = jnp.full((b,), t) if lengths is None else lengths
  # All but the last token that every prompt has are read at once.
  read = t if lengths is None else 1
  if read > 1:
    _, cache = step(params, prompts[:, : read - 1], cache)
  given = jnp.pad(prompts[:, read:], ((0, 0), (0, length)))
  # A step gives the token at `at`: that of the prompt where there is one, else a draw.

  def body(carry, inputs):
    token, cache, done = carry
    at, token_given, key = inputs
    logits, cache = step(params, token[:, None], cache)
    own = draws.draw(
      key, logits[:, 0], temperature=temperature, top_k=top_k, top_p=top_p
    )
    is_prompt = at < ends
    is_drawn = ~is_prompt & ~done
    token = jnp.where(is_drawn, own, padding)
    token = jnp.where(is_prompt, token_given, token)
    if end is not None:
      done |= is_drawn & (token == end)
    return (token, cache, done), (token, is_drawn)

  n = t + length - read
  carry = prompts[:, read - 1], cache, jnp.zeros(b, bool)
  _, (tokens, mask) = lax.scan(
    body, carry, (read + jnp.arange(n), given.T, jax.random.split(key, n))
  )
  tokens = jnp.concatenate([prompts[:, :read], tokens.T], axis=1)
  return Drawn(tokens, jnp.pad(mask.T, ((0, 0), (read, 0))))


def mixed(
  key: jax.Array,
  ratio: float | jax.Array,
  draw: Callable[[jax.Array], Drawn],
  data: Drawn,
) -> Drawn:
  """The student's sequences with a probability, else the data's.

  One choice for the batch, as in algorithm 1 of Agarwal et al. 2023, so that a batch of
  data costs no sampling.

  Args:
    key: consumed. Under `shard_map`, the same on all devices, so that they choose
      alike; fold the device's index in inside of `draw`.
    ratio: lambda in [0, 1], such as a schedule's value at a step; may be traced.
    draw: `key -> Drawn`, of the student: see `sample`.
    data: sequences of the same shapes.

  Returns:
    A `Drawn`; its mask is float32.

  Raises:
    ValueError: the shapes differ, or the ratio is not in [0, 1].
  """
  if not isinstance(ratio, jax.core.Tracer) and not 0 <= ratio <= 1:
    raise ValueError(
      f'ratio={ratio}: the share of batches that the student draws, in [0, 1], is'
      ' expected.'
    )
  own, chosen = jax.random.split(key)
  shapes = jax.tree.map(jnp.shape, (jax.eval_shape(draw, own), data))
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'The student draws {shapes[0]}, the data have {shapes[1]}. Cut or pad the'
      ' data to the length of prompt and answer together.'
    )

  def of_student(key):
    return _same_dtypes(draw(key))

  def of_data(key):
    return _same_dtypes(data)

  is_own = jax.random.uniform(chosen) < ratio
  return lax.cond(is_own, of_student, of_data, own)


def _same_dtypes(drawn):
  tokens, mask = drawn
  return Drawn(tokens.astype(jnp.int32), mask.astype(jnp.float32))


def _check(prompts, length):
  if prompts.ndim != 2 or not jnp.issubdtype(prompts.dtype, jnp.integer):
    raise ValueError(
      f'Prompts are [batch, time] integers, not {prompts.dtype}'
      f'{list(prompts.shape)}.'
    )
  if not prompts.shape[1] or length < 1:
    raise ValueError(
      f'{prompts.shape[1]} tokens of prompt and length={length}: at least one of'
      ' each is expected. Begin with a token that begins sequences.'
    )
