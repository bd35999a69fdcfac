"""The reference: every public name has a page and a docstring."""

import types

from absl.testing import absltest
import api

import jaxopt_compress as jc
from jaxopt_compress import distillation
from jaxopt_compress import pruning


class ApiTest(absltest.TestCase):
  def test_every_room_and_name_is_there(self):
    found = api.rooms()
    for name in jc.__all__:
      if isinstance(getattr(jc, name), types.ModuleType):
        self.assertIn(f'jaxopt_compress.{name}', found)
    for name in ('pruning.scores', 'distillation.losses', 'methods', 'schemes'):
      self.assertIn(f'jaxopt_compress.{name}', found)
    seen = {}
    pages = [api.page(path, found, seen) for path in found]
    for value in (jc.lift, jc.W8A8, jc.schemes.NF4, distillation.losses.kl):
      self.assertIn(id(value), seen)
    self.assertEqual(seen[id(jc.schemes.NF4)], 'jaxopt_compress.schemes.NF4')
    for score in api.public(pruning.scores):
      entry = f'.. autofunction:: jaxopt_compress.pruning.scores.{score}\n'
      self.assertLen([page for page in pages if entry in page], 1)

  def test_a_name_without_a_docstring_is_found(self):
    class Bare:
      def method(self):
        pass

      def _hidden(self):
        pass

    self.assertEqual(
      api.undocumented('a.Bare', Bare), ['a.Bare', 'a.Bare.method']
    )
    self.assertEqual(api.undocumented('a.lift', jc.lift), [])
    self.assertEqual(api.undocumented('a', types.ModuleType('a')), ['a'])

  def test_none_of_ours_is_without(self):
    missing = [
      name
      for path, module in api.rooms().items()
      for inner, value in {'': module, **api.public(module)}.items()
      for name in api.undocumented(f'{path}.{inner}'.rstrip('.'), value)
    ]
    self.assertEqual(missing, [])


if __name__ == '__main__':
  absltest.main()
