"""Uses of trees that have no program: each leaf is a matrix [in, out] of a dot."""

from collections.abc import Mapping

from jaxopt_compress.analysis import uses as uses_lib


class _InOut(Mapping):
  """Of any path, what `jc.uses` says of a matrix that is multiplied with rows."""

  def __getitem__(self, path):
    return (uses_lib.Use('dot_general', (-2,), (), ''),)

  def __iter__(self):
    return iter(('w',))

  def __len__(self):
    return 1


IN_OUT = _InOut()
