"""Optimizers and schedules by name, against one step by hand."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.train import optimizer as optimizer_lib
from jaxopt_compress.train import options

PARAMS = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones((2,))}
GRADS = {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.full((2,), 4.0)}


def _updates(optimizer):
  return optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)[0]


class OptimizerTest(parameterized.TestCase):
  def test_sgd_with_decay_of_matrices(self):
    optimizer = optimizer_lib.build(
      'sgd', steps=10, learning_rate=0.1, decay='constant', weight_decay=0.5
    )
    found = _updates(optimizer)
    # Nesterov's first step is 1 + 0.9 gradients.
    np.testing.assert_allclose(found['kernel'], -0.19 * 3.5, rtol=1e-6)
    np.testing.assert_allclose(found['bias'], -0.19 * 4.0, rtol=1e-6)

  def test_clip(self):
    optimizer = optimizer_lib.build(
      'sgd', steps=10, learning_rate=0.1, decay='constant', clip=1.0
    )
    norm = np.sqrt(4 * 9 + 2 * 16)
    found = _updates(optimizer)
    np.testing.assert_allclose(found['bias'], -0.19 * 4 / norm, rtol=1e-6)

  @parameterized.parameters('adamw', 'muon')
  def test_descends(self, name):
    optimizer = optimizer_lib.build(name, steps=10, learning_rate=0.1)
    for update in _updates(optimizer).values():
      self.assertTrue((np.asarray(update) <= 0).all())

  def test_what_is_learned_is_slower(self):
    asked = options.Optimizer(
      name='sgd', learning_rate=0.5, learned_rate=0.2, weight_decay=0.3
    )
    _, learned = optimizer_lib.pair(asked, 10)
    # Adam's first step is as long as its rate; nothing decays.
    np.testing.assert_allclose(
      _updates(learned)['kernel'], -0.1 * np.ones((2, 2)), rtol=1e-5
    )

  @parameterized.parameters(
    ('cosine', [0.0, 0.5, 1.0, 0.5, 0.0]),
    ('linear', [0.0, 0.5, 1.0, 0.5, 0.0]),
    ('constant', [0.0, 0.5, 1.0, 1.0, 1.0]),
  )
  def test_schedule(self, decay, expected):
    rate = optimizer_lib.schedule(decay, 100, 1.0, warmup=0.1)
    found = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_mistakes(self):
    with pytest.raises(ValueError, match="optimizer='adam'; choose one of"):
      optimizer_lib.build('adam', steps=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="decay='cosin'.* mean 'cosine'"):
      optimizer_lib.build('sgd', steps=1, learning_rate=0.1, decay='cosin')
