"""Products of other libraries: a worker of one library.

    /path/to/python launch/bench/kernels/rivals.py torch [--vnni]

Answers each line of JSON with a line. `weights` and `rows` name folders of arrays as
numpy saves them, the same for everybody; `turn` runs a contestant and tells seconds a
call; `result` writes what it computes. With --vnni the process may not use AMX, and
all these libraries then use AVX512-VNNI.

A contestant computes one of
    codes      int8 [m, k] times int8 [k, n] to int32
    int8       float times int8 with a scale for each column, rounding rows to int8
    int4 A8    the same of int4 with scales for each 128 rows
    int4 A16   float times int4, nothing rounded
    NF4        float times NF4 with scales for each 64 rows
    MLP        float times int8, relu, times int8, rows rounded to int8
"""

import ctypes
import json
import os
import platform
import struct
import sys
import time

import numpy as np


def forbid_amx():
  """Takes from this process the right to ask the kernel for AMX registers.

  Libraries ask by arch_prctl(ARCH_REQ_XCOMP_PERM), and do without if refused. A
  filter of system calls (man 2 seccomp) in the words of man 7 bpf.
  """
  load, equal, give = 0x20, 0x15, 0x06
  arch_prctl, request, refuse, allow = 158, 0x1023, 0x00050001, 0x7FFF0000
  lines = (
    (load, 0, 0, 0),  # the number of the call
    (equal, 0, 3, arch_prctl),
    (load, 0, 0, 16),  # its first argument
    (equal, 0, 1, request),
    (give, 0, 0, refuse),
    (give, 0, 0, allow),
  )
  program = b''.join(struct.pack('HBBI', *line) for line in lines)
  memory = ctypes.create_string_buffer(program, len(program))

  class Filter(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('lines', ctypes.c_void_p)]

  found = Filter(len(lines), ctypes.cast(memory, ctypes.c_void_p))
  prctl = ctypes.CDLL(None).prctl
  if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.byref(found), 0, 0):
    raise OSError('The kernel does not let this process forbid itself AMX.')


# Each library: weights -> rows -> {contestant: (what it computes, call)}.
# Weights: w float32 [k, n], of which int8 and int4 [k, n] int8 are the codes,
# int8_scale [1, n] and int4_scale [k / 128, n] float32, nf4 [k, n] uint8 and
# nf4_scale [k / 64, n]; for an MLP w1, w2 and so on. Rows: x [m, k] float32 and its
# int8 codes.


def torch(w):
  import torch as t

  t.set_num_threads(len(os.sched_getaffinity(0)))
  t.set_grad_enabled(False)
  per_column = t.ao.quantization.per_channel_dynamic_qconfig

  def linears(*names):
    layers = []
    for name in names:
      layer = t.nn.Linear(*w[name].shape, bias=False)
      layer.weight.copy_(t.from_numpy(w[name]).T)
      layers += [layer, t.nn.ReLU()]
    model = t.nn.Sequential(*layers[:-1])
    return t.ao.quantization.quantize_dynamic(model, {t.nn.Linear: per_column})

  if 'w1' in w:
    mlp = linears('w1', 'w2')

    def rows(x):
      x = t.from_numpy(x['x'])
      return {'torch dynamic Linear': ('MLP', lambda: mlp(x))}

    return rows

  b, linear = t.from_numpy(w['int8']), linears('w')
  by_column = b.T.contiguous().T
  k, n = b.shape
  four = t.from_numpy(np.ascontiguousarray(w['int4'].T + 8).astype(np.int32))
  four = t.ops.aten._convert_weight_to_int4pack_for_cpu(four, 1)
  scale = t.from_numpy(w['int4_scale'])
  scales = t.stack([scale, t.zeros_like(scale)], -1).bfloat16()
  four_by = t.ops.aten._weight_int4pack_mm_for_cpu

  def rows(x):
    codes, x = t.from_numpy(x['codes']), t.from_numpy(x['x'])
    short = x.bfloat16()  # of float32 it has a plain loop
    found = {
      'torch _int_mm': ('codes', lambda: t._int_mm(codes, b)),
      'torch _int_mm, by column': (
        'codes',
        lambda: t._int_mm(codes, by_column),
      ),
      'torch dynamic Linear': ('int8', lambda: linear(x)),
    }
    if n % 16 == 0 and k % 128 == 0:
      found['torch int4pack_mm'] = (
        'int4 A16',
        lambda: four_by(short, four, 128, scales),
      )
    return found

  return rows


