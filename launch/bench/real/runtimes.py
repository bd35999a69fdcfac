"""Whole models in other runtimes: a worker.

    /path/to/python launch/bench/real/runtimes.py [--vnni]

Answers each line of JSON with a line. `load` opens a file of onnxruntime or LiteRT,
`feed` gives it inputs, `turn` runs it a number of times, `results` writes what it
computes of many inputs, one after the other. With --vnni the process may not use AMX.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np

# Not the folder of this file, where modules have names of packages.
sys.path[0] = str(pathlib.Path(__file__).parents[3])

from launch.bench.kernels import rivals  # noqa: E402  it is not installed there


class _OnnxRuntime:
  """A session: `run({input: array}) -> [outputs]`."""

  def __init__(self, path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    self._session = ort.InferenceSession(
      path, options, ['CPUExecutionProvider']
    )
    self.outputs = [x.name for x in self._session.get_outputs()]
    kinds = {'tensor(int64)': np.int64, 'tensor(int32)': np.int32}
    self._types = {
      x.name: kinds.get(x.type, np.float32) for x in self._session.get_inputs()
    }

  def prepared(self, feed):
    return {name: np.asarray(feed[name], t) for name, t in self._types.items()}

  def run(self, feed):
    return self._session.run(None, feed)


class _LiteRT:
  """An interpreter of a file whose only signature names its inputs."""

  def __init__(self, path):
    from ai_edge_litert import interpreter as runtime

    threads = len(os.sched_getaffinity(0))
    self._runner = runtime.Interpreter(model_path=path, num_threads=threads)
    self._runner.allocate_tensors()
    ins = self._runner.get_input_details()
    key = self._runner.get_signature_list()['serving_default']
    names = sorted(key['inputs'])
    # A signature's inputs have the order of their names in `get_signature_runner`,
    # which copies results; by index nothing is looked up.
    signature = self._runner.get_signature_runner('serving_default')
    found = signature.get_input_details()
    index = {x['name']: x for x in ins}
    self._inputs = {n: index[found[n]['name']] for n in names}
    self._outputs = [x['index'] for x in self._runner.get_output_details()]
    self.outputs = [x['name'] for x in self._runner.get_output_details()]

  def prepared(self, feed):
    return {
      at['index']: np.asarray(feed[name], at['dtype'])
      for name, at in self._inputs.items()
    }

  def run(self, feed):
    for index, array in feed.items():
      self._runner.set_tensor(index, array)
    self._runner.invoke()
    return [self._runner.get_tensor(index) for index in self._outputs]


_RUNTIMES = {'onnxruntime': _OnnxRuntime, 'LiteRT': _LiteRT}


class Worker:
  """What the lines ask for."""

  def __init__(self):
    self._models, self._feeds = {}, {}

  def load(self, name, runtime, path):
    self._models[name] = _RUNTIMES[runtime](path)

  def feed(self, name, path):
    with np.load(path) as arrays:
      self._feeds[name] = self._models[name].prepared(dict(arrays))

  def turn(self, name, calls):
    """[seconds, seconds of the processor] a call."""
    model, feed = self._models[name], self._feeds[name]
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
      model.run(feed)
    took = time.perf_counter() - wall, time.process_time() - processor
    return [seconds / calls for seconds in took]

  def results(self, name, path, target, carry):
    """Of the first output, stacked; `carry` names inputs and the outputs they become."""
    model, found, outputs = self._models[name], [], None
    with np.load(path) as arrays:
      steps = dict(arrays)
    for i in range(len(next(iter(steps.values())))):
      feed = {name: array[i] for name, array in steps.items()}
      if outputs is not None:
        named = dict(zip(model.outputs, outputs, strict=True))
        feed |= {name: named[output] for name, output in carry.items()}
      outputs = model.run(model.prepared(feed))
      found.append(outputs[0])
    np.save(target, np.stack(found))

  def drop(self, name):
    self._models.pop(name, None)
    self._feeds.pop(name, None)


def main():
  replies = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is not a reply
  worker = Worker()
  if '--vnni' in sys.argv:
    rivals.forbid_amx()
  for line in sys.stdin:
    request = json.loads(line)
    try:
      reply = {'result': getattr(worker, request.pop('do'))(**request)}
    except Exception as e:  # tells the other side, which goes on without it
      reply = {'error': f'{type(e).__name__}: {e}'[:500]}
    replies.write(json.dumps(reply) + '\n')
    replies.flush()


if __name__ == '__main__':
  main()
