"""Records of records, written flat: read, written, refused."""

import dataclasses

from absl.testing import parameterized
import pytest

from jaxopt_compress.train import fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
  name: str = 'gas'
  heat: float = fields.option(200.0, '(0, 300]')
  fan: bool = fields.option(False, needs='oven=wood')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bread:
  flour: str
  loaves: int = fields.option(1, '[0, inf)')
  oven: Oven = fields.record(Oven, prefix='oven_', needs='loaves', name='oven')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Icing:
  kind: str = 'none'
  sugar: float = fields.option(0.5, '(0, 1]')
  drops: int = fields.option(0, '[0, inf)', needs='kind=chocolate')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cake:
  layers: int = fields.option(1, '[1, inf)')
  icing: Icing = fields.level(Icing)


class LevelTest(parameterized.TestCase):
  def test_read_and_written(self):
    said = {'layers': 2, 'icing': {'kind': 'chocolate', 'drops': 3}}
    found = fields.read(Cake, 'c', said)
    icing = Icing(kind='chocolate', drops=3)
    self.assertEqual(found, Cake(layers=2, icing=icing))
    all_of_it = {'kind': 'chocolate', 'sugar': 0.5, 'drops': 3}
    self.assertEqual(fields.written(found), said | {'icing': all_of_it})
    self.assertEqual(fields.read(Cake, 'c', fields.written(found)), found)
    self.assertEqual(fields.written(Cake()), {'layers': 1})

  def test_defaults(self):
    icing = {'kind': 'none', 'sugar': 0.5, 'drops': 0}
    self.assertEqual(fields.defaults_of(Cake), {'layers': 1, 'icing': icing})

  @parameterized.parameters(
    ({'icing': 'rum'}, "c.icing is 'rum'; a dict of options is expected."),
    ({'icing': {'suger': 1}}, "c.icing has no 'suger'. Did you mean 'sugar'?"),
    ({'icing': {'sugar': 0}}, 'c.icing.sugar is 0.0; a number in'),
    ({'icing': {'drops': 2}}, 'c.icing.drops is 2, which has no effect with'),
  )
  def test_mistakes(self, said, message):
    with pytest.raises(ValueError) as e:
      fields.read(Cake, 'c', said)
    self.assertIn(message, str(e.value))


class FieldsTest(parameterized.TestCase):
  def test_read(self):
    found = fields.read(Bread, 'c', {'flour': 'rye', 'oven': 'wood'})
    self.assertEqual(found, Bread(flour='rye', oven=Oven(name='wood')))
    found = fields.read(Bread, 'c', {'flour': 'rye', 'oven_heat': 180})
    self.assertEqual(found.oven, Oven(heat=180.0))
    self.assertIsInstance(found.oven.heat, float)

  def test_written_is_read_again(self):
    oven = Oven(name='wood', heat=180.0, fan=True)
    bread = Bread(flour='rye', loaves=2, oven=oven)
    written = fields.written(bread)
    self.assertEqual(
      written,
      {
        'flour': 'rye',
        'loaves': 2,
        'oven': 'wood',
        'oven_heat': 180.0,
        'oven_fan': True,
      },
    )
    self.assertEqual(fields.read(Bread, 'c', written), bread)

  def test_defaults(self):
    self.assertEqual(
      fields.defaults_of(Bread),
      {
        'flour': dataclasses.MISSING,
        'loaves': 1,
        'oven': 'gas',
        'oven_heat': 200.0,
        'oven_fan': False,
      },
    )

  def test_two_records_cannot_share_a_key(self):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Kitchen:
      left: Oven = fields.record(Oven)
      right: Oven = fields.record(Oven, name='other')

    with pytest.raises(AssertionError, match='heat'):
      fields.defaults_of(Kitchen)
    with pytest.raises(AssertionError, match='Oven has only'):
      fields.record(Oven, colour='oven_colour')

  @parameterized.named_parameters(
    ('key', {'flour': 'rye', 'loavs': 2}, "c has no 'loavs'. Did you mean 'lo"),
    (
      'name_of_a_record_s_field',
      {'flour': 'rye', 'heat': 2.0},
      "c has no 'heat'. Did you mean 'oven_heat'? It has flour, loaves, oven, oven_fan, oven_heat.",
    ),
    ('missing', {'loaves': 2}, "c needs a 'flour'."),
    (
      'type',
      {'flour': 'rye', 'oven_heat': 'hot'},
      "c.oven_heat is 'hot', of type str; float, such as 200.0, is expected.",
    ),
    ('float_for_int', {'flour': 'rye', 'loaves': 1.5}, 'c.loaves is 1.5'),
    (
      'bound',
      {'flour': 'rye', 'oven_heat': 0},
      'c.oven_heat is 0.0; a number in (0, 300] is expected.',
    ),
    (
      'nan',
      {'flour': 'rye', 'oven_heat': float('nan')},
      'c.oven_heat is nan; a number in (0, 300] is expected.',
    ),
    ('no_dict', 'rye', "c is 'rye'; a dict of options is expected."),
    (
      'without_effect',
      {'flour': 'rye', 'oven_fan': True},
      'c.oven_fan is True, which has no effect without oven=wood. Leave it at'
      ' False, or add what it needs.',
    ),
    (
      'record_without_effect',
      {'flour': 'rye', 'loaves': 0, 'oven': 'wood'},
      "c.oven is 'wood', which has no effect without loaves. Leave it at 'gas',",
    ),
  )
  def test_mistakes(self, values, message):
    with pytest.raises(ValueError) as e:
      fields.read(Bread, 'c', values)
    self.assertIn(message, str(e.value))

  def test_bounds(self):
    for value, within in ((0, '[0, 1)'), (1, '(0, 1]'), ((0, 1), '[0, 1]')):
      self.assertEqual(fields.number('x', value, value, within), value)
    for value, within in ((1, '[0, 1)'), (0, '(0, 1]'), ((0, 2), '[0, 1]')):
      with pytest.raises(ValueError, match=r'x is .* a number in .0, 1'):
        fields.number('x', value, value, within)

  def test_check_unread(self):
    rye = Bread(flour='rye', oven=Oven(heat=180.0))
    fields.check_unread('c', rye, ['loaves', 'oven'], 'yeast')
    message = 'c.oven_heat is 180.0, .* without yeast. Leave it at 200.0'
    with pytest.raises(ValueError, match=message):
      fields.check_unread('c', rye, ['loaves', 'oven_heat'], 'yeast')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shop:
  name: str = 'corner'
  more: dict = fields.rest()


class RestTest(parameterized.TestCase):
  def test_what_has_no_field_is_kept_as_it_is(self):
    said = {'name': 'mill', 'path': '/x', 'size': (4, 4)}
    made = fields.read(Shop, 'config.shop', said)
    self.assertEqual(
      made, Shop(name='mill', more={'path': '/x', 'size': (4, 4)})
    )
    self.assertEqual(fields.written(made), said)
    self.assertEqual(fields.defaults_of(Shop), {'name': 'corner'})
    self.assertEqual(fields.read(Shop, 'config.shop', {}).more, {})
    with self.assertRaisesRegex(ValueError, 'config.shop.name is 3'):
      fields.read(Shop, 'config.shop', {'name': 3, 'path': 1})
