"""A BERT from files with the usual names, against its equations in float64."""

import json
import pathlib
import tempfile

from absl.testing import absltest
import jax
import numpy as np
from safetensors import numpy as safetensors
from scipy import special

from launch.bench import bert

CONFIG = dict(
  model_type='bert',
  hidden_act='gelu',
  num_hidden_layers=2,
  num_attention_heads=2,
  layer_norm_eps=1e-12,
)
WIDTH, HIDDEN = 8, 12


def weights():
  rng = np.random.default_rng(0)
  sizes = {
    'embeddings.word_embeddings.weight': (11, WIDTH),
    'embeddings.position_embeddings.weight': (6, WIDTH),
    'embeddings.token_type_embeddings.weight': (2, WIDTH),
  }
  linear = {
    f'attention.{n}': (WIDTH, WIDTH)
    for n in ('self.query', 'self.key', 'self.value', 'output.dense')
  }
  linear |= {
    'intermediate.dense': (HIDDEN, WIDTH),
    'output.dense': (WIDTH, HIDDEN),
  }
  norms = ['embeddings.LayerNorm']
  for i in range(2):
    at = f'encoder.layer.{i}.'
    for name, shape in linear.items():
      sizes |= {f'{at}{name}.weight': shape, f'{at}{name}.bias': shape[:1]}
    norms += [f'{at}attention.output.LayerNorm', f'{at}output.LayerNorm']
  for name in norms:
    sizes |= {f'{name}.weight': (WIDTH,), f'{name}.bias': (WIDTH,)}
  return {n: rng.normal(size=s).astype(np.float32) for n, s in sizes.items()}


def oracle(w, tokens):
  """The embedding of one sentence [time]."""
  w = {name: np.asarray(x, np.float64) for name, x in w.items()}
  linear = lambda name, x: x @ w[f'{name}.weight'].T + w[f'{name}.bias']

  def norm(name, x):
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * w[f'{name}.weight'] + w[f'{name}.bias']

  word, position, kind = (
    w[f'embeddings.{n}_embeddings.weight']
    for n in ('word', 'position', 'token_type')
  )
  x = word[tokens] + position[: len(tokens)] + kind[0]
  x = norm('embeddings.LayerNorm', x)
  for i in range(2):
    at = f'encoder.layer.{i}.'
    heads = [
      np.split(linear(f'{at}attention.self.{n}', x), 2, -1)
      for n in ('query', 'key', 'value')
    ]
    y = [
      special.softmax(q @ k.T / np.sqrt(WIDTH / 2), -1) @ v
      for q, k, v in zip(*heads, strict=True)
    ]
    y = linear(f'{at}attention.output.dense', np.concatenate(y, -1))
    x = norm(f'{at}attention.output.LayerNorm', x + y)
    y = linear(f'{at}intermediate.dense', x)
    y = y * special.ndtr(y)  # the exact gelu
    x = norm(f'{at}output.LayerNorm', x + linear(f'{at}output.dense', y))
  y = x.mean(0)
  return y / np.linalg.norm(y)


class BertTest(absltest.TestCase):
  def folder(self, **config):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'config.json').write_text(json.dumps(CONFIG | config))
    safetensors.save_file(weights(), folder / 'model.safetensors')
    return folder

  def test_the_equations_and_padding(self):
    apply, params = bert.load(self.folder())
    tokens = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    got, _ = jax.jit(apply)(params, tokens, mask)
    for y, row, seen in zip(got, tokens, mask, strict=True):
      want = oracle(weights(), row[seen])
      np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)

  def test_another_kind_of_model(self):
    with self.assertRaisesRegex(ValueError, "'model_type': 'roberta'"):
      bert.load(self.folder(model_type='roberta'))


if __name__ == '__main__':
  absltest.main()
