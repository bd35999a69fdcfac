"""Modules whose weights are compressed, of classes whose methods run through `lift`.

    class Dressed(Net):
      def encode(self, x):
        return lift(Net.encode)(self, x)     # and the state of self, as `written` has it

Such a class is derived from the module's own, and has its name. Its objects are modules
of Flax: they are split, merged, cloned and saved as those of `Net`.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

from flax import nnx
import jax

from jaxopt_compress.modules import written


def dress(tree: Any, like: Any) -> Any:
  """As `verbs.dress`."""
  share(tree, like)
  check_reached(tree)
  for x in _objects(tree):
    for node in _modules(x):
      kind = type(node).__dict__.get('__wrapped__', type(node))
      if written.has_leaves(node):
        kind = _dressed(kind)
      if kind is not type(node):
        object.__setattr__(node, '__class__', kind)
  return tree


def check_reached(tree: Any) -> None:
  """Raises ValueError for a module whose weights no tree map reaches."""
  for x in _objects(tree):
    if isinstance(x, nnx.Module) and jax.tree_util.all_leaves([x]):
      raise ValueError(
        f'{type(x).__name__} is a module that is no pytree (pytree=False), so its'
        ' weights are not reached. Derive it from nnx.Module without pytree=False,'
        ' or take it apart: graphdef, params = nnx.split(model).'
      )


def share(tree: Any, like: Any) -> None:
  """Lets what is one object in `like` be one in `tree`, which a tree map parted."""
  for new, old in zip(_objects(tree), _objects(like), strict=False):
    for first, *others in nnx.find_duplicates(old):
      twin = _at(new, first)
      for path in others:
        if not isinstance(twin, nnx.Pytree | nnx.Variable):
          continue
        if _formats(_at(new, path)) != _formats(twin):
          names = ['/'.join(map(str, p)) for p in (first, path)]
          raise ValueError(
            f'{names[0]} and {names[1]} are one object, and would get different'
            ' formats. Give both the same rule, and the uses of both: those that'
            ' jc.uses tells of the module.'
          )
        parent, key = _at(new, path[:-1]), path[-1]
        if isinstance(parent, nnx.Pytree):
          object.__setattr__(parent, str(key), twin)
        elif isinstance(parent, dict | list):
          parent[key] = twin


def shared_paths(tree: Any) -> list[list[str]]:
  """The paths of leaves that are one Variable of a module."""
  paths = {}
  keyed, _ = jax.tree_util.tree_flatten_with_path(
    tree, is_leaf=lambda x: isinstance(x, nnx.Variable)
  )
  for keys, variable in keyed:
    if isinstance(variable, nnx.Variable):
      paths.setdefault(id(variable), []).append(
        jax.tree_util.keystr(keys, simple=True, separator='/')
      )
  return [p for p in paths.values() if len(p) > 1]


def _objects(tree):
  leaves = jax.tree.leaves(tree, is_leaf=written.is_node)
  return [x for x in leaves if written.is_node(x)]


def _at(node, path):
  for key in path:
    if isinstance(node, nnx.Pytree):
      node = vars(node)[str(key)]
    else:
      node = node[key]
  return node


def _formats(x):
  """The structure of a part of a module, and the shapes in it."""
  return jax.tree.structure(x), [a.shape for a in jax.tree.leaves(x)]


def _modules(node) -> list[nnx.Module]:
  return [x for _, x in nnx.iter_graph(node) if isinstance(x, nnx.Module)]


@functools.cache
def _dressed(kind: type[nnx.Module]) -> type[nnx.Module]:
  """The class derived from a module's own whose methods run through `lift`."""
  methods = {}
  # What Flax's own base class has (train, eval, sow) does not compute.
  above = kind.__mro__[: kind.__mro__.index(nnx.Module)]
  for name in dict.fromkeys(name for base in above for name in vars(base)):
    function = inspect.getattr_static(kind, name)
    if _computes(name, function):
      methods[name] = _lifted(function)
  return type(kind)(
    kind.__name__,
    (kind,),
    {
      '__wrapped__': kind,
      '__module__': kind.__module__,
      '__qualname__': kind.__qualname__,
      '__doc__': kind.__doc__,
      '__reduce__': _reduce,
      **methods,
    },
    pytree=True,
  )


def _computes(name, attribute) -> bool:
  """Whether a class attribute is a method that may read weights."""
  no_method = (staticmethod, classmethod, type)
  special = name.startswith('__') and name != '__call__'
  return (
    callable(attribute)
    and hasattr(attribute, '__get__')
    and not special
    and not isinstance(attribute, no_method)
    # It runs after its call is over; the modules that it calls are lifted.
    and not inspect.isgeneratorfunction(attribute)
  )


def _lifted(function: Callable) -> Callable:
  @functools.wraps(function)
  def method(self, *args, **kwargs):
    if not written.has_leaves((self, args, kwargs)):
      return function(self, *args, **kwargs)
    try:
      return written.call(function, (self, *args), kwargs)
    except jax.errors.ConcretizationTypeError:
      # Python decides by values here, as a loop that generates text: it runs as it
      # is, and the modules that it calls are lifted.
      return function(self, *args, **kwargs)

  return method


def _reduce(self):
  return _restored, (type(self).__wrapped__, self.__getstate__())


def _restored(kind, state):
  """For pickle, which finds classes by their names."""
  module = object.__new__(_dressed(kind))
  module.__setstate__(state)
  return module
