"""A directory that runs wherever jax runs: a program, its weights, a manifest.

    program.stablehlo      jax.export, serialised; takes (weights, *inputs)
    weights.safetensors    packed integers, scales and floats, as `jc.save` stores them
    manifest.json          versions, signature, leaves, sha256 of both files and of itself

The weights are inputs and not constants: they are read as they are stored, and XLA on
CPU would fold int8 constants back to float32. Loading the directory needs jax, numpy
and safetensors, and none of this library's leaf types:

    program = jax.export.deserialize(open('program.stablehlo', 'rb').read())
    y = program.call(safetensors.numpy.load_file('weights.safetensors'), x)
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
import shutil
from typing import Any

import jax
from jax import export
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import rules
from jaxopt_compress.disk import sealed
from jaxopt_compress.export import layout
from jaxopt_compress.export import program as program_lib
from jaxopt_compress.export import trees
from jaxopt_compress.export import weights as weights_lib

load = program_lib.load


def save(
  directory: str | os.PathLike,
  fun: Callable[..., Any],
  params: Any,
  *example_args: Any,
  polymorphic: bool = True,
  platforms: Sequence[str] | None = None,
  facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes `fun(params, *example_args)` as a directory.

  Everything is written beside `directory` and then takes its place, so a failure
  leaves an earlier export untouched.

  Args:
    directory: made if missing; replaced if it holds an export.
    fun: the function to export, lifted if `params` hold compressed leaves. Arrays
      that it closes over become constants of the program.
    params: any pytree of arrays. Training leaves are frozen, and those packed for the
      kernels of one machine exported in their portable form. What `jc.sparsify`
      returned stays without its zeros, on disk and in the program, which puts them
      back in every call.
    *example_args: arrays or `ShapeDtypeStruct`s in dicts, lists and tuples.
    polymorphic: whether the leading axis of the inputs may have any length, the same
      for all of them; the program must not depend on it. Shapes of its outputs are
      compared on the examples; values are not.
    platforms: such as ('cpu', 'cuda', 'tpu'); by default the current one.
    facts: further entries of the manifest, as JSON.

  Returns:
    The manifest.
  """
  directory = layout.target(directory)
  params, fun = _without_constants(_portable(params), _checked(fun))
  weights, rebuild = weights_lib.flatten(params)
  inputs = _specs(example_args, polymorphic)
  program = _over_weights(fun, rebuild)
  try:
    exported = _export(program, weights, inputs, platforms)
    if polymorphic:
      examples = _specs(example_args, False)
      _check_examples(exported, program, weights, examples)
  except Exception as e:
    if polymorphic and _is_export(
      program, weights, _specs(example_args, False), platforms
    ):
      raise ValueError(
        'The program depends on how long the leading axis of its inputs is. Export'
        f' it for the length of the examples: polymorphic=False. {e}'
      ) from e
    raise
  new = directory.with_name(f'.{directory.name}.new')
  shutil.rmtree(new, ignore_errors=True)
  new.mkdir(parents=True)
  try:
    (new / layout.PROGRAM).write_bytes(_serialized(exported))
    trees.write(new / layout.WEIGHTS, params, {}, shared=False)
    manifest = _manifest(exported, params, weights, inputs, new, facts)
    sealed.write(new / layout.MANIFEST, manifest)
    _check_written(new, weights)
    layout.sync(new)
    layout.install(new, directory)
  finally:
    shutil.rmtree(new, ignore_errors=True)
  return manifest


def _checked(fun):
  """`fun`, unless it is a model, after which inputs would be taken for weights."""
  partial = isinstance(fun, jax.tree_util.Partial)
  if not partial and any(map(_is_weight, jax.tree.leaves(fun))):
    raise ValueError(
      f'fun is a {type(fun).__name__} that holds arrays; what follows it would be'
      ' taken for its weights. Say'
      ' jc.export.save(path, jc.lift(lambda m, x: m(x)), model, x).'
    )
  return fun


def _portable(params):
  # Frozen first: a mask would be stored beside the weights that it hides.
  frozen = compression.freeze(params)
  return array.map_leaves(lambda leaf: leaf.portable(), frozen)


def _without_constants(params, fun):
  """The arrays of numbers by their paths, and `fun` of them.

  What else is a leaf stays in the program: functions and flags, as modules of Equinox
  hold them, and keys of random numbers, as those of Flax NNX.
  """
  named = [(p, x) for p, x in rules.named_leaves(params) if _is_weight(x)]
  paths = [path for path, _ in named]
  _, refill = array.arrays_apart(params, _is_weight, array.is_compressed)
  if len(paths) == len(rules.named_leaves(params)):
    return params, fun

  def of_arrays(arrays, *inputs):
    return fun(refill([arrays[path] for path in paths]), *inputs)

  return dict(named), of_arrays


