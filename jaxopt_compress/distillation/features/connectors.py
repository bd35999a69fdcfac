"""Connectors: values of a student made as wide as those of a teacher.

    y = x W + b        x [..., student features], W [student features, teacher features]

On images [batch, h, w, channels] that is a 1x1 convolution; on tokens, a linear layer.
Connectors are trained along with the student, and are no part of it: their parameters
are a tree of their own, `{name of a value: {'kernel': ..., 'bias': ...}}`, for an
optimizer of its own, which nothing exports.

Values of a student and of a teacher that go together have one name here, the student's.
Where a teacher calls them otherwise, as a deeper one does, rename its own first:

  >>> pairs = {'blocks/1': 'blocks/3'}  # student: teacher
  >>> theirs = {'blocks/3': jnp.ones((1, 4))}
  >>> theirs = {mine: theirs[name] for mine, name in pairs.items()}
  >>> list(init(jax.random.key(0), {'blocks/1': jnp.ones((1, 2))}, theirs))
  ['blocks/1']
"""

from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import choices

STARTS = ('random', 'identity')

Connectors = dict[str, dict[str, jax.Array]]


def init(
  key: jax.Array,
  student: Mapping[str, Any],
  teacher: Mapping[str, Any],
  *,
  start: str = 'random',
  stacked: Collection[str] = (),
) -> Connectors:
  """Parameters of a connector for each value.

  Args:
    key: consumed.
    student, teacher: {name: anything with a shape [..., features]}, of the same names.
    start: of W: 'random', of variance 1 / student features, or 'identity', ones on the
      diagonal: features of a wider teacher start at 0, those of a narrower one are cut
      off. b starts at 0.
    stacked: names of values [layers, batch, ..., features]: each layer has a
      connector of its own, W [layers, student features, teacher features].

  Raises:
    ValueError: names differ, or there is no such start.

  >>> narrow, wide = ({'block': jnp.ones((1, n))} for n in (2, 3))
  >>> found = init(jax.random.key(0), narrow, wide, start='identity')
  >>> apply(found, narrow)['block'].tolist()
  [[1.0, 1.0, 0.0]]
  """
  choices.one_of('start', start, STARTS, '=')
  if set(student) != set(teacher):
    raise ValueError(
      f'The student has values {sorted(student)}, the teacher {sorted(teacher)}; the'
      ' same names are expected, as a connector leads from one to the other. Rename'
      " the teacher's: {mine: teacher[name] for mine, name in pairs}."
    )
  if missing := set(stacked) - set(student):
    raise ValueError(
      f'stacked names {sorted(missing)}; values are {sorted(student)}.'
    )
  made = {}
  for k, name in zip(jax.random.split(key, len(student)), student, strict=True):
    n, m = student[name].shape[-1], teacher[name].shape[-1]
    layers = student[name].shape[:1] if name in stacked else ()
    if start == 'identity':
      kernel = jnp.broadcast_to(jnp.eye(n, m), (*layers, n, m))
    else:
      kernel = jax.random.normal(k, (*layers, n, m)) * n**-0.5
    made[name] = {'kernel': kernel, 'bias': jnp.zeros((*layers, m))}
  return made


def apply(
  connectors: Connectors, values: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """The values, those that have a connector through it.

  Raises:
    ValueError: there is a connector for what is no value, or one for another width.
  """
  if missing := set(connectors) - set(values):
    raise ValueError(
      f'There are connectors for {sorted(missing)}; values are {sorted(values)}.'
    )
  return {
    name: _connected(name, connectors[name], x) if name in connectors else x
    for name, x in values.items()
  }


def _connected(name, connector, x):
  kernel, bias = connector['kernel'], connector['bias']
  *layers, n, _ = kernel.shape
  if x.shape[-1] != n or list(x.shape[: len(layers)]) != layers:
    raise ValueError(
      f'The connector of {name} is {kernel.shape}, and the value {x.shape}: it was made'
      ' for another student. Call connectors.init with the shapes of this one.'
    )
  y = jnp.einsum('l...i,lij->l...j' if layers else '...i,ij->...j', x, kernel)
  # One bias for all positions of a layer.
  between = y.ndim - len(layers) - 1
  return y + bias.reshape(*layers, *[1] * between, -1)
