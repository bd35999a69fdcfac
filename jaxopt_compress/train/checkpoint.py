"""Checkpoints: whole or absent, of this config or refused.

A checkpoint is a directory that Orbax writes under a temporary name and renames
when it is complete, so a save that fails or is killed leaves the last one as it was.
Beside the arrays we store a sealed manifest: the config they were made under, a record
of the trainer's, and the shape, dtype and CRC-32 of every leaf. Orbax checks its index but not the payload:
a flipped bit in an array loads without a word, and the CRC is what notices. A flipped
bit in the manifest would pass for another config; its seal is what notices.

Steps are directories by number. We list and remove them ourselves, as one damaged
file of metadata is enough for Orbax's own manager not to start.

Trees are stored flat, as `{path: array}`, so a compressed leaf is its arrays and
restoring never depends on how a node type pickles. The structure comes from the
template.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
import zlib

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.disk import sealed

Config = dict[str, Any]  # flat: {'stage.teacher.steps': 600}; JSON values

_TEMPORARY = '.orbax-checkpoint-tmp'


class CorruptCheckpoint(ValueError):
  """What is on disk is not what was saved."""


class Checkpoints:
  """The checkpoints of one training run, by step.

  Args:
    directory: where they are; made if it is missing.
    config: flat dict of what the run depends on.
    keep: how many of the latest to keep, with those that they need.
    accepts: `(saved config, config) -> whether` a checkpoint of another config will do.
  """

  def __init__(
    self,
    directory,
    *,
    config: Config,
    keep: int = 2,
    accepts: Callable[[Config, Config], bool] | None = None,
  ):
    self._directory = epath.Path(directory)
    self._config = _jsonable(config)
    self._keep, self._accepts = keep, accepts
    self._pending = self._saved = None
    self._needs = {}
    self._directory.mkdir(parents=True, exist_ok=True)
    # What a save that was killed left, which Orbax names after the step.
    self._remove(p for p in self._directory.iterdir() if _TEMPORARY in p.name)

  @property
  def steps(self) -> list[int]:
    """The steps that have a checkpoint, in order."""
    names = [path.name for path in self._directory.iterdir()]
    return sorted(int(name) for name in names if name.isdigit())

  def save(
    self, step: int, tree: Any, record: Any = None, needs: Sequence[int] = ()
  ) -> None:
    """Starts saving `tree`; returns once the arrays may change.

    The write goes on in the background. The next call, or `wait`, raises what went
    wrong with it. The same step again is not written twice.

    Args:
      step: that is done.
      tree: of arrays.
      record: what else belongs to it, JSON values; see `record`.
      needs: other steps, whose checkpoints stay as long as this one does.
    """
    if step == self._saved:
      return
    self.wait()
    arrays = _flatten(tree)
    self._pending = ocp.save_async(
      self._directory / str(step),
      arrays,
      overwrite=True,  # only ever of one that could not be restored
      custom_metadata=_manifest(arrays, self._config, record, needs),
    )
    self._saved, self._needs[step] = step, set(needs)

  def wait(self) -> None:
    """Blocks until nothing is being written; then removes what need not be kept."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()
      latest = self.steps[-self._keep :]
      kept = set(latest).union(*map(self._needed, latest))
      self._remove(
        self._directory / str(step) for step in self.steps if step not in kept
      )

  def _needed(self, step):
    if step not in self._needs:  # Written before this run.
      try:
        manifest = read_manifest(self._directory / str(step))
      except CorruptCheckpoint:  # No run will resume from it.
        manifest = {}
      self._needs[step] = set(manifest.get('needs', ()))
    return self._needs[step]

  def record(self, step: int) -> Any:
    """What `save` was given beside the arrays of a step."""
    return read_manifest(self._directory / str(step)).get('record')

  def restore_step(self, step: int, template: Any) -> Any:
    """The tree of one step, as `restore` reads the newest."""
    try:
      return self._load(self._directory / str(step), template)
    except CorruptCheckpoint as e:
      raise CorruptCheckpoint(
        f'{e} Remove {self._directory} to start again.'
      ) from e

  def restore(self, template: Any) -> tuple[int, Any] | None:
    """The newest checkpoint that is whole, as (step, tree); None if there is none.

    Args:
      template: a tree of `jax.ShapeDtypeStruct` (or arrays), with the shardings that
        the restored arrays shall have.

    Raises:
      ValueError: it was made under another config, or has other leaves.
      CorruptCheckpoint: there are checkpoints, and none of them is whole.
    """
    broken = []
    for step in reversed(self.steps):
      path = self._directory / str(step)
      try:
        return step, self._load(path, template)
      except CorruptCheckpoint as e:
        logging.error('%s Falling back to the checkpoint before it.', e)
        broken.append(str(e))
    if broken:
      raise CorruptCheckpoint(
        f'No checkpoint in {self._directory} is whole:'
        f' {" ".join(broken)} Remove that directory to start again.'
      )
    return None

  def _load(self, path, template):
    return _load(path, template, self._config, self._accepts)

  def close(self) -> None:
    self.wait()

  def _remove(self, paths):
    if jax.process_index() == 0:
      for path in paths:
        path.rmtree()

  def __enter__(self):
    return self

  def __exit__(self, *unused_exc):
    self.close()


