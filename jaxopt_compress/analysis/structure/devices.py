"""What collectives say of the channels of their operands.

    shard_map   [.., 24] over 4 devices is [.., 6] on each: a channel is (device, place)
    all_gather  puts the devices back, reduce_scatter takes them apart

What a device has is a group of its own, inside the devices: all keep as many channels,
and each may keep others (`Group.within`). How many devices there are is for the mesh to
say, so they stay. Rules are as in `structure_rules`, which see.
"""

from collections.abc import Callable

from jaxopt_compress.analysis.structure.tied import Value


def _across(asked, at, inputs):
  """A sum or a maximum over devices: place meets place, whatever the device."""
  asked.met += [x.axes for x in inputs]
  return [Value(x.axes, x.zeros) for x in inputs]


def _devices(asked, at, n):
  p = at.eqn.params
  if p.get('axis_index_groups') is not None:
    return None
  names = p['axis_name']
  names = names if isinstance(names, tuple) else (names,)
  return asked.devices(at, names, n)


def _all_gather(asked, at, inputs):
  (x,), p = inputs, at.eqn.params
  i, axes = p['all_gather_dimension'], list(x.axes)
  devices = _devices(asked, at, p['axis_size'])
  if devices is None:
    return None
  if p['tiled']:
    axes[i] = (*devices, *axes[i])
  else:
    axes.insert(i, devices)
  return [Value(tuple(axes), x.zeros)]


def _taken_apart(asked, axis, devices):
  """What a device gets of an axis; None where that tears channels."""
  size = asked.channels.size(axis) // asked.channels.size(devices)
  parts = asked.channels.split(axis, size)
  if parts is None:
    return None
  asked.channels.tie(parts[0], devices)
  return parts[1]


def _reduce_scatter(asked, at, inputs):
  (x,), p = inputs, at.eqn.params
  i, axes = p['scatter_dimension'], list(x.axes)
  devices = _devices(asked, at, p['axis_size'])
  part = devices and _taken_apart(asked, axes[i], devices)
  if part is None:
    return None
  axes[i : i + 1] = [part] if p['tiled'] else []
  return [Value(tuple(axes), x.zeros)]


def _all_to_all(asked, at, inputs):
  (x,), p = inputs, at.eqn.params
  i, j, axes = p['split_axis'], p['concat_axis'], list(x.axes)
  n = asked.channels.size(axes[i])
  if p['tiled']:
    n //= at.shape()[i] if i != j else 1
  devices = _devices(asked, at, n) if i != j or not p['tiled'] else None
  part = devices and _taken_apart(asked, axes[i], devices)
  if part is None:
    return None
  if p['tiled']:
    axes[i], axes[j] = part, (*devices, *axes[j])
  else:
    del axes[i]
    axes.insert(j, devices)
  return [Value(tuple(axes), x.zeros)]


def _axis_index(asked, at, inputs):
  return [Value(())]


_TABLE = {
  _across: 'psum psum_invariant pmax pmin ppermute pbroadcast',
  _all_gather: 'all_gather all_gather_invariant',
  _reduce_scatter: 'reduce_scatter',
  _all_to_all: 'all_to_all',
  _axis_index: 'axis_index',
}

RULES: dict[str, Callable] = {
  name: rule for rule, names in _TABLE.items() for name in names.split()
}