def torchao(w):
  import torch as t
  from torchao import quantization as q

  t.set_num_threads(len(os.sched_getaffinity(0)))
  t.set_grad_enabled(False)
  names = ('w1', 'w2') if 'w1' in w else ('w',)
  layers = []
  for name in names:
    layer = t.nn.Linear(*w[name].shape, bias=False)
    layer.weight.copy_(t.from_numpy(w[name]).T)
    layers += [layer, t.nn.ReLU()]
  model = t.nn.Sequential(*layers[:-1])
  q.quantize_(model, q.Int8DynamicActivationInt8WeightConfig())
  model = t.compile(model, dynamic=False)

  def rows(x):
    x = t.from_numpy(x['x'])
    what = 'int8' if len(names) == 1 else 'MLP'
    return {'torchao int8, compiled': (what, lambda: model(x))}

  return rows


def _session(nodes, constants, source='f', target='f'):
  """A program of onnxruntime: matrices x to y, of these letters' types."""
  import onnx
  from onnx import helper
  from onnx import numpy_helper
  import onnxruntime as ort

  t = onnx.TensorProto
  types = {'f': t.FLOAT, 'i': t.INT32, 'u': t.UINT8}
  value = helper.make_tensor_value_info
  graph = helper.make_graph(
    nodes,
    'graph',
    [value('x', types[source], ('m', 'k'))],
    [value('y', types[target], ('m', 'n'))],
    [numpy_helper.from_array(a, name) for name, a in constants.items()],
  )
  domains = [('', 17), ('com.microsoft', 1)]
  domains = [helper.make_opsetid(*d) for d in domains]
  model = helper.make_model(graph, opset_imports=domains, ir_version=10)
  options = ort.SessionOptions()
  options.intra_op_num_threads = len(os.sched_getaffinity(0))
  options.log_severity_level = 3
  return ort.InferenceSession(
    model.SerializeToString(), options, ['CPUExecutionProvider']
  )


def _dynamic(w, x, name, y, i):
  """Nodes and constants of y = x @ w[name], x rounded; `i` tells two apart."""
  import onnx
  from onnx import helper

  node = helper.make_node
  at = [f'{part}{i}' for part in ('q', 's', 'z', 'sum', 'float', 'scale')]
  q, s, z, total, floating, scale = at
  nodes = [
    node('DynamicQuantizeLinear', [x], [q, s, z]),
    node('MatMulInteger', [q, f'b{i}', z], [total]),
    node('Cast', [total], [floating], to=onnx.TensorProto.FLOAT),
    node('Mul', [s, f'bs{i}'], [scale]),
    node('Mul', [floating, scale], [y]),
  ]
  return nodes, {f'b{i}': w[name], f'bs{i}': w[f'{name}_scale'][0]}


def _blockwise(op, codes, scale, **attributes):
  """A program of one node that multiplies with codes in blocks."""
  from onnx import helper

  node = helper.make_node(
    op, ['x', 'b', 's'], ['y'], domain='com.microsoft', **attributes
  )
  return _session([node], {'b': codes, 's': scale})