def save(path, tree: Any, config: Config) -> None:
  """Writes one checkpoint at `path`, and waits for it."""
  arrays = _flatten(tree)
  ocp.save(
    epath.Path(path),
    arrays,
    overwrite=True,
    custom_metadata=_manifest(arrays, _jsonable(config)),
  )


def restore(path, template: Any, config: Config) -> Any:
  """Reads what `save` wrote, onto the structure and shardings of `template`.

  Raises:
    ValueError: another config, or other leaves.
    CorruptCheckpoint: it is not whole.
  """
  return _load(epath.Path(path), template, _jsonable(config))


def check_config(saved: Config, config: Config, where: str) -> None:
  """Raises a ValueError that names the keys in which two configs differ."""
  differ = [
    f'{key} was {old!r}, is {new!r}'
    for key, (old, new) in differences(saved, config).items()
  ]
  if differ:
    raise ValueError(
      f'{where} was made under another config: {"; ".join(differ)}. Use another'
      ' workdir, or put the config back.'
    )


def differences(saved: Config, config: Config) -> dict[str, tuple[Any, Any]]:
  """{key: (value in one, in the other)} where they differ; 'absent' of none."""
  config = _jsonable(config)
  both = {
    key: (saved.get(key, 'absent'), config.get(key, 'absent'))
    for key in sorted(saved.keys() | config.keys())
  }
  return {key: (old, new) for key, (old, new) in both.items() if old != new}


def _load(path, template, config, accepts=None):
  manifest = read_manifest(path)
  if not (accepts and accepts(manifest['config'], config)):
    check_config(manifest['config'], config, f'The checkpoint {path}')
  names = [name for name, _ in _named(template)]
  wanted = {name: _abstract(x) for name, x in _named(template)}
  _check_leaves(path, manifest['leaves'], wanted)
  stored = {n: x for n, x in wanted.items() if x.size}
  try:
    arrays = ocp.load(path, stored)
  except Exception as e:  # many kinds here as well
    raise CorruptCheckpoint(
      f'The checkpoint {path} cannot be read ({type(e).__name__}).'
    ) from e
  for name, x in arrays.items():
    crc = manifest['leaves'][name][2]
    if crc is not None and crc != _crc(x):
      raise CorruptCheckpoint(
        f'The checkpoint {path} is damaged: {name} is not what was saved.'
      )
  for name, x in wanted.items():
    if not x.size:  # Orbax stores no empty arrays.
      arrays[name] = jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding)
  return jax.tree.unflatten(
    jax.tree.structure(template), [arrays[name] for name in names]
  )


def read_manifest(path):
  try:
    manifest = ocp.metadata(path).custom_metadata
  except Exception as e:  # Orbax has many kinds; all mean the same to us.
    raise CorruptCheckpoint(
      f'The checkpoint {path} has no readable manifest ({type(e).__name__}).'
    ) from e
  if not sealed.is_intact(manifest):
    raise CorruptCheckpoint(
      f'The checkpoint {path} has a damaged manifest: its content does not have the'
      ' sha256 that it states.'
    )
  if lacks := [k for k in ('config', 'leaves') if k not in manifest]:
    raise CorruptCheckpoint(
      f'The manifest of the checkpoint {path} lacks {" and ".join(lacks)}.'
    )
  return manifest


def _check_leaves(path, saved, wanted):
  problems = [
    f'{n} is missing' for n in wanted if n not in saved and wanted[n].size
  ]
  problems += [f'{n} is not expected' for n in saved if n not in wanted]
  for name in saved.keys() & wanted.keys():
    shape, dtype, _ = saved[name]
    x = wanted[name]
    if (tuple(shape), dtype) != (x.shape, str(x.dtype)):
      problems.append(
        f'{name} is {dtype}{list(shape)}, expected {x.dtype}{list(x.shape)}'
      )
  if problems:
    more = f' and {len(problems) - 8} more' if len(problems) > 8 else ''
    raise ValueError(
      f'The checkpoint {path} is of another model:'
      f' {"; ".join(sorted(problems)[:8])}{more}. Use another workdir.'
    )


def _named(tree):
  return rules_lib.named_leaves(tree, is_leaf=lambda x: False)


def _flatten(tree):
  arrays = {
    name: x if isinstance(x, jax.Array) else jnp.array(x)
    for name, x in _named(tree)
  }
  return {name: x for name, x in arrays.items() if x.size}


def _abstract(x):
  sharding = getattr(x, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _manifest(arrays, config, record=None, needs=()):
  leaves = {
    name: [list(x.shape), str(x.dtype), _crc(x)] for name, x in arrays.items()
  }
  more = {'record': record, 'needs': sorted(needs)}
  return sealed.seal({'config': config, 'leaves': leaves} | more)


def _crc(x) -> int | None:
  """CRC-32 of the bytes of an array; None if they are not all on this host."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.is_fully_replicated:
    x = x.addressable_data(0)
  elif not x.is_fully_addressable:
    return None
  return zlib.crc32(np.ascontiguousarray(x).tobytes())


def _jsonable(config):
  """Tuples become lists, as JSON will make them."""

  def plain(x):
    return [plain(y) for y in x] if isinstance(x, (list, tuple)) else x

  return {key: plain(value) for key, value in config.items()}
