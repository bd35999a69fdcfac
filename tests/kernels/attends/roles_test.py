"""What axes are for, and values moved to where the kernel has them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.attends import axes
from jaxopt_compress.kernels.attends import roles

# Letters of parts: b, n heads of keys, g that share one, t, s, d, m.
SIZES = dict(b=2, n=3, g=4, t=5, s=7, d=8, m=6)


def _chosen(query, key, value, out, beside=(), index='bngt'):
  parts = axes.Parts()
  part = {c: parts.new((n,))[0][0] for c, n in SIZES.items()}

  def of(word):
    return tuple(part[c] for c in word)

  shapes = roles.Shapes(
    parts,
    of(index),
    *map(
      of,
      (
        query,
        key,
        value,
        out,
      ),
    ),
    tuple(map(of, beside)),
  )
  return shapes, roles.choose(shapes, of('s'), of('d')), of, parts


class RolesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('btngd', 'bsnd', 'bsnm', 'btngm', ['bthd', 'bthd', 'bthd', 'bthd']),
    ('bngtd', 'bnsd', 'bnsm', 'bngtm', ['bhtd', 'bhtd', 'bhtd', 'bhtd']),
    ('btngd', 'bnds', 'bnsm', 'btngm', ['bthd', 'bhdt', 'bhtd', 'bthd']),
    ('gbtnd', 'bsnd', 'bsnm', 'btngm', [None, 'bthd', 'bthd', 'bthd']),
  )
  def test_where_operands_lie(self, q, k, v, out, want):
    shapes, r, of, _ = _chosen(q, k, v, out)
    names = ('query', 'key', 'value', 'out')
    self.assertEqual([r.order(n, getattr(shapes, n)) for n in names], want)
    # Heads that share keys are further places if they lie so.
    group, places = ('', 'gt') if q == 'bngtd' else ('g', 't')
    self.assertEqual((r.batch, r.heads, r.group), (of('b'), of('n'), of(group)))
    self.assertEqual((r.places, r.results), (of(places), of('m')))

  def test_what_masks_tell_apart_are_places(self):
    # Heads and places may change parts; a mask of places says which is which.
    _, r, of, _ = _chosen('bgtd', 'bsd', 'bsm', 'bgtm', ['ts'], index='bgt')
    self.assertEqual((r.places, r.group), (of('t'), of('g')))

  @parameterized.parameters(
    ('btngd', 'bnd', 'bsnm', 'btngm'),  # keys are not in the key
    ('btng', 'bsnd', 'bsnm', 'btngm'),  # no features in the query
    ('bnd', 'bsnd', 'bsnm', 'btngm'),  # nobody has places
    ('btngd', 'bsnd', 'bsnm', 'btng'),  # a result is missing
  )
  def test_none(self, *words):
    self.assertIsNone(_chosen(*words)[1])

  def test_moved_there_and_back(self):
    shapes, r, of, parts = _chosen('gbtnd', 'bsnd', 'bsnm', 'btngm')
    x = np.float32(np.random.default_rng(0).normal(size=(4, 2, 5, 3, 8)))
    got, word = roles.as_operand(x, shapes.query, r, 'query', parts)
    self.assertEqual(word, 'bthd')
    want = x.transpose(1, 2, 3, 0, 4).reshape(2, 5, 12, 8)
    np.testing.assert_array_equal(got, want)
    y = jnp.arange(2 * 5 * 12 * 6).reshape(2, 5, 12, 6)
    back = roles.from_result(y, 'bthd', of('mtgnb'), r, parts)
    want = y.reshape(2, 5, 3, 4, 6).transpose(4, 1, 3, 2, 0)
    np.testing.assert_array_equal(back, want)

  def test_four_axes_stay_what_they_are(self):
    _, r, of, _ = _chosen('btngd', 'bsnd', 'bsnm', 'btngm')
    axes_of = tuple(map(of, 'bsnd'))
    self.assertTrue(r.as_it_is('key', axes_of))
    self.assertFalse(r.as_it_is('key', axes_of[:1] + axes_of))
    self.assertFalse(r.as_it_is('key', (of('bs'), (), *axes_of[2:])))

  def test_beside_scores(self):
    _, r, of, parts = _chosen('btngd', 'bsnd', 'bsnm', 'btngm')
    x = jnp.arange(35).reshape(7, 5)
    self.assertEqual(roles.as_scores(x, of('st'), r, parts).shape, (1, 1, 5, 7))
    x = jnp.arange(3)
    got = roles.as_scores(x, of('n'), r, parts)
    np.testing.assert_array_equal(got.ravel(), np.repeat(np.arange(3), 4))


if __name__ == '__main__':
  absltest.main()
