"""Files for other runtimes, made once, in the interpreter that has them.

    /path/to/python launch/bench/real/makers.py WHAT {json of its arguments}

Prints what was made. WHAT is a function below.
"""

import functools
import importlib.util
import json
import pathlib
import sys

import numpy as np

# Not the folder of this file, where modules have names of packages.
sys.path[0] = str(pathlib.Path(__file__).parents[3])


def find(package: str) -> str:
  """The folder of an installed package; '' if there is none."""
  spec = importlib.util.find_spec(package)
  return spec.submodule_search_locations[0] if spec else ''


class _Graph:
  """An ONNX graph that is written node by node: `g('Add', x, y) -> name`."""

  def __init__(self):
    self.nodes, self.constants = [], {}

  def __call__(self, op, *inputs, domain='', outputs=1, **attributes):
    from onnx import helper

    names = [f'{op}_{len(self.nodes)}_{i}' for i in range(outputs)]
    inputs = [x if isinstance(x, str) else self.constant(x) for x in inputs]
    self.nodes.append(
      helper.make_node(
        op, inputs, names, name=names[0], domain=domain, **attributes
      )
    )
    return names[0] if outputs == 1 else names

  def constant(self, array):
    name = f'c{len(self.constants)}'
    self.constants[name] = np.asarray(array)
    return name

  def save(self, path, inputs, output, shape):
    import onnx
    from onnx import helper
    from onnx import numpy_helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
      self.nodes,
      'graph',
      [value(n, onnx.TensorProto.INT32, s) for n, s in inputs.items()],
      [value(output, onnx.TensorProto.FLOAT, shape)],
      [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
    )
    domains = [('', 17), ('com.microsoft', 1)]
    domains = [helper.make_opsetid(*d) for d in domains]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    onnx.save(model, path)


def bert_onnx(folder: str, path: str, fused: bool):
  """A BERT's sentence embedding with onnxruntime's own operators.

  Args:
    folder: of the model.
    path: of the file.
    fused: queries, keys and values in one operator `Attention`; else three
      products in front of `MultiHeadAttention`.
  """
  from launch.bench import bert

  p = bert.load(pathlib.Path(folder))[1]
  config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
  heads, eps = config['num_attention_heads'], config['layer_norm_eps']
  g, own = _Graph(), {'domain': 'com.microsoft'}

  def norm(at, x):
    return g(
      'LayerNormalization', x, at['scale'], at['bias'], axis=-1, epsilon=eps
    )

  def linear(at, x):
    return g('Add', g('MatMul', x, at['kernel']), at['bias'])

  def attention(at, x):
    parts = [at[name] for name in ('query', 'key', 'value')]
    bias = np.concatenate([x['bias'] for x in parts])
    if fused:
      kernel = np.concatenate([x['kernel'] for x in parts], 1)
      return g('Attention', x, kernel, bias, 'mask', num_heads=heads, **own)
    qkv = [g('MatMul', x, part['kernel']) for part in parts]
    return g('MultiHeadAttention', *qkv, bias, 'mask', num_heads=heads, **own)

  time = g('Shape', 'tokens', start=1, end=2)
  position = p['position']['embedding'] + p['token_type']['embedding'][0]
  position = g('Slice', position, np.int64([0]), time)
  x = g('Add', g('Gather', p['word']['embedding'], 'tokens'), position)
  x = norm(p['norm'], x)
  for i in range(len(p['layers'])):
    at = p['layers'][str(i)]
    x = norm(
      at['attention_norm'],
      g('Add', x, linear(at['out'], attention(at, x))),
    )
    y = g('Gelu', linear(at['up'], x), **own)
    x = norm(at['mlp_norm'], g('Add', x, linear(at['down'], y)))
  weights = g('Cast', g('Unsqueeze', 'mask', np.int64([-1])), to=1)
  total = g('ReduceSum', g('Mul', x, weights), np.int64([1]), keepdims=0)
  y = g('Div', total, g('ReduceSum', weights, np.int64([1]), keepdims=0))
  y = g('Div', y, g('ReduceL2', y, axes=[-1], keepdims=1))
  inputs = {name: ('batch', 'time') for name in ('tokens', 'mask')}
  g.save(path, inputs, y, ('batch', config['hidden_size']))


def onnx_dynamic(source: str, path: str):
  """Weights int8 by column; what meets them is rounded as it comes."""
  import onnx
  from onnxruntime import quantization as q

  q.quantize_dynamic(
    source,
    path,
    op_types_to_quantize=['MatMul', 'Attention', 'Gemm', 'LSTM', 'Conv'],
    per_channel=True,
    weight_type=q.QuantType.QInt8,
    # Of what comes out of its own operators it does not know the type.
    extra_options={'DefaultTensorType': onnx.TensorProto.FLOAT},
  )


def onnx_prepared(source: str, path: str, sizes: dict[str, int]):
  """The same graph with its constants folded, named sizes of inputs fixed."""
  import onnx
  from onnx import version_converter
  from onnxruntime import quantization as q
  from onnxruntime.tools import onnx_model_utils

  model = onnx.load(source)
  if model.opset_import[0].version < 13:  # which has no scales of channels
    model = version_converter.convert_version(model, 13)
  for name, size in sizes.items():
    onnx_model_utils.make_dim_param_fixed(model.graph, name, size)
  onnx.save(model, path)
  q.quant_pre_process(path, path, skip_symbolic_shape=True)