def _is_weight(x) -> bool:
  return hasattr(x, 'dtype') and not jax.dtypes.issubdtype(
    x.dtype, jax.dtypes.extended
  )


def _over_weights(fun, rebuild):
  """`fun` over a flat dict of plain arrays: leaves are rebuilt inside."""

  def program(weights, *inputs):
    params = rebuild(weights)
    # A TypeError here is most likely jax meeting a leaf that is no array.
    try:
      return fun(params, *inputs)
    except TypeError as e:
      leaves = jax.tree.leaves(params, is_leaf=array.is_compressed)
      if any(map(array.is_compressed, leaves)):
        e.add_note('Parameters hold compressed leaves: export jc.lift(fun).')
      raise

  return program


def _specs(args, polymorphic):
  """Abstract inputs, with a symbolic leading axis if `polymorphic`."""
  batch = export.symbolic_shape('batch') if polymorphic else ()
  lengths = {}

  def spec(path, x):
    x = x if hasattr(x, 'dtype') else jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      raise ValueError(
        f'Input {jax.tree_util.keystr(path)} is a PRNG key. Take its data, of'
        ' jax.random.key_data, and wrap it inside: jax.random.wrap_key_data.'
      )
    if x.shape:
      lengths[jax.tree_util.keystr(path)] = x.shape[0]
    # One symbol for all inputs: their leading axes have the same length.
    shape = (*batch, *x.shape[1:]) if x.shape and polymorphic else x.shape
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(x.dtype))

  specs = jax.tree_util.tree_map_with_path(spec, args)
  if polymorphic and len(set(lengths.values())) > 1:
    raise ValueError(
      f'Leading axes of the inputs have lengths {lengths}, and one length for all'
      ' of them is exported. Export those of the examples: polymorphic=False.'
    )
  return specs


def _export(program, weights, inputs, platforms):
  abstract = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()
  }
  if platforms is not None:
    platforms = list(platforms)
  try:
    return export.export(jax.jit(program), platforms=platforms)(
      abstract, *inputs
    )
  except ValueError as e:
    if 'custom calls' in str(e):
      e.add_note(
        'It calls kernels of this machine: fun closes over packed leaves. Pass them'
        ' as params, or close over jc.unpack of them.'
      )
    raise


def _check_examples(exported, program, weights, examples):
  """Raises unless outputs have the shapes that `program` gives on examples."""
  # As 'batch' is traced, `n == 8` is False: a branch for 8 would be left out.
  kept, right = (
    [(x.shape, x.dtype) for x in jax.tree.leaves(out)]
    for out in (
      jax.eval_shape(f, weights, *examples) for f in (exported.call, program)
    )
  )
  if kept != right:
    raise ValueError(
      f'Outputs would be {kept}, and on the examples are {right}.'
    )


def _is_export(*args) -> bool:
  """Whether `_export` takes the arguments."""
  try:
    _export(*args)
  except Exception:
    return False
  return True


def _serialized(exported) -> bytes:
  try:
    return bytes(exported.serialize())
  except ImportError as e:
    raise ImportError(
      'jax.export needs flatbuffers. Install it with'
      " `pip install 'jaxopt_compress[examples]'`."
    ) from e


def _manifest(exported, params, weights, inputs, folder, facts):
  out_avals = exported.out_tree.unflatten(exported.out_avals)
  return {
    'format': layout.FORMAT,
    'jax': jax.__version__,
    'calling_convention': exported.calling_convention_version,
    'platforms': list(exported.platforms),
    'signature': {
      'call': 'program.call(weights, *inputs)',
      'inputs': _signature(inputs, 'input'),
      'outputs': _signature(out_avals, 'output'),
    },
    'weights': {
      name: {'shape': list(x.shape), 'dtype': str(x.dtype)}
      for name, x in weights.items()
    },
    'leaves': weights_lib.describe(params),
    'files': {
      name: {
        'sha256': sealed.sha256(folder / name),
        'bytes': (folder / name).stat().st_size,
      }
      for name in layout.FILES
    },
    'facts': dict(facts or {}),
  }


def _signature(tree, what):
  return [
    {
      'name': path or what,
      'shape': [n if isinstance(n, int) else str(n) for n in x.shape],
      'dtype': str(x.dtype),
    }
    for path, x in rules.named_leaves(tree)
  ]


def _check_written(folder, weights):
  """Reads the weights back: a corrupt export is found here, not in use."""
  dtypes = {name: str(x.dtype) for name, x in weights.items()}
  for name, x in weights_lib.load(folder / layout.WEIGHTS, dtypes).items():
    same = (
      x.shape == weights[name].shape and x.tobytes() == weights[name].tobytes()
    )
    assert same, f'{name} was not written as it is'
