"""A report of two stages, and a leaf type for it, that several tests share."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import report_records

from jaxopt_compress.analysis import explain
from jaxopt_compress.core import array
from jaxopt_compress.report import leaves as leaves_lib
from jaxopt_compress.report import page
from jaxopt_compress.report import records


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Halved(array.CompressedArray):
  """Stands for 2 x, stored as bfloat16."""

  x: jax.Array

  shape = property(lambda self: self.x.shape)
  dtype = property(lambda self: jnp.dtype('float32'))

  def materialize(self):
    return 2 * self.x.astype(jnp.float32)

  def describe(self):
    return 'halved'


def example():
  kernel = np.float32([[1.0, -2.0], [0.0, 4.0]])
  reference = {'a': {'bias': np.zeros(2, np.float32), 'kernel': kernel}}
  params = {'a': dict(reference['a'], kernel=Halved(jnp.bfloat16(kernel / 2)))}
  stages = [
    records.stage('float', reference, value=0.9, notes=('trained',)),
    records.stage('halved', params, value=math.nan),
  ]
  met = explain.explain(lambda p, x: x @ p['a']['kernel'])(
    params, np.ones((1, 2))
  )
  coverage = {'halved': leaves_lib.coverage(params, reference, met)}
  channels = {'halved': report_records.GROUPS}
  report = page.Report(
    'A title',
    stages,
    coverage,
    channels,
    facts={'gzip -9': 2.5},
    answers=report_records.ANSWERS,
  )
  return report, {'a/kernel': (kernel, params['a']['kernel'].materialize())}
