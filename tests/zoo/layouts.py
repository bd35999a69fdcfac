"""Networks whose weights lie as those of known checkpoints do, without their code.

apply, params, x = gemma()          # apply(params, x) -> array
"""

from flax import linen
import frameworks
import jax
from jax import lax
import jax.numpy as jnp

TOKENS, IMAGES = frameworks.TOKENS, frameworks.IMAGES


def weights(shapes, seed=0):
  """{path: array} as nested dicts."""
  tree = {}
  for i, (path, shape) in enumerate(shapes.items()):
    *above, name = path.split('/')
    node = tree
    for key in above:
      node = node.setdefault(key, {})
    key = jax.random.fold_in(jax.random.key(seed), i)
    node[name] = 0.3 * jax.random.normal(key, shape)
  return tree


def normed(x, scale=1.0, shift=0.0):
  x = x - x.mean(-1, keepdims=True)
  return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale + shift


def attended(q, k, v):
  """[batch, time, heads, size] each."""
  logits = jnp.einsum('bqnh,bknh->bnqk', q, k) / q.shape[-1] ** 0.5
  return jnp.einsum('bnqk,bknh->bqnh', jax.nn.softmax(logits), v)


# --------------------------------------------------------- Hugging Face's Flax


def bert():
  """Dense kernels [in, out], three embeddings that add up, a tied head."""
  dense = {
    f'encoder/layer/{i}/{name}/{leaf}': shape
    for i in range(2)
    for name, n_in, n_out in (
      ('attention/self/query', 16, 16),
      ('attention/self/key', 16, 16),
      ('attention/self/value', 16, 16),
      ('attention/output/dense', 16, 16),
      ('intermediate/dense', 16, 32),
      ('output/dense', 32, 16),
    )
    for leaf, shape in (('kernel', (n_in, n_out)), ('bias', (n_out,)))
  }
  norms = {
    f'{name}/LayerNorm/{leaf}': (16,)
    for name in (
      'embeddings',
      *(f'encoder/layer/{i}/attention/output' for i in range(2)),
      *(f'encoder/layer/{i}/output' for i in range(2)),
    )
    for leaf in ('scale', 'bias')
  }
  tables = {
    'embeddings/word_embeddings/embedding': (24, 16),
    'embeddings/position_embeddings/embedding': (12, 16),
    'embeddings/token_type_embeddings/embedding': (2, 16),
    'cls/predictions/bias': (24,),
  }

  def layer_norm(p, x):
    return normed(x, p['LayerNorm']['scale'], p['LayerNorm']['bias'])

  def linear(p, x):
    return x @ p['kernel'] + p['bias']

  def layer(p, x):
    parts = [p['attention']['self'][name] for name in ('query', 'key', 'value')]
    q, k, v = (linear(p, x).reshape(*x.shape[:2], 4, 4) for p in parts)
    h = attended(q, k, v).reshape(x.shape)
    output = p['attention']['output']
    x = layer_norm(output, x + linear(output['dense'], h))
    h = jax.nn.gelu(linear(p['intermediate']['dense'], x))
    return layer_norm(p['output'], x + linear(p['output']['dense'], h))

  def apply(p, tokens):
    tables = p['embeddings']
    word, place, kind = (
      tables[f'{name}_embeddings']['embedding']
      for name in ('word', 'position', 'token_type')
    )
    x = word[tokens] + place[jnp.arange(8)][None]
    x = layer_norm(tables, x + kind[jnp.zeros_like(tokens)])
    for i in range(2):
      x = layer(p['encoder']['layer'][str(i)], x)
    return x @ word.T + p['cls']['predictions']['bias']

  return apply, weights(dense | norms | tables), TOKENS


