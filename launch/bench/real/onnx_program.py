"""An ONNX graph as a JAX function of its floats.

    apply, params, weights = load('graph.npz')      # makers.onnx_dump writes it
    outputs = apply(params, *inputs)

    value[output] = operator(value[input], ...)       node after node

Floats of more than one number are parameters, by their names in the graph. All else is
constant: what depends on constants and shapes alone is computed by numpy, while the
function is traced, and so is which branch an `If` takes; what depends on parameters alone,
once, and is a parameter then. What operators mean is said in
https://onnx.ai/onnx/operators.
"""

from collections.abc import Callable
import json
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from launch.bench.real import onnx_operators

# Where products have their weights, among inputs.
_WEIGHTS = {'MatMul': (0, 1), 'Gemm': (1,), 'Conv': (1,), 'ConvTranspose': (1,)}
_WEIGHTS |= {'LSTM': (1, 2)}


class Node(NamedTuple):
  """`outputs = op(inputs)`; the name of an input left out is ''."""

  op: str
  inputs: list[str]
  outputs: list[str]
  attributes: dict[str, Any]


class Graph(NamedTuple):
  """Nodes in order; what comes in and goes out."""

  inputs: list[str]
  outputs: list[str]
  nodes: list[Node]


class Program(NamedTuple):
  """A graph as a function.

  Attributes:
    apply: `(params, *inputs) -> outputs`. Inputs that decide about shapes or
      branches are numpy arrays.
    params: {name: float array of more than one number}.
    weights: names of those that products have as one of their operands.
  """

  apply: Callable[..., tuple]
  params: dict[str, np.ndarray]
  weights: list[str]


def load(path: str) -> Program:
  """A graph that `makers.onnx_dump` wrote."""
  with np.load(path) as found:
    arrays = dict(found)
  return program(json.loads(arrays.pop('graph').tobytes()), arrays)


def program(graph: dict, arrays: dict[str, np.ndarray]) -> Program:
  """The same, of the description and its arrays by name."""
  arrays = dict(arrays)
  graph = _folded(graph, arrays)
  used = {name: None for node in _everywhere(graph) for name in node[1]}
  used |= dict.fromkeys(graph['outputs'])
  sizes = {n for node in _everywhere(graph) for n in _about_shapes(node)}
  floats = {n for n, a in arrays.items() if a.dtype.kind == 'f' and a.size > 1}
  params = {n: arrays[n] for n in sorted(floats - sizes) if n in used}
  constants = {n: a for n, a in arrays.items() if n not in params}
  weights = {
    name: None
    for op, inputs, *_ in _everywhere(graph)
    for i in _WEIGHTS.get(op, ())
    for name in inputs[i : i + 1]
  }
  graph = _graph(graph)

  def apply(params, *inputs):
    given = dict(zip(graph.inputs, inputs, strict=True))
    return _run(graph, constants | params | given)

  return Program(apply, params, [name for name in weights if name in params])


def _folded(graph, arrays):
  """The graph without what arrays alone decide, which becomes arrays.

  Exported gates of a recurrent cell, for one, are put in order at every call.
  """
  nodes = []
  for op, inputs, outputs, attributes in graph['nodes']:
    attributes = {
      name: _folded(x, arrays) if isinstance(x, dict) else x
      for name, x in attributes.items()
    }
    known = all(not name or name in arrays for name in inputs)
    # Branches may have the same names for different things.
    if op == 'If' or not known or any(name in arrays for name in outputs):
      nodes.append((op, inputs, outputs, attributes))
      continue
    node = Node(op, inputs, outputs, attributes)
    found = _computed(node, [arrays[n] if n else None for n in inputs])
    arrays |= zip(outputs, map(np.asarray, found))
  return graph | {'nodes': nodes}


def _everywhere(graph):
  """Nodes of a graph and of the branches in it; what branches return."""
  for node in graph['nodes']:
    yield node
    for inner in node[3].values():
      if isinstance(inner, dict):
        yield from _everywhere(inner)
        yield 'Identity', inner['outputs'], [], {}


def _about_shapes(node):
  """Floats that decide how large things are."""
  op, inputs, *_ = node
  return inputs[1:] if op == 'Resize' else ()


def _graph(found):
  nodes = []
  for op, inputs, outputs, attributes in found['nodes']:
    attributes = {
      name: _graph(x) if isinstance(x, dict) else x
      for name, x in attributes.items()
    }
    nodes.append(Node(op, inputs, outputs, attributes))
  return Graph(found['inputs'], found['outputs'], nodes)


def _run(graph, values):
  """Outputs of a graph; `values` of a graph around it are seen inside."""
  values = dict(values)
  for node in graph.nodes:
    inputs = [values[name] if name else None for name in node.inputs]
    if node.op == 'If':
      outputs = _run(_branch(node, inputs[0]), values)
    else:
      outputs = _computed(node, inputs)
    # Outputs that nobody asked for are left out at the end.
    values |= dict(zip(node.outputs, outputs))
  return tuple(values[name] for name in graph.outputs)


def _branch(node, condition):
  if not _static(condition):
    raise ValueError(
      'The condition of an If depends on data; give what it depends on as a'
      ' numpy array, outside of jit.'
    )
  taken = 'then_branch' if condition.item() else 'else_branch'
  return node.attributes[taken]


def _static(x):
  return x is None or isinstance(x, np.ndarray | np.generic)


def _computed(node, inputs):
  operator = getattr(onnx_operators, node.op, None)
  if operator is None:
    raise ValueError(
      f'The operator {node.op} is not known; add it to onnx_operators.py.'
    )
  xp = np if all(map(_static, inputs)) else jnp
  outputs = operator(xp, *inputs, **node.attributes)
  return outputs if isinstance(outputs, tuple) else (outputs,)
