"""Records of stages and leaves that several tests share."""

import math

from jaxopt_compress.report import records

STAGES = [
  records.StageRecord(
    'teacher',
    value=0.991,
    agreement=1.0,
    kl=0.0,
    parameters=116618,
    bytes_memory=466472,
    bytes_disk=466980,
    sparsity=0.0,
    flops=123456,
    latency={1: records.Timing(0.06, against='teacher', speed=1.0)},
  ),
  records.StageRecord(
    'int8',
    value=math.nan,
    parameters=116618,
    bytes_memory=121000,
    latency={1: records.Timing(0.1, against='teacher', speed=0.6)},
  ),
  records.StageRecord('empty'),
]

ANSWERS = [
  records.Answers('teacher', 0.031, 0.012, ((0.0,) * 3,) * 14 + ((9, 8.8, 9),)),
  records.Answers(
    'int8',
    math.nan,
    0.25,
    ((2.0, 0.1, 0.0), (1.0, 0.9, 1.0)),
    against='teacher',
    against_loss=0.031,
    agreement={1: 0.97, 5: 1.0},
    kl=0.00213,
  ),
  records.Answers('empty'),
]

GROUPS = [
  records.GroupRecord('a:-1', 4, 2, (1.0, 0.0, 0.0, 1.0), leaves=3),
  records.GroupRecord(
    'b:-1', 2, 1, (0.5, 0.5), asked=2, leaves=1, inexact=('a norm', 'a mean')
  ),
]

LEAVES = [
  records.LeafRecord(
    'a/kernel',
    (64, 256),
    'int4 g32',
    compressed=True,
    bits_per_weight=4.5,
    bytes=9216,
    sparsity=0.135,
    error_db=19.94,
    native=False,
    reason='conv: no rule',
    operations=('conv', 'reshape'),
  ),
  records.LeafRecord('a/bias', (256,), 'float32', error_db=math.inf),
  records.LeafRecord('scale', (), 'float32', error_db=math.nan),
]