def gpt2():
  """Conv1D: kernels [out, in], and query, key and value in one."""
  shapes = {'wte/embedding': (24, 16), 'wpe/embedding': (12, 16)}
  for i in range(2):
    for name, n_in, n_out in (
      ('attn/c_attn', 16, 48),
      ('attn/c_proj', 16, 16),
      ('mlp/c_fc', 16, 32),
      ('mlp/c_proj', 32, 16),
    ):
      shapes[f'h/{i}/{name}/kernel'] = (n_out, n_in)
      shapes[f'h/{i}/{name}/bias'] = (n_out,)

  def conv1d(p, x):
    return x @ p['kernel'].transpose() + p['bias']

  def block(p, x):
    h = conv1d(p['attn']['c_attn'], normed(x))
    q, k, v = (x.reshape(*x.shape[:2], 4, 4) for x in jnp.split(h, 3, axis=-1))
    x = x + conv1d(p['attn']['c_proj'], attended(q, k, v).reshape(x.shape))
    h = jax.nn.gelu(conv1d(p['mlp']['c_fc'], normed(x)))
    return x + conv1d(p['mlp']['c_proj'], h)

  def apply(p, tokens):
    x = p['wte']['embedding'][tokens] + p['wpe']['embedding'][None, :8]
    for i in range(2):
      x = block(p['h'][str(i)], x)
    return normed(x) @ p['wte']['embedding'].T

  return apply, weights(shapes), TOKENS


# ----------------------------------------------------------------------- Gemma


def gemma():
  """Einsums over heads; norms that add one to their scale; a tied, scaled table.

  q N D H, kv 2 K D H, out N H D, gating 2 F D, linear F D.
  """
  shapes = {'embedder/input_embedding': (24, 16), 'final_norm/scale': (16,)}
  for i in range(2):
    shapes |= {
      f'layer_{i}/attn/q_einsum/w': (4, 16, 8),
      f'layer_{i}/attn/kv_einsum/w': (2, 2, 16, 8),
      f'layer_{i}/attn/attn_vec_einsum/w': (4, 8, 16),
      f'layer_{i}/mlp/gating_einsum': (2, 32, 16),
      f'layer_{i}/mlp/linear': (32, 16),
      f'layer_{i}/pre_attention_norm/scale': (16,),
      f'layer_{i}/pre_ffw_norm/scale': (16,),
    }

  def norm(p, x):
    x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x * (1 + p['scale'][None, None])

  def layer(p, x):
    h = norm(p['pre_attention_norm'], x)
    q = jnp.einsum('btd,ndh->btnh', h, p['attn']['q_einsum']['w'])
    k, v = jnp.einsum('bsd,ckdh->cbskh', h, p['attn']['kv_einsum']['w'])
    h = attended(q, *(jnp.repeat(x, 2, axis=2) for x in (k, v)))
    x = x + jnp.einsum('btnh,nhd->btd', h, p['attn']['attn_vec_einsum']['w'])
    h = norm(p['pre_ffw_norm'], x)
    gate, up = jnp.einsum('btd,cfd->cbtf', h, p['mlp']['gating_einsum'])
    return x + jnp.einsum(
      'btf,fd->btd', jax.nn.gelu(gate) * up, p['mlp']['linear']
    )

  def apply(p, tokens):
    table = p['embedder']['input_embedding']
    x = table[tokens] * 16**0.5
    for i in range(2):
      x = layer(p[f'layer_{i}'], x)
    return norm(p['final_norm'], x) @ table.T

  return apply, weights(shapes), TOKENS


