"""Loading an export; what would fail or mislead later is refused here."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import rules
from jaxopt_compress.disk import sealed
from jaxopt_compress.export import layout
from jaxopt_compress.export import weights as weights_lib

_AGAIN = 'Copy the whole directory, or export again.'
# The form of what is read of a manifest; `...` is any key.
_ENTRIES = {
  'jax': str,
  'calling_convention': int,
  'platforms': list,
  'signature': {
    side: [{'name': str, 'shape': list, 'dtype': str}]
    for side in ('inputs', 'outputs')
  },
  'weights': {...: {'dtype': str}},
  'files': {...: {'sha256': str}},
}


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
  """A loaded export, called as `program(*inputs)` with the inputs that were exported.

  Attributes:
    exported: the `jax.export.Exported`.
    weights: `{name: array}` on the default device.
    manifest: see `save`.
  """

  exported: export.Exported
  weights: Mapping[str, jax.Array]
  manifest: Mapping[str, Any]
  _jitted: Callable[..., Any]

  def __repr__(self):
    takes, gives = (
      ', '.join(
        f'{x["name"]}: {x["dtype"]}[{", ".join(map(str, x["shape"]))}]'
        for x in self.manifest['signature'][side]
      )
      for side in ('inputs', 'outputs')
    )
    held = sum(w.nbytes for w in self.weights.values())
    return f'Program({takes} -> {gives}; {held:,} bytes of weights)'

  def __call__(self, *inputs: Any) -> Any:
    _check_inputs(self.manifest['signature']['inputs'], inputs)
    return self._jitted(self.weights, *inputs)


def load(directory: str | os.PathLike) -> Program:
  """Reads a directory that `save` wrote.

  Raises:
    ValueError: no export, a missing or changed file, a jax older than the one that
      exported, or a platform that was not exported for.
  """
  directory = pathlib.Path(directory)
  manifest = _read_manifest(directory)
  _check_jax(directory, manifest)
  try:
    for name in layout.FILES:
      sealed.check(directory / name, manifest['files'][name]['sha256'])
  except sealed.Damaged as e:
    raise ValueError(f'{e} {_AGAIN}') from e
  exported = export.deserialize(
    bytearray((directory / layout.PROGRAM).read_bytes())
  )
  dtypes = {name: w['dtype'] for name, w in manifest['weights'].items()}
  weights = weights_lib.load(directory / layout.WEIGHTS, dtypes)
  return Program(
    exported, jax.device_put(weights), manifest, jax.jit(exported.call)
  )


def _read_manifest(directory):
  path = directory / layout.MANIFEST
  try:
    manifest = sealed.read(path)
  except sealed.Damaged as e:
    raise ValueError(f'{directory} is no export: {e} {_AGAIN}') from e
  # What is sealed is whole, but others may have written it.
  found = manifest.get('format')
  if found != layout.FORMAT:
    raise ValueError(
      f'{directory} has format {found!r}, not {layout.FORMAT!r}. Export again.'
    )
  # No other names: what is read lies in the directory, and all of it is checked.
  files = manifest.get('files')
  if isinstance(files, dict) and sorted(files) != sorted(layout.FILES):
    raise ValueError(
      f'{path} lists the files {sorted(files)}, expected'
      f' {sorted(layout.FILES)}. Export again.'
    )
  wrong = [k for k, f in _ENTRIES.items() if not _has_form(manifest.get(k), f)]
  if wrong:
    raise ValueError(f'{path} lacks {", ".join(wrong)}. Export again.')
  return manifest


def _has_form(x, form):
  if isinstance(form, list):
    return isinstance(x, list) and all(_has_form(y, form[0]) for y in x)
  if isinstance(form, dict):
    return isinstance(x, dict) and all(
      _has_form(x.get(key), inner)
      for name, inner in form.items()
      for key in (x if name is ... else [name])
    )
  return isinstance(x, form)


def _check_jax(directory, manifest):
  def minor(version):
    return tuple(int(n) for n in version.split('.')[:2])

  # Each jax reads a window of calling conventions; the program's must be inside it.
  convention = manifest['calling_convention']
  too_old = minor(jax.__version__) < minor(manifest['jax'])
  if (
    too_old or convention > export.maximum_supported_calling_convention_version
  ):
    raise ValueError(
      f'{directory} was exported by jax {manifest["jax"]}, and this is jax'
      f' {jax.__version__}, which may not read it. Upgrade with'
      f' `pip install "jax>={manifest["jax"]}"`, or export with this jax.'
    )
  if convention < export.minimum_supported_calling_convention_version:
    raise ValueError(
      f'{directory} was exported by jax {manifest["jax"]}, too long ago for'
      f' jax {jax.__version__}. Export again.'
    )
  platform = export.default_export_platform()
  if platform not in manifest['platforms']:
    raise ValueError(
      f'{directory} was exported for {manifest["platforms"]}, and this is'
      f' {platform}. Export with platforms=(..., {platform!r}).'
    )


def _check_inputs(expected, inputs):
  named = dict(rules.named_leaves(inputs))
  if list(named) != [e['name'] for e in expected]:
    raise ValueError(
      f'Inputs are {list(named)}, but the program takes'
      f' {[e["name"] for e in expected]}.'
    )
  # Symbolic axes, such as 'batch', take the length that comes first and must have it
  # in every later input too.
  sizes = {}
  for e in expected:
    x = named[e['name']]
    shape = np.shape(x)
    fits = len(shape) == len(e['shape']) and all(
      n == sizes.setdefault(m, n) if isinstance(m, str) else n == m
      for n, m in zip(shape, e['shape'], strict=False)
    )
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(x))
    if not fits or str(dtype) != e['dtype']:
      raise ValueError(
        f'Input {e["name"]} is {dtype}{list(shape)}, but the program takes'
        f' {e["dtype"]}[{", ".join(map(str, e["shape"]))}]'
        f'{f", with {sizes}" if sizes else ""}.'
      )
