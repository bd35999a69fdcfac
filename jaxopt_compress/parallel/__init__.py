"""Running one step on many devices: meshes, data parallelism, clusters."""

from jaxopt_compress.parallel import cluster, mesh, step
from jaxopt_compress.parallel.mesh import data_mesh
from jaxopt_compress.parallel.step import Replicas, data_parallel

__all__ = [
  'cluster',
  'data_mesh',
  'data_parallel',
  'mesh',
  'Replicas',
  'step',
]