def tunix():
  """Weights and norms are both called `w`; kernels, einsums, stacked experts."""
  shapes = {'embedder/input_embedding': (24, 16), 'final_norm/w': (16,)}
  shapes |= {'lm_head/w': (16, 24)}
  for i in range(2):
    shapes |= {
      f'layers/{i}/input_layernorm/w': (16,),
      f'layers/{i}/attn/q_proj/w': (16, 4, 4),
      f'layers/{i}/attn/k_proj/w': (16, 2, 4),
      f'layers/{i}/attn/v_proj/w': (16, 2, 4),
      f'layers/{i}/attn/o_proj/w': (4, 4, 16),
      f'layers/{i}/attn/q_norm/w': (4,),
      f'layers/{i}/mlp/router/kernel': (16, 3),
      f'layers/{i}/mlp/gate_proj': (3, 16, 32),
      f'layers/{i}/mlp/down_proj': (3, 32, 16),
    }

  def norm(p, x):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p['w']

  def layer(p, x):
    h = norm(p['input_layernorm'], x)
    q, k, v = (
      jnp.einsum('btd,dnh->btnh', h, p['attn'][f'{name}_proj']['w'])
      for name in 'qkv'
    )
    k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
    h = attended(norm(p['attn']['q_norm'], q), k, v)
    x = x + jnp.einsum('btnh,nhd->btd', h, p['attn']['o_proj']['w'])
    mlp = p['mlp']
    share = jax.nn.softmax(x @ mlp['router']['kernel'])
    h = jnp.einsum('btd,edf->ebtf', x, mlp['gate_proj'])
    h = jnp.einsum('ebtf,efd->ebtd', jax.nn.silu(h), mlp['down_proj'])
    return x + jnp.einsum('ebtd,bte->btd', h, share)

  def apply(p, tokens):
    x = p['embedder']['input_embedding'][tokens]
    for i in range(2):
      x = layer(p['layers'][str(i)], x)
    return norm(p['final_norm'], x) @ p['lm_head']['w']

  return apply, weights(shapes), TOKENS


# ------------------------------------------------- weights that are computed


class StandardConv(linen.Module):
  """Big Transfer's convolution: kernels of mean 0 and variance 1 for each output."""

  features: int

  @linen.compact
  def __call__(self, x):
    shape = 3, 3, x.shape[-1], self.features
    w = self.param('kernel', linen.initializers.normal(), shape)
    w = w - w.mean((0, 1, 2))
    w = w / jnp.sqrt(w.var((0, 1, 2)) + 1e-5)
    numbers = 'NHWC', 'HWIO', 'NHWC'
    return lax.conv_general_dilated(
      x, w, (1, 1), 'SAME', dimension_numbers=numbers
    )


class BitNet(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = StandardConv(16)(x)
    for _ in range(2):
      h = linen.relu(linen.GroupNorm(num_groups=4)(x))
      x = x + StandardConv(16)(h)
    return linen.Dense(10)(x.mean((1, 2)))


def bit():
  model = BitNet()
  params = model.init(frameworks.KEY, IMAGES)['params']
  return lambda p, x: model.apply({'params': p}, x), params, IMAGES


def vocoder():
  """Weight norm, w = g v / |v|, in dilated and transposed convolutions over time."""
  shapes = {}
  for name, shape in (
    ('pre', (5, 4, 16)),
    ('up', (4, 16, 16)),
    ('residual', (3, 16, 16)),
    ('post', (5, 16, 1)),
  ):
    shapes |= {f'{name}/weight_v': shape, f'{name}/weight_g': shape[-1:]}
    shapes |= {f'{name}/bias': shape[-1:]}

  def conv(p, x, **how):
    v = p['weight_v']
    w = p['weight_g'] * v / jnp.sqrt((v * v).sum((0, 1)))
    up = how.pop('up', None)
    numbers = 'NWC', 'WIO', 'NWC'
    if up:
      y = lax.conv_transpose(x, w, (up,), 'SAME', dimension_numbers=numbers)
    else:
      y = lax.conv_general_dilated(
        x, w, (1,), 'SAME', dimension_numbers=numbers, **how
      )
    return y + p['bias']

  def apply(p, x):
    x = conv(p['pre'], x.reshape(x.shape[0], -1, 4))
    x = conv(p['up'], jax.nn.leaky_relu(x, 0.1), up=2)
    h = conv(p['residual'], jax.nn.leaky_relu(x, 0.1), rhs_dilation=(3,))
    return jnp.tanh(conv(p['post'], jax.nn.leaky_relu(x + h)))

  return apply, weights(shapes), IMAGES
