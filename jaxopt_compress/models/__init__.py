"""Small Flax NNX models, each called as `model(x, *, train, rngs) -> (y, out)`.

`out` names what happened on the way ('stem', 'block0', ..., 'features'), for
losses that look inside. `functional` makes any of them a pure function of plain
dicts.
"""

import inspect
from typing import Any

from flax import nnx
import jax

from jaxopt_compress.core import choices
from jaxopt_compress.models import cnn
from jaxopt_compress.models import decoder
from jaxopt_compress.models import encoder
from jaxopt_compress.models import keywords
from jaxopt_compress.models import mlp
from jaxopt_compress.models import resnet
from jaxopt_compress.models import vit
from jaxopt_compress.models.functional import Functional
from jaxopt_compress.models.functional import functional

__all__ = [
  'Functional',
  'abstract',
  'build',
  'cnn',
  'decoder',
  'defaults',
  'encoder',
  'functional',
  'mlp',
  'resnet',
  'vit',
]


def build(name: str, *, seed: int | jax.Array = 0, **kwargs: Any) -> nnx.Module:
  """The model `name` of this package: `build('mlp')` is `mlp.MLP(...)`.

  Args:
    name: a module of this package; its class has the same name in another case.
    seed: for the initial weights, an int or a key.
    **kwargs: for the class.

  Raises:
    ValueError: no such model, no such keyword, or a number out of its range.

  >>> type(build('mlp', in_features=4, classes=2)).__name__
  'MLP'
  """
  cls = _class(name)
  keywords.check(name, cls.__init__, kwargs)
  return cls(**kwargs, rngs=nnx.Rngs(seed))


def defaults(name: str) -> dict[str, Any]:
  """What the keywords of a model are where nothing is said.

  >>> defaults('mlp')['widths']
  (128, 128)
  """
  parameters = inspect.signature(_class(name).__init__).parameters
  empty = inspect.Parameter.empty
  return {k: p.default for k, p in parameters.items() if p.default is not empty}


def abstract(name: str, **kwargs: Any) -> Functional:
  """`functional(build(name, ...))` with shapes where the arrays would be.

  >>> abstract('mlp', in_features=4, classes=2).params['head']['kernel'].shape
  (128, 2)
  """
  return functional(nnx.eval_shape(lambda: build(name, **kwargs)))


def _class(name: str) -> type[nnx.Module]:
  # The namespace is the registry: the class is the module's name, in any case.
  classes = {
    file: found
    for file, module in globals().items()
    for word, found in getattr(module, '__dict__', {}).items()
    if isinstance(found, type)
    and issubclass(found, nnx.Module)
    and word.lower() == file
  }
  if name not in classes:
    raise ValueError(
      f'No model is called {name!r}; there are {sorted(classes)}.'
      f'{choices.guess(name, classes)}'
    )
  return classes[name]
