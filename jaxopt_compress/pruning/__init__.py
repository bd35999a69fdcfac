"""Pruning: weights become zeros, by masks that change while training."""

from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning import schedules
from jaxopt_compress.pruning import scores
from jaxopt_compress.pruning import select

__all__ = ['masks', 'schedules', 'scores', 'select']
