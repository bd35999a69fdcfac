"""Data parallelism alone: one step, written for one replica, on all devices.

Claim: `shard_map`, `pmap` and `jit` on sharded arrays train the same network, and
  it is the one that a single device trains on the whole batch. Batch norm takes
  its statistics over all replicas (`axis_name`); without that each replica has its
  own, as is common practice, and the modes differ.
Cost: half a minute on two CPU cores.
Command: python -m launch.main --config=configs/data_parallel.py --workdir=/tmp/dp
  On a CPU, make four devices of it: XLA_FLAGS=--xla_force_host_platform_device_count=4
  The other modes, each with a workdir of its own:
  --config=configs/data_parallel.py:pmap or :jit
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan


def get_config(arg=''):
  words = arg.split(',') if arg else []
  for word in words:
    choices.one_of('arg', word, ('runlocal', 'pmap', 'jit'), '=')
  mode = next((w for w in words if w in ('pmap', 'jit')), 'shard_map')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(name='digits', train='train+validation', eval_batch_size=359)
  c.models = dict(
    # With 'jit' there is one replica, and no axis to name.
    cnn=dict(
      name='resnet',
      widths=(8, 16),
      axis_name='data' if mode != 'jit' else None,
    )
  )
  c.stages = ('model',)
  c.stage = dict(
    model=dict(
      model='cnn',
      steps=200,
      batch_size=128,
      learning_rate=0.05,
      optimizer='sgd',
    )
  )
  c.run = dict(mode=mode, devices=0, log_every=20)
  if 'runlocal' in words:
    c.stage.model.steps = 10
    c.report = dict(seconds=0.0)
  return plan.complete(c)
