from absl.testing import absltest
from absl.testing import parameterized
import jax
import mixtures

import jaxopt_compress as jc
from jaxopt_compress.analysis.layers import cuts
from jaxopt_compress.analysis.layers import flat
from jaxopt_compress.analysis.structure import experts


def program_of(fun, p):
  closed = jax.make_jaxpr(fun)(p, mixtures.X)
  return cuts.Program(
    flat.flatten(closed), [path for path, _ in jc.rules.named_leaves(p)]
  )


class ExpertsTest(parameterized.TestCase):
  @parameterized.parameters(*mixtures.MIXTURES)
  def test_site(self, name):
    fun, p = mixtures.MIXTURES[name], mixtures.drawn()
    found = jc.structure(fun)(p, mixtures.X)
    self.assertEqual(experts.groups(found), ['down:-3'])
    program = program_of(fun, p)
    site = experts.site(program, found, 'down:-3')
    paths = {program.path[x]: axis for x, axis in site.last.items()}
    self.assertEqual(paths, {'down': -3})
    types = program.flat.types
    self.assertEqual(types[site.result].shape, mixtures.X.shape)
    self.assertEqual(types[site.logits].shape, (7, 4))
    self.assertIn(site.result, program.flat.outputs)
    steps, others = experts.depends(program, set(site.last), site.result)
    self.assertNotEmpty(steps)
    self.assertEmpty(others & set(site.last))

  def test_none(self):
    p = mixtures.drawn()
    found = jc.structure(mixtures.every)(p, mixtures.X)
    program = program_of(lambda p, x: x @ p['router'], p)
    self.assertIsNone(experts.site(program, found, 'down:-3'))

  def test_two_routers(self):
    def fun(p, x):
      p = dict(p)
      other = p.pop('other')
      return mixtures.every(p, x) + mixtures.every(dict(p, router=other), x)

    p = mixtures.drawn()
    p['other'] = p['router']
    found = jc.structure(fun)(p, mixtures.X)
    (name,) = experts.groups(found)
    with self.assertRaisesRegex(
      ValueError, r"\['other', 'router'\].*one router"
    ):
      experts.site(program_of(fun, p), found, name)


if __name__ == '__main__':
  absltest.main()
