"""The benchmark of real models, on one that is made up."""

import contextlib
import io

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import native
from launch.bench.kernels import bars as bars_lib
from launch.bench.kernels import turns
from launch.bench.real import magika
from launch.bench.real import measure
from launch.bench.real import minilm
from launch.bench.real import ocr
from launch.bench.real import silero


class _Runtime:
  """Another runtime that computes `y(x)`."""

  path = ''

  def __init__(self, y):
    self._y = y

  def load(self, file, inputs):
    pass

  drop = lambda self, file: None

  def results(self, file, inputs, carry):
    return self._y(inputs['x'])

  def contestant(self, file, spent):
    def turn(calls):
      spent.append(1e-9)
      return 1e-9  # nobody is faster

    return turns.Contestant(turn, 1)


def _model():
  w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
  x = np.random.default_rng(1).standard_normal((3, 8, 64)).astype(np.float32)
  original = measure.File('original', 'onnxruntime', '', measure.FLOAT)
  rounded = measure.File('rounded', 'onnxruntime', '', measure.INT8)

  def judge(found, want):
    unit = [
      a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (found, want)
    ]
    return minilm.cosine(*unit)

  return measure.Model(
    name='product',
    apply=lambda params, x: (x @ params['kernel'],),
    params={'kernel': w},
    inputs=('x',),
    carry={},
    where='.*kernel',
    cells={'8': (x[0],)},
    judged=(x,),
    judge=judge,
    files=lambda cell: [original, rounded],
    judged_cell='8',
    bars={'cosine': 0.99},
  )


def _printed(f, *args, **how):
  with contextlib.redirect_stdout(io.StringIO()) as out:
    found = f(*args, **how)
  return found, out.getvalue()


class BarsTest(absltest.TestCase):
  def test_no_number_is_not_met(self):
    bars = bars_lib.Bars()
    bars.add('measured', 2.0, 1.0)
    bars.add('not run', float('nan'), 1.0)
    bars.add('no rival', 1.0, float('nan'))
    _, out = _printed(bars.show)
    self.assertIn('1 met, 2 missed', out)
    self.assertEqual(out.count('NOT MEASURED'), 2)


class RealTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    if not native.available():
      self.skipTest('the kernels were not built')

  def test_everybody_is_compared_with_float(self):
    model, bars = _model(), bars_lib.Bars()
    forms = {measure.XLA: measure.ours(model, None)}
    forms |= {f.name: measure.ours(model, f) for f in model.forms[:1]}
    exact = _Runtime(lambda x: x @ model.params['kernel'])
    _, out = _printed(measure.accuracy, model, forms, [exact], bars)
    self.assertIn('float against original', out)
    self.assertIn('rounded                             cosine 1.00000', out)
    _, out = _printed(bars.show)
    self.assertIn('1 met, 0 missed', out)

  def test_texts_are_as_far_as_letters_must_be_changed(self):
    self.assertEqual(ocr.spelled(np.array([0, 5, 5, 0, 5, 3])), [5, 5, 3])
    self.assertEqual(ocr.distance([1, 2, 3], [2, 3, 4]), 2)
    self.assertEqual(ocr.distance([], [1, 2]), 2)
    a, b = np.eye(4)[[[1, 2, 0, 3]]], np.eye(4)[[[1, 2, 2, 2]]]
    found = ocr.read(b, a)
    self.assertEqual(found['argmax'], 0.5)
    self.assertAlmostEqual(found['text'], 2 / 3)

  def test_sounds_and_files_are_what_networks_are_given(self):
    x = silero.chunks(2, 3)
    self.assertEqual(x.shape, (3, 2, 576))
    np.testing.assert_array_equal(x[0, :, 512:], x[1, :, :64])
    found = magika.codes(b'  ab ')
    self.assertEqual(found[:3].tolist(), [97, 98, 32])
    self.assertEqual(found[-4:].tolist(), [32, 32, 97, 98])

  def test_floats_that_disagree_are_an_error(self):
    model = _model()
    forms = {measure.XLA: measure.ours(model, None)}
    other = _Runtime(lambda x: x @ model.params['kernel'] + 1)
    with self.assertRaisesRegex(RuntimeError, 'not what original computes'):
      _printed(measure.accuracy, model, forms, [other], bars_lib.Bars())

  def test_a_row_for_each_contestant_and_a_bar_for_each_kind(self):
    model, bars = _model(), bars_lib.Bars()
    forms = {measure.XLA: measure.ours(model, None)}
    forms |= {f.name: measure.ours(model, f) for f in model.forms[:1]}
    how = dict(rounds=2, budget=1e-4)
    args = model, '8', forms, [''], [_Runtime(None)]
    rows, _ = _printed(measure.timed, *args, **how)
    names = [measure.XLA, 'int8', 'original', 'rounded']
    self.assertEqual([row.name for row in rows], names)
    _, out = _printed(measure.show, model, '8', rows, bars)
    self.assertIn('x rounded', out)
    _, out = _printed(bars.show)
    self.assertIn('0 met, 2 missed', out)

  def test_four_bits_where_they_hold(self):
    # A row of each group is so large that the others have no steps of four bits left,
    # and meets nothing.
    a = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    a[::32] *= 8
    x = np.random.default_rng(1).standard_normal((3, 8, 64)).astype(np.float32)
    x[..., ::32] = 0
    model = _model()
    model = model._replace(
      apply=lambda params, x: (
        jnp.tanh(x @ params['a']['kernel'] / 8) @ params['b']['kernel'],
      ),
      params={'a': {'kernel': a}, 'b': model.params},
      cells={'8': (x[0],)},
      judged=(x[:1],),
      seen=(x[1],),
    )
    (form,) = [f for f in model.forms if f.mixed]
    params, out = _printed(measure.ours, model, form)
    self.assertIn('int8', params['a']['kernel'].describe())
    self.assertIn('int4', params['b']['kernel'].describe())
    self.assertRegex(out, r'int4 by sensitivity: [\d,]+ bytes of 24,576')
    got, want = (
      measure.results(model, p) for p in (params, measure.ours(model, None))
    )
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    self.assertLess(error, 0.25)

  def test_who_has_collapsed_is_printed_and_compared_with_nobody(self):
    model, bars = _model(), bars_lib.Bars()
    forms = {measure.XLA: measure.ours(model, None)}
    forms |= {f.name: measure.ours(model, f) for f in model.forms[:1]}
    exact = lambda x: x @ model.params['kernel']
    # The first file is the original, the second another network.
    found = iter([exact, lambda x: jnp.roll(exact(x), 1, -1)])
    other = _Runtime(lambda x: next(found)(x))
    lost, out = _printed(measure.accuracy, model, forms, [other], bars)
    self.assertEqual(lost, {'rounded'})
    self.assertRegex(out, r'rounded +cosine .*  collapsed, not counted')
    args = model, '8', forms, [''], [_Runtime(None)]
    rows, _ = _printed(measure.timed, *args, rounds=2, budget=1e-4)
    _, out = _printed(measure.show, model, '8', rows, bars, lost)
    self.assertRegex(out, r'rounded .* collapsed, not counted')
    self.assertNotIn('x rounded', out)
    _, out = _printed(bars.show)
    # No int8 rival is left, and the original is faster.
    self.assertRegex(out, r'int8 over int8 .*NOT MEASURED')
    self.assertIn('1 met, 2 missed', out)
    # So it is with ours.
    bars = bars_lib.Bars()
    _, out = _printed(measure.show, model, '8', rows, bars, {'int8'})
    self.assertRegex(out, r'int8 .* collapsed, not counted')
    _, out = _printed(bars.show)
    self.assertEqual(out.count('NOT MEASURED'), 2)


if __name__ == '__main__':
  absltest.main()