def onnx_static(source: str, path: str, calibration: str, every: bool):
  """Weights int8 by channel; what meets them uint8, of ranges that were seen.

  Args:
    source, path: files.
    calibration: a file of inputs, each with an axis of batches.
    every: all operators that can work on codes, not products alone.
  """
  from onnxruntime import quantization as q

  with np.load(calibration) as found:
    arrays = dict(found)

  class Reader(q.CalibrationDataReader):
    def __init__(self):
      count = len(next(iter(arrays.values())))
      chosen = np.unique(np.linspace(0, count - 1, 16).astype(int))
      self._left = [
        {n: np.asarray(a[i]) for n, a in arrays.items()} for i in chosen
      ]

    def get_next(self):
      return self._left.pop() if self._left else None

  q.quantize_static(
    source,
    path,
    Reader(),
    quant_format=q.QuantFormat.QDQ,
    per_channel=True,
    activation_type=q.QuantType.QUInt8,
    weight_type=q.QuantType.QInt8,
    op_types_to_quantize=None if every else ['Conv', 'MatMul', 'Gemm'],
    # Of scales by channel it would compare arrays as numbers.
    extra_options={'QDQDisableWeightAdjustForInt32Bias': True},
  )


def onnx_dump(source: str, path: str):
  """What `onnx_program.load` reads: the graph as JSON, beside its arrays."""
  import onnx
  from onnx import helper
  from onnx import numpy_helper

  arrays = {}

  def keep(name, array):
    if name in arrays and not np.array_equal(arrays[name], array):
      raise ValueError(f'{source} has two constants of the name {name}.')
    arrays[name] = array

  def attribute(a):
    value = helper.get_attribute_value(a)
    if a.type == onnx.AttributeProto.GRAPH:
      return described(value)
    return value.decode() if isinstance(value, bytes) else value

  def described(graph):
    for tensor in graph.initializer:
      keep(tensor.name, numpy_helper.to_array(tensor))
    nodes = []
    for node in graph.node:
      if node.op_type == 'Constant':
        keep(node.output[0], constant(node.attribute[0]))
        continue
      found = {}
      for a in node.attribute:
        if a.type == onnx.AttributeProto.TENSOR:
          # The value that an operator fills with: a list of one number.
          found[a.name] = numpy_helper.to_array(a.t).tolist()
        else:
          found[a.name] = attribute(a)
      ends = list(node.input), list(node.output)
      nodes.append((node.op_type, *ends, found))
    return {
      'inputs': [x.name for x in graph.input if x.name not in arrays],
      'outputs': [x.name for x in graph.output],
      'nodes': nodes,
    }

  def constant(a):
    value = helper.get_attribute_value(a)
    if a.name == 'value':
      return numpy_helper.to_array(value)
    kind = np.int64 if a.name.startswith('value_int') else np.float32
    return np.asarray(value, kind)

  graph = json.dumps(described(onnx.load(source).graph))
  with open(path, 'wb') as f:
    np.savez(f, graph=np.frombuffer(graph.encode(), np.uint8), **arrays)


class _Rounded:
  """A weight that LiteRT multiplies with as int8 (or int4): `x @ this`."""

  def __init__(self, kernel, bits):
    top = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(kernel).max(0), 1e-12) / top
    codes = np.clip(np.rint(kernel / scale), -top, top)
    self._kernel, self._scale = np.float32(codes * scale), np.float32(scale)
    self._bits = bits

  def __rmatmul__(self, x):
    import jax

    rounded = jax.lax.composite(lambda x, **_: x, 'quant.fake_quant')
    # Without a scale it is taken from each row.
    x = rounded(x, dtype='i8', narrow_range=False)
    w = rounded(
      jax.numpy.asarray(self._kernel),
      dtype=f'i{self._bits}',
      narrow_range=True,
      scale=self._scale,
      zero_point=np.zeros(len(self._scale), np.int64),
      quantization_dimension=np.int32(1),
    )
    return x @ w


def bert_litert(folder: str, path: str, batch: int, time: int, bits: int):
  """A BERT's sentence embedding; float where `bits` is 32."""
  import jax

  from launch.bench import bert

  apply, params = bert.load(pathlib.Path(folder))
  plain = jax.nn.gelu
  gelu = jax.lax.composite(
    lambda x, approximate: plain(x, approximate=False), 'aten.gelu.default'
  )
  # Spelled out it is some 65 operations; as this one it is one.
  jax.nn.gelu = functools.partial(_exact, gelu)
  if bits < 32:
    for layer in params['layers'].values():
      for part in layer.values():
        if 'kernel' in part:
          part['kernel'] = _Rounded(np.asarray(part['kernel']), bits)

  def f(tokens, mask):
    return apply(params, tokens, mask != 0)[0]

  shape = jax.ShapeDtypeStruct((batch, time), np.int32)
  text = jax.jit(f, keep_unused=True).lower(shape, shape).as_text()
  pathlib.Path(path).write_bytes(_flatbuffer(text, ['tokens', 'mask']))


def _exact(gelu, x, approximate):
  """The gelu of erf, as its composite."""
  del approximate
  return gelu(x, approximate='none')


def _flatbuffer(text, inputs):
  from litert_converter.mlir import ir
  from litert_converter.mlir import passmanager
  from litert_converter.mlir._mlir_libs import converter_api_ext as converter

  context = ir.Context()
  converter.prepare_mlir_context(context)
  with context:
    module = ir.Module.parse(text)
    converter.set_signature(
      module.operation,
      signature_name='serving_default',
      input_names=inputs,
      output_names=['y'],
    )
    config = converter.ConvertToTFLConfig()
    # Else what is rounded stays as calls that no runtime knows.
    config.strict_qdq_mode, config.enable_x64 = True, False
    converter.run_convert_to_tfl_passes(
      module, passmanager.PassManager(), config
    )
    return converter.export_flatbuffer_to_bytes(module.operation)


if __name__ == '__main__':
  print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
