"""A BERT of anybody's files, as a plain function of its parameters.

    x = norm(word + position + kind)
    x = norm(x + attention(x));  x = norm(x + mlp(x))         layer after layer
    y = mean over tokens of x, brought to length 1            the sentence's embedding

Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3; the mean: Reimers and
Gurevych 2019, https://arxiv.org/abs/1908.10084, section 3. A folder holds config.json,
model.safetensors and tokenizer.json, as those of Hugging Face do.
"""

from collections.abc import Callable
from collections.abc import Sequence
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]

# Of the last layer, what meets in its attention, by their names in `out`.
MET = ('query', 'key', 'value')

# Our names for the linear maps of a layer, and the files'.
_LINEAR = {
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'out': 'attention.output.dense',
  'up': 'intermediate.dense',
  'down': 'output.dense',
}
_NORM = {
  'attention_norm': 'attention.output.LayerNorm',
  'mlp_norm': 'output.LayerNorm',
}


def load(folder: pathlib.Path) -> tuple[Callable[..., Any], Params]:
  """(apply, params) of the model in a folder.

  Returns:
    apply: `(params, tokens, mask) -> (embedding, out)`: tokens [batch, time] int and
      their mask to [batch, width], each of length 1, and intermediates: 'layer0', ...
      [batch, time, width], and queries, keys and values of the last layer.
    params: a dict, kernels [in, out].

  Raises:
    ValueError: another kind of model.
  """
  from safetensors import numpy as safetensors

  config = json.loads((folder / 'config.json').read_text())
  wanted = {'model_type': 'bert', 'hidden_act': 'gelu'}
  found = {name: config.get(name) for name in wanted}
  if found != wanted:
    raise ValueError(
      f'{folder} holds {found}; {wanted} is what is written here.'
    )
  weights = safetensors.load_file(folder / 'model.safetensors')

  def linear(name):
    kernel = np.ascontiguousarray(weights[f'{name}.weight'].T)
    return {'kernel': kernel, 'bias': weights[f'{name}.bias']}

  def norm(name):
    return {'scale': weights[f'{name}.weight'], 'bias': weights[f'{name}.bias']}

  layers = {}
  for i in range(config['num_hidden_layers']):
    at = f'encoder.layer.{i}.'
    layers[str(i)] = {ours: linear(at + name) for ours, name in _LINEAR.items()}
    layers[str(i)] |= {ours: norm(at + name) for ours, name in _NORM.items()}
  tables = {
    name: {'embedding': weights[f'embeddings.{name}_embeddings.weight']}
    for name in ('word', 'position', 'token_type')
  }
  params = tables | {'norm': norm('embeddings.LayerNorm'), 'layers': layers}
  heads, eps = config['num_attention_heads'], config['layer_norm_eps']

  def apply(params, tokens, mask):
    return _apply(params, tokens, mask, heads, eps)

  return apply, jax.tree.map(jnp.asarray, params)


def tokenizer(
  folder: pathlib.Path, length: int
) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
  """`sentences -> (tokens [n, length] int32, mask [n, length] bool)`.

  Raises:
    ValueError: the package `tokenizers` is missing.
  """
  try:
    import tokenizers
  except ImportError as e:
    raise ValueError(
      'Text is cut into tokens by a package: pip install tokenizers.'
    ) from e
  words = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  words.enable_truncation(length)
  words.enable_padding(length=length)

  def tokens_and_mask(sentences):
    found = words.encode_batch(list(sentences))
    mask = np.array([x.attention_mask for x in found], bool)
    return np.array([x.ids for x in found], np.int32), mask

  return tokens_and_mask


def _apply(params, tokens, mask, heads, eps):
  time = tokens.shape[-1]
  x = params['word']['embedding'][tokens]
  x = x + params['position']['embedding'][:time][None]
  x = x + params['token_type']['embedding'][0][None, None]
  x, out = _norm(params['norm'], x, eps), {}
  for i in range(len(params['layers'])):
    p = params['layers'][str(i)]
    q, k, v = (_linear(p[name], x) for name in ('query', 'key', 'value'))
    y = _linear(p['out'], _attention(q, k, v, mask, heads))
    x = _norm(p['attention_norm'], x + y, eps)
    y = jax.nn.gelu(_linear(p['up'], x), approximate=False)
    x = _norm(p['mlp_norm'], x + _linear(p['down'], y), eps)
    out[f'layer{i}'] = x
  out |= dict(zip(MET, (q, k, v), strict=True))
  weights = mask.astype(x.dtype)[..., None]
  y = (weights * x).sum(-2) / weights.sum(-2)
  return y / jnp.linalg.norm(y, axis=-1, keepdims=True), out


def _attention(q, k, v, mask, heads):
  q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v))
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
  # Padding is no key. [batch, keys] -> [batch, heads, queries, keys].
  scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
  y = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), v)
  return y.reshape(*y.shape[:-2], -1)


def _linear(p, x):
  return x @ p['kernel'] + p['bias'][None, None]


def _norm(p, x, eps):
  x = x - x.mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + eps)
  return x * p['scale'][None, None] + p['bias'][None, None]
