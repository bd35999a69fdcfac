"""Leaves that a shard_map cuts are observed as one device observes the whole."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import observing

import jaxopt_compress as jc


def _grid(f, in_specs, out_specs, checked):
  """`f(w, x)` on two by two devices: 'd' for data, 'm' for the model."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ('d', 'm'))
  mapped = jax.shard_map(
    f,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=checked,
  )
  return lambda p, x: mapped(p['w'], x)


_BMK, _EKO = observing.rand(4, 8, 6), observing.rand(4, 6, 5)
_IMAGES, _KERNEL = observing.rand(4, 5, 5, 4), observing.rand(3, 3, 4, 2)
_HEADS, _OUT = observing.rand(8, 2, 4), observing.rand(2, 4, 5)

# What a device computes, and the same function on one.
_CUTS = dict(
  data=(
    lambda w, x: x @ w,
    P(),
    P('d'),
    P('d'),
    observing.LAYERS[0],
    observing.X,
    None,
  ),
  replicated=(
    lambda w, x: x @ w,
    P(),
    P(),
    P(),
    observing.LAYERS[0],
    observing.X,
    None,
  ),
  column=(
    lambda w, x: x @ w,
    P(None, 'm'),
    P('d'),
    P('d', 'm'),
    observing.LAYERS[0],
    observing.X,
    None,
  ),
  row=(
    lambda w, x: lax.psum(x @ w, 'm'),
    P('m'),
    P('d', 'm'),
    P('d'),
    observing.LAYERS[0],
    observing.X,
    lambda w, x: x @ w,
  ),
  gathered=(
    lambda w, x: x @ lax.all_gather(w, 'd', tiled=True),
    P('d'),
    P('d'),
    P('d'),
    observing.LAYERS[0],
    observing.X,
    lambda w, x: x @ w,
  ),
  experts=(
    lambda w, x: jnp.einsum('enk,eko->eno', x, w),
    P('m'),
    P('m', 'd'),
    P('m', 'd'),
    _EKO,
    _BMK,
    None,
  ),
  heads=(
    lambda w, x: lax.psum(jnp.einsum('bhd,hdo->bo', x, w), 'm'),
    P('m'),
    P('d', 'm'),
    P('d'),
    _OUT,
    _HEADS,
    lambda w, x: jnp.einsum('bhd,hdo->bo', x, w),
  ),
  inside_heads=(
    lambda w, x: lax.psum(x.reshape(len(x), -1) @ w.reshape(-1, 5), 'm'),
    P(None, 'm'),
    P('d', None, 'm'),
    P('d'),
    _OUT,
    _HEADS,
    lambda w, x: jnp.einsum('bhd,hdo->bo', x, w),
  ),
  channels=(
    lambda w, x: lax.psum(observing.conv(w, x), 'm'),
    P(None, None, 'm'),
    P('d', None, None, 'm'),
    P('d'),
    _KERNEL,
    _IMAGES,
    observing.conv,
  ),
  constant_of_a_loop=(
    lambda w, x: lax.while_loop(
      lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x)
    )[1],
    P(),
    P('d'),
    P('d'),
    observing.LAYERS[0],
    observing.X,
    None,
  ),
)


class MeshTest(observing.Case):
  """Data and model on a grid of devices: as on one."""

  @parameterized.product(
    name=tuple(_CUTS),
    checked=(True, False),
    statistic=(jc.statistics.gram(), jc.statistics.absmax('tensor')),
  )
  def test_cut_leaves_are_whole(self, name, checked, statistic):
    f, w_spec, x_spec, y_spec, w, x, single = _CUTS[name]
    single = single or f
    got = observing.observed(
      _grid(f, (w_spec, x_spec), y_spec, checked), statistic, w, x
    )
    want = observing.observed(lambda p, x: single(p['w'], x), statistic, w, x)
    np.testing.assert_array_equal(got.count, want.count)
    jax.tree.map(observing.close, got.state, want.state)

  @parameterized.parameters(True, False)
  def test_layers_on_different_devices(self, checked):
    def f(ws, x):
      x = lax.pcast(x, 'm', to='varying') if checked else x
      h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]
      return lax.psum(h, 'm')

    ws = observing.rand(4, 6, 6)
    g = _grid(f, (P('m'), P('d')), P('d'), checked)
    seen = observing.observed(g, jc.statistics.gram(), ws, observing.X)
    met = [*observing.hidden(ws[:2]), *observing.hidden(ws[2:])]
    np.testing.assert_array_equal(seen.count, [8] * 4)
    observing.close(seen.state, [h.T @ h for h in met])

  def test_layers_on_different_devices_that_are_indexed(self):
    f = lambda ws, x: lax.psum(x @ ws[0] @ ws[1], 'm')
    g = _grid(f, (P('m'), P('d')), P('d'), True)
    with self.assertRaisesRegex(ValueError, 'w is cut along .* and indexed'):
      observing.observed(
        g, jc.statistics.gram(), observing.rand(4, 6, 6), observing.X
      )

  def test_column_then_row(self):
    def f(p, x):
      return lax.psum(jnp.tanh(x @ p['w']) @ p['v'], 'm')

    params = {'w': observing.LAYERS[0], 'v': observing.LAYERS[1]}
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ('d', 'm'))
    mapped = jax.shard_map(
      f,
      mesh=mesh,
      in_specs=({'w': P(None, 'm'), 'v': P('m')}, P('d')),
      out_specs=P('d'),
    )
    stats = jax.jit(jc.observe(mapped, {'.*': jc.statistics.gram()}))(
      params, observing.X
    )[1]
    for name, met in zip(
      'wv', observing.hidden(observing.LAYERS[:2]), strict=True
    ):
      self.assertEqual(stats[name].count, 8)
      observing.close(stats[name].state, met.T @ met)

  def test_data_cut_in_ways_that_types_do_not_tell(self):
    def f(p, x, y):
      both = lambda w, x, y: (x @ w, y @ w)
      mesh = jax.sharding.Mesh(
        np.array(jax.devices()).reshape(2, 2), ('d', 'm')
      )
      specs = P('d'), P('m')
      return jax.shard_map(
        both,
        mesh=mesh,
        in_specs=(P(), *specs),
        out_specs=specs,
        check_vma=False,
      )(p['w'], x, y)

    with self.assertRaisesRegex(ValueError, 'check_vma=True'):
      jc.observe(f, {'w': jc.statistics.gram()})(
        {'w': observing.LAYERS[0]}, observing.X, observing.X
      )


if __name__ == '__main__':
  absltest.main()
