"""Rows of a table are rows in whatever form JAX asks for them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

TABLE = jax.random.normal(jax.random.key(0), (12, 32))
AT = jnp.array([[0, 11, 3], [5, -1, 40]])

FORMS = {
  'indexed': lambda w, i: w[i],
  'vmap': lambda w, i: jax.vmap(lambda i: w[i])(i.reshape(-1)),
  'vmap of vmap': lambda w, i: jax.vmap(jax.vmap(lambda i: w[i]))(i),
  'a part of rows': lambda w, i: jax.vmap(
    lambda i: lax.dynamic_slice(w, (i, 0), (2, 32))
  )(i[0]),
  'turned': lambda w, i: jax.vmap(lambda i: w.T[:, i])(i[0]),
  'a column too': lambda w, i: jax.vmap(lambda i: w[i, i])(i[0]),
}


def leaves():
  tied = lambda p, i: p['w'][i] @ p['w'].T
  rules, uses = [('w', 'int8')], jc.uses(tied)({'w': TABLE}, AT)
  q = jc.quantize({'w': TABLE}, rules, uses)
  adapters = jc.adapters.add_lora(q, [('w', 2)], uses, key=jax.random.key(1))
  adapters = jax.tree.map(lambda x: x + 0.1, adapters)
  pruned = {'w': jnp.where(jnp.abs(TABLE) > 1.2, TABLE, 0)}
  return {
    'codes': q['w'],
    'packed': jc.pack(q, uses, target='cpu')['w'],
    'adapted': jc.adapters.with_lora(q, adapters, uses)['w'],
    'sparse': jc.sparsify(pruned, uses=uses)[0]['w'],
  }


def by_dict(form):
  return lambda p, i: FORMS[form](p['w'], i)


class RowsTest(parameterized.TestCase):
  @parameterized.product(
    form=list(FORMS), kind=['codes', 'packed', 'adapted', 'sparse']
  )
  def test_by_each_leaf(self, form, kind):
    leaf = leaves()[kind]
    got = jax.jit(jc.lift(FORMS[form]))(leaf, AT)
    want = FORMS[form](leaf.materialize(), AT)
    np.testing.assert_allclose(got, want, atol=1e-5)
    if form.startswith('vmap'):
      jax.jit(jc.lift(FORMS[form], strict=True))(leaf, AT)

  @parameterized.parameters('indexed', 'vmap', 'vmap of vmap')
  def test_a_row_is_what_comes_whole(self, form):
    for rows in (12, 1):
      uses = jc.uses(by_dict(form))({'w': TABLE[:rows]}, AT)
      self.assertEqual([u.contracted for u in uses['w']], [(-1,)])

  @parameterized.parameters('indexed', 'vmap', 'vmap of vmap')
  def test_rows_can_be_shrunk(self, form):
    f = lambda p, i: (by_dict(form)(p, i) @ p['out']).sum()
    params = {'w': TABLE, 'out': TABLE.T}
    found = jc.structure(f)(params, AT)
    width = found.groups['out:-2']
    self.assertEqual((width.size, width.locked), (32, ()))


if __name__ == '__main__':
  absltest.main()