def _nibbles(codes, size, above):
  """[n, k / size, size / 2] uint8 of codes [k, n], the first of two lowest."""
  q = (codes.astype(np.int16) + above).astype(np.uint8).T
  # Blocks lie along k, which is contracted, so a column of codes becomes a row.
  q = np.ascontiguousarray(q.reshape(len(q), -1, size // 2, 2))
  return q[..., 0] | q[..., 1] << 4


def onnxruntime(w):
  from onnx import helper

  def run(session, x):
    return lambda: session.run(None, {'x': x})[0]

  if 'w1' in w:
    first, constants = _dynamic(w, 'x', 'int8_1', 'h', 1)
    second, more = _dynamic(w, 'r', 'int8_2', 'y', 2)
    relu = helper.make_node('Relu', ['h'], ['r'])
    mlp = _session([*first, relu, *second], constants | more)
    return lambda x: {'onnxruntime': ('MLP', run(mlp, x['x']))}

  nodes = [helper.make_node('MatMulInteger', ['x', 'b', 'z'], ['y'])]
  constants = {'b': w['int8'], 'z': np.uint8(128)}
  codes = _session(nodes, constants, 'u', 'i')
  int8 = _session(*_dynamic(w, 'x', 'int8', 'y', 0))
  k, n = w['int8'].shape
  four = dict(
    codes=_nibbles(w['int4'], 128, 8),
    scale=np.ascontiguousarray(w['int4_scale'].T),
    **dict(K=k, N=n, bits=4, block_size=128),
  )
  a8 = _blockwise('MatMulNBits', **four, accuracy_level=4)
  a16 = _blockwise('MatMulNBits', **four, accuracy_level=1)
  # Of two codes in a byte this operation has the first one highest.
  high_first = _nibbles(w['nf4'], 64, 0).reshape(-1)
  high_first = (high_first >> 4) | (high_first << 4)
  scale = np.ascontiguousarray(w['nf4_scale'].T).reshape(-1)
  sizes = dict(K=k, N=n, block_size=64, quant_type=1)
  nf4 = _blockwise('MatMulBnb4', high_first, scale, **sizes)

  def rows(x):
    unsigned = (x['codes'].astype(np.int16) + 128).astype(np.uint8)
    return {
      'onnxruntime MatMulInteger': ('codes', run(codes, unsigned)),
      'onnxruntime dynamic': ('int8', run(int8, x['x'])),
      'onnxruntime MatMulNBits, 4': ('int4 A8', run(a8, x['x'])),
      'onnxruntime MatMulNBits, 1': ('int4 A16', run(a16, x['x'])),
      'onnxruntime MatMulBnb4': ('NF4', run(nf4, x['x'])),
    }

  return rows


class _LiteRTModel:
  """A model of LiteRT that is written tensor by tensor."""

  def __init__(self, schema):
    self.s = schema
    self.buffers, self.tensors, self.operators = [schema.BufferT()], [], []

  def tensor(self, shape, kind, data=None, scale=None) -> int:
    """Adds one; with `data`, a constant with a scale for each row."""
    t = self.s.TensorT()
    t.shape, t.type, t.buffer = list(shape), kind, 0
    t.name = str(len(self.tensors))
    if data is not None:
      b = self.s.BufferT()
      b.data = data.view(np.uint8).reshape(-1)
      self.buffers.append(b)
      t.buffer = len(self.buffers) - 1
      t.quantization = q = self.s.QuantizationParametersT()
      q.scale = scale.astype(np.float32).reshape(-1)
      q.zeroPoint = np.zeros(q.scale.size, np.int64)
      q.quantizedDimension = 0
    self.tensors.append(t)
    return len(self.tensors) - 1

  def fully_connected(self, x, codes, scale, m, relu) -> int:
    """Adds y = x @ codes, then relu if it is asked for."""
    rows = np.ascontiguousarray(codes.T)
    weight = self.tensor(rows.shape, self.s.TensorType.INT8, rows, scale)
    y = self.tensor((m, len(rows)), self.s.TensorType.FLOAT32)
    o = self.s.OperatorT()
    o.opcodeIndex, o.inputs, o.outputs = 0, [x, weight, -1], [y]
    o.builtinOptionsType = self.s.BuiltinOptions.FullyConnectedOptions
    o.builtinOptions = f = self.s.FullyConnectedOptionsT()
    f.fusedActivationFunction = self.s.ActivationFunctionType.RELU * relu
    self.operators.append(o)
    return y

  def content(self, x, y) -> bytes:
    """The file of the model from tensor x to tensor y."""
    import flatbuffers

    graph = self.s.SubGraphT()
    graph.inputs, graph.outputs = [x], [y]
    graph.tensors, graph.operators = self.tensors, self.operators
    code = self.s.OperatorCodeT()
    kind = self.s.BuiltinOperator.FULLY_CONNECTED
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 9
    whole = self.s.ModelT()
    whole.version, whole.operatorCodes = 3, [code]
    whole.subgraphs, whole.buffers = [graph], self.buffers
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(whole.Pack(builder), b'TFL3')
    return bytes(builder.Output())


def litert(w):
  from ai_edge_litert import interpreter as runtime
  from ai_edge_litert import schema_py_generated as schema

  names = ('int8_1', 'int8_2') if 'w1' in w else ('int8',)

  def content(m):
    """Fully connected layers, relu between, of float32 and int8 weights."""
    model = _LiteRTModel(schema)
    shape = m, w[names[0]].shape[0]
    x = y = model.tensor(shape, schema.TensorType.FLOAT32)
    for name in names:
      scale, relu = w[f'{name}_scale'], name != names[-1]
      y = model.fully_connected(y, w[name], scale, m, relu)
    return model.content(x, y)

  def rows(x):
    threads = len(os.sched_getaffinity(0))
    run = runtime.Interpreter(
      model_content=content(len(x['x'])), num_threads=threads
    )
    run.allocate_tensors()
    source = run.get_input_details()[0]['index']
    target = run.get_output_details()[0]['index']

    def call():
      run.set_tensor(source, x['x'])
      run.invoke()
      return run.get_tensor(target)

    return {'LiteRT': ('int8' if len(names) == 1 else 'MLP', call)}

  return rows


def qwix(w):
  from flax import nnx
  import jax
  import qwix as library

  names = ('w1', 'w2') if 'w1' in w else ('w',)

  class Layers(nnx.Module):
    def __init__(self):
      self.layers = nnx.List(
        [
          nnx.Linear(*w[n].shape, use_bias=False, rngs=nnx.Rngs(0))
          for n in names
        ]
      )
      for layer, name in zip(self.layers, names):
        layer.kernel[...] = jax.numpy.asarray(w[name])

    def __call__(self, x):
      for layer in self.layers[:-1]:
        x = jax.nn.relu(layer(x))
      return self.layers[-1](x)

  kinds = {
    'int8': dict(weight_qtype='int8', act_qtype='int8'),
    'int4 A8': dict(weight_qtype='int4', act_qtype='int8', tile_size=128),
    'int4 A16': dict(weight_qtype='int4', tile_size=128),
    'NF4': dict(weight_qtype='nf4', tile_size=64),
  }
  if 'w1' in w:
    kinds = {'MLP': kinds['int8']}

  def rows(x):
    x, found = jax.numpy.asarray(x['x']), {}
    for kind, options in kinds.items():
      rule = [library.QuantizationRule(module_path='.*', **options)]
      model = library.quantize_model(Layers(), library.PtqProvider(rule), x)
      graph, state = nnx.split(model)
      f = jax.jit(lambda s, x, graph=graph: nnx.merge(graph, s)(x))
      found[f'qwix {kind}'] = (
        kind,
        lambda f=f, state=state: jax.block_until_ready(f(state, x)),
      )
    return found

  return rows


def _read(folder):
  return {
    name.removesuffix('.npy'): np.load(os.path.join(folder, name))
    for name in os.listdir(folder)
  }


def main():
  library = globals()[sys.argv[1]]
  replies = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is not a reply
  by_rows, contestants = None, {}

  def weights(folder):
    nonlocal by_rows
    contestants.clear()
    by_rows = library(_read(folder))

  def rows(folder):
    contestants.clear()
    contestants.update(by_rows(_read(folder)))
    return {name: kind for name, (kind, _) in contestants.items()}

  def turn(name, calls):
    call = contestants[name][1]
    start = time.perf_counter()
    for _ in range(calls):
      call()
    return (time.perf_counter() - start) / calls

  def result(name, path):
    y = contestants[name][1]()
    np.save(path, np.asarray(y.float() if 'bfloat16' in str(y.dtype) else y))

  actions = dict(weights=weights, rows=rows, turn=turn, result=result)
  try:
    if '--vnni' in sys.argv:
      if platform.machine() != 'x86_64':
        raise OSError('--vnni is for x86-64.')
      forbid_amx()
  except OSError as e:
    replies.write(json.dumps({'error': str(e)}) + '\n')
    return
  for line in sys.stdin:
    request = json.loads(line)
    try:
      reply = {'result': actions[request.pop('do')](**request)}
    except Exception as e:  # tells the other side, which goes on without it
      reply = {'error': f'{type(e).__name__}: {e}'[:500]}
    replies.write(json.dumps(reply) + '\n')
    replies.flush()


if __name__ == '__main__':
  main()
