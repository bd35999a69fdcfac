"""Running one step on many devices: meshes, data parallelism, clusters."""

from jaxopt_compress.parallel import cluster
from jaxopt_compress.parallel import mesh
from jaxopt_compress.parallel import placing
from jaxopt_compress.parallel import step
from jaxopt_compress.parallel.mesh import data_mesh
from jaxopt_compress.parallel.placing import device_put
from jaxopt_compress.parallel.step import data_parallel
from jaxopt_compress.parallel.step import Replicas

__all__ = [
  'cluster',
  'data_mesh',
  'data_parallel',
  'device_put',
  'mesh',
  'placing',
  'Replicas',
  'step',
]
