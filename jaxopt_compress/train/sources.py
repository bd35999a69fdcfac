"""Where examples come from: a data set of this library, or the user's own function.

    data = dict(name='images', train='folder@my[:80%]', test='folder@my[80%:]', size=64)
    data = dict(name='text', root='my_texts', suffixes=('.txt',))
    data = dict(name='my_pkg.data:load', input='features', target='price', path='x.csv')

What a config says beside the options of `options.Data` are keywords of the function
`load`. A split may be a part of one; see `data.slices`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import inspect
import sys
import traceback
from typing import Any

import numpy as np

from jaxopt_compress import data as data_lib
from jaxopt_compress.core import choices
from jaxopt_compress.train import fields
from jaxopt_compress.train import named
from jaxopt_compress.train import options

# Of `load` functions here: what is no keyword of a config.
_GIVEN = ('split', 'source', 'beside', 'only')


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set of named arrays.

  Attributes:
    load: `(split, *other splits) -> {name: [n, ...]}`; a split may be a slice.
    augment: `(batch, rng) -> batch`, or None.
    classes: `(split, *other splits) -> names`; None where classes are numbers.
    left_out: `split -> what is not read`; None where nothing is.
    own: whether it is the user's.
    form: in which inputs are, in words.
  """

  load: Callable[..., dict[str, np.ndarray]]
  augment: Callable[..., Any] | None
  classes: Callable[..., Sequence[str]] | None = None
  left_out: Callable[[str], Sequence[str]] | None = None
  own: bool = False
  form: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def module_of(data: options.Data) -> Any:
  """The module of a data set of this library; None for a function of the user's.

  Raises:
    ValueError: there is none of the name, or `load` takes no such keyword.
  """
  if named.is_own(data.name):
    load = named.find('config.data.name', data.name)
    if not callable(load):
      raise ValueError(
        f'config.data.name is {data.name!r}, of type {type(load).__name__}; a'
        ' function load(split) is expected.'
      )
    _check_keywords(data, load)
    return None
  # The namespace is the registry.
  modules = {n: m for n, m in vars(data_lib).items() if hasattr(m, 'load')}
  choices.one_of('config.data.name', data.name, modules)
  _check_keywords(data, modules[data.name].load)
  return modules[data.name]


def _check_keywords(data, load):
  parameters = inspect.signature(load).parameters
  if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
    return
  names = [n for n in parameters if n not in _GIVEN]
  if named.is_own(data.name):  # The first is the split, whatever it is called.
    names = list(parameters)[1:]
  known = (*fields.keys_of(options.Data), *names)
  fields.check_keys('config.data', data.keywords, known)
  missing = [
    n
    for n in names
    if n not in data.keywords
    and parameters[n].default is inspect.Parameter.empty
    and parameters[n].kind != inspect.Parameter.VAR_POSITIONAL
  ]
  if missing:
    raise ValueError(
      f'config.data needs {", ".join(map(repr, missing))}: load of {data.name!r}'
      ' takes it.'
    )


def of_arrays(data: options.Data) -> Source:
  """The source of named arrays that a config names."""
  module = module_of(data)
  if module is None:
    return _own(data)
  wide = hasattr(module, 'classes')

  # Both parts of a split are read at once.
  @functools.cache
  def whole(split, *beside):
    return module.load(split, *beside, **data.keywords)

  def load(split, *beside):
    part = data_lib.slices.read(split)
    others = [data_lib.slices.read(other).whole for other in beside]
    others = [other for other in others if other != part.whole]
    found = whole(part.whole, *(others if wide else ()))
    return data_lib.slices.cut(found, part, data.target)

  def of_whole(function):
    return lambda split, *beside: function(
      *(data_lib.slices.read(s).whole for s in (split, *beside))
    )

  return Source(
    load=load,
    augment=module.augment,
    classes=of_whole(module.classes) if wide else None,
    left_out=of_whole(module.left_out) if wide else None,
    form={
      key: said
      for key, said in getattr(module, 'FORM', {}).items()
      if key != 'resize' or data.keywords.get('size')
    },
  )


def _own(data):
  function = named.find('config.data.name', data.name)

  @functools.cache
  def whole(split):
    where = f'{data.name}, load({split!r}),'
    try:
      found = function(split, **data.keywords)
    except Exception as e:  # A user's function may raise anything.
      last = traceback.extract_tb(e.__traceback__)[-1]
      raise ValueError(
        f'config.data.name is {data.name!r}, and load({split!r}) fails:'
        f' {type(e).__name__}: {e} ({last.filename}:{last.lineno}). It is asked for'
        f' {data.train!r} and {data.test!r}; without a split to be judged by write'
        f" test='{data.train}[80%:]' and train='{data.train}[:80%]'."
      ) from e
    return data_lib.own.arrays(found, (data.input, data.target), where)

  def load(split, *beside):
    del beside
    part = data_lib.slices.read(split)
    return data_lib.slices.cut(whole(part.whole), part, data.target)

  # What changes batches lies beside what loads them.
  home = sys.modules.get(function.__module__)
  return Source(load, getattr(home, 'augment', None), own=True)


def check_apart(data: options.Data) -> None:
  """Raises a ValueError where parts of a split have examples in common."""
  said = {
    f'config.data.{key}': getattr(data, key)
    for key in ('train', 'validation', 'test')
  }
  data_lib.slices.check_apart(
    {
      k: data_lib.slices.read(v)
      for k, v in said.items()
      if isinstance(v, str) and v
    }
  )


def texts(module: Any, data: options.Data) -> Callable[[str, str], Any]:
  """`(split, files) -> text` of a data set of texts; a slice is a stretch of bytes."""

  # Stages of the same files share one copy.
  @functools.cache
  def read(split, files):
    part, only = data_lib.slices.read(split), files or data.files or '.*'
    text = module.load(part.whole, only=only, **data.keywords)
    low, high = (round(x * len(text)) for x in (part.low, part.high))
    return text[low:high]

  return read
