"""Images, and what a model makes of their shapes, for the tests of each model."""

import jax
import numpy as np

from jaxopt_compress import models

IMAGES = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype('f')


def num_params(name, **kwargs):
  params = models.abstract(name, **kwargs).params
  return sum(x.size for x in jax.tree.leaves(params))


def shapes(name, **kwargs):
  f = models.abstract(name, **kwargs)
  y, out, _ = jax.eval_shape(f.apply, f.params, f.variables, IMAGES)
  return {k: x.shape[1:] for k, x in out.items()} | {'y': y.shape[1:]}
