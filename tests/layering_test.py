"""Imports point one way, and files stay readable: an AST walk over the package.

Every check is a function of the checkout's root and returns what is wrong, a line
each: `python tests/layering_test.py` prints the lines of all checks.
"""

import ast
import pathlib
import re
import subprocess
import sys

from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGE = 'jaxopt_compress'

# What each room may import of the others, as drawn in CONTRIBUTING.md. Siblings do
# not know each other; `calibration` and `kernels` may read the formats of two of them.
# `disk` knows nobody, and serves whoever writes files.
_SIBLINGS = (
  'quantization',
  'adapters',
  'pruning',
  'distillation',
  'parallel',
)
_MAY = {
  'core': set(),
  'disk': set(),
  'analysis': {'core'},
  'modules': {'core', 'analysis'},
  **{room: {'core', 'analysis', 'modules'} for room in _SIBLINGS},
  'distillation': {'core', 'analysis', 'disk'},
  'calibration': {'core', 'analysis', 'quantization', 'pruning'},
  'kernels': {'core', 'analysis', 'modules', 'quantization', 'pruning'},
  'export': {'core', 'analysis', 'modules', 'disk'},
  'models': {'core', 'analysis'},
  'data': {'core', 'analysis'},
  'report': {'core', 'analysis', 'disk'},
}
_MAY['train'] = set(_MAY)
_MAY['command'] = set(_MAY)

# What a single file may import beyond its room: an adapter that is merged is rounded
# again, and a tree is loaded onto a mesh.
_FILE_MAY = {
  'jaxopt_compress/adapters/merge.py': {'quantization'},
  'jaxopt_compress/export/trees.py': {'parallel'},
}

# Outside packages that the inner rooms do without.
_INNER = (
  'core',
  'disk',
  'analysis',
  'quantization',
  'adapters',
  'pruning',
  'distillation',
  'calibration',
  'kernels',
)
_NOT_INSIDE = {'flax', 'optax', 'sklearn', 'ml_collections', 'orbax', 'absl'}

# The only files that know which parameters hold the inner programs of jit, scan,
# while, cond, remat, custom_jvp, custom_vjp and shard_map.
_ENTER = (
  'jaxopt_compress/core/structural.py',
  'jaxopt_compress/analysis/walk.py',
)
_STRUCTURAL = {
  'num_consts',
  'num_carry',
  'branches',
  'cond_jaxpr',
  'cond_nconsts',
  'body_jaxpr',
  'body_nconsts',
  'call_jaxpr',
  'fun_jaxpr',
  'jvp_jaxpr_fun',
  'fwd_jaxpr_thunk',
  'newly_manual_axes',
}

# Files without a test of their name, and the test that they share with others.
_TESTED_IN = {
  # What a call of the library is made of, as its callers make it.
  'kernels/cpu/calls.py': 'kernels/cpu/native_test.py',
  'kernels/operands.py': 'kernels/dispatch_test.py',
  # The loop of the Pallas kernels and its blocks, which have no other use.
  'kernels/pallas/contract.py': 'kernels/pallas/weight_only_test.py',
  'kernels/pallas/tiles.py': 'kernels/pallas/weight_only_test.py',
  # Configs that are copied, and run there as a user would.
  **{
    f'command/starts/{kind}.py': 'command/begin_test.py'
    for kind in ('arrays', 'images', 'text')
  },
  # Kinds of networks that keep one contract.
  'models/own/callable_tree.py': 'models/own/own_test.py',
  'models/own/linen_module.py': 'models/own/own_test.py',
  'models/own/nnx_module.py': 'models/own/own_test.py',
  # What `functional` stands on, and networks of a user's, too.
  'models/states.py': 'models/functional_test.py',
}

_LINES_OF_A_FILE = 450
_LINES_OF_A_FUNCTION = 60
_LINES_OF_A_C_FUNCTION = 100
# Read from top to bottom like a notebook.
_LONG = ('jaxopt_compress/train/loop.py',)


def _trees(root, *folders):
  """(path below the root, syntax tree) of every Python file of the folders."""
  for folder in folders:
    for path in sorted((root / folder).rglob('*.py')):
      yield path.relative_to(root).as_posix(), ast.parse(path.read_text())


def _imports(tree):
  """The modules that a file imports, at any depth, as dotted names."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield '.' * node.level + f'{node.module}.{alias.name}'


def _room(path):
  parts = pathlib.PurePath(path).parts
  return parts[1] if len(parts) > 2 else None


# --------------------------------------------------------------------- imports


def rooms(root):
  """Rooms import only what they may."""
  for path, tree in _trees(root, _PACKAGE):
    room = _room(path)
    for name in _imports(tree):
      parts = name.split('.')
      if room is None or parts[0] != _PACKAGE:
        continue
      other = parts[1] if len(parts) > 1 else ''
      may = _MAY[room] | _FILE_MAY.get(path, set())
      if other != room and other not in may:
        yield f'{path} imports {name}'


def circles(root):
  """No file is reached again from what it imports, in functions or on top."""
  trees = dict(_trees(root, _PACKAGE))
  edges = {
    path: {f for name in _imports(tree) if (f := _file(name, trees))} - {path}
    for path, tree in trees.items()
  }
  seen = set()
  for path in edges:
    for circle in _circles_from(path, edges, seen, []):
      yield ' -> '.join(circle)


def _file(name, files):
  """The file of the package that a dotted name means, or None."""
  parts = name.split('.')
  for n in (len(parts), len(parts) - 1):
    stem = '/'.join(parts[:n])
    for path in (f'{stem}.py', f'{stem}/__init__.py'):
      if path in files:
        return path
  return None


def _circles_from(path, edges, seen, above):
  if path in above:
    yield [*above[above.index(path) :], path]
  elif path not in seen:
    seen.add(path)
    for other in sorted(edges[path]):
      yield from _circles_from(other, edges, seen, [*above, path])


def frameworks(root):
  """The inner rooms do without frameworks."""
  for room in _INNER:
    for path, tree in _trees(root, f'{_PACKAGE}/{room}'):
      for name in _imports(tree):
        if name.split('.')[0] in _NOT_INSIDE:
          yield f'{path} imports {name}'


def core_imports_jax_alone(root):
  """Beside jax, its arrays and Python itself."""
  alone = {'jax', 'numpy', _PACKAGE, *sys.stdlib_module_names}
  for path, tree in _trees(root, f'{_PACKAGE}/core'):
    for name in _imports(tree):
      if name.split('.')[0] not in alone:
        yield f'{path} imports {name}'


def jax_extend(root):
  """Only core/jaxprs.py meets jax.extend."""
  for path, tree in _trees(root, _PACKAGE):
    for name in _imports(tree):
      if name.startswith('jax.extend') and path != f'{_PACKAGE}/core/jaxprs.py':
        yield f'{path} imports {name}'


def private_jax(root):
  """Nothing of JAX that may change without notice; no relative imports."""
  for path, tree in _trees(root, _PACKAGE, 'launch', 'configs', 'tests'):
    for name in _imports(tree):
      if name.startswith(('jax._src', 'jax.core', '.')):
        yield f'{path} imports {name}'


def what_runs_the_library(root):
  """The library does not import what runs it."""
  for path, tree in _trees(root, _PACKAGE):
    for name in _imports(tree):
      if name.split('.')[0] in ('launch', 'configs', 'tests'):
        yield f'{path} imports {name}'


def side_effects(root):
  """No import for its side effect; what is re-exported says so: `x as x`."""
  for path in sorted((root / _PACKAGE).rglob('*.py')):
    for i, line in enumerate(path.read_text().splitlines(), 1):
      as_itself = re.search(r'import (\w+) as \1\b', line)
      if re.search(r'noqa.*F401', line) or (
        as_itself and path.name != '__init__.py'
      ):
        yield f'{path.relative_to(root)}:{i}: {line.strip()}'


def heavy_imports(root):
  """`import jaxopt_compress` loads what `import jax` loads, and no more of these."""
  code = (
    'import sys, jax; before = set(sys.modules); import jaxopt_compress;'
    'print(*set(sys.modules) - before)'
  )
  loaded = subprocess.run(
    [sys.executable, '-c', code],
    cwd=root,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  slow = 'jax.experimental.pallas'  # is for GPUs and TPUs
  for name in ('scipy', 'sklearn', 'matplotlib', 'grain', 'tensorflow', slow):
    if name in loaded:
      yield f'import {_PACKAGE} loads {name}'


# ----------------------------------------------------------------------- walls


def structural_parameters(root):
  """One walker: nobody else knows how a scan or a cond holds its program."""
  for path, tree in _trees(root, _PACKAGE):
    if path in _ENTER:
      continue
    for node in ast.walk(tree):
      if isinstance(node, ast.Constant) and node.value in _STRUCTURAL:
        yield f'{path}:{node.lineno}: {node.value!r}'
      elif (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and node.slice.value == 'jaxpr'
      ):
        yield f"{path}:{node.lineno}: ['jaxpr']"


def drawers(root):
  """No drawers without a name."""
  bad = {'utils', 'util', 'helpers', 'helper', 'common', 'misc'}
  for path, _ in _trees(root, _PACKAGE):
    if bad & {*pathlib.PurePath(path).with_suffix('').parts}:
      yield path


def mirrors(root):
  """Each file of the library has its test, or is named in `_TESTED_IN`."""
  for path, _ in _trees(root, _PACKAGE):
    below = pathlib.PurePath(path).relative_to(_PACKAGE)
    mirror = below.with_name(f'{below.stem}_test.py').as_posix()
    if below.name != '__init__.py' and below.as_posix() not in _TESTED_IN:
      if not (root / 'tests' / mirror).exists():
        yield f'{path} has no tests/{mirror}'
  for below, test in _TESTED_IN.items():
    for path in (f'{_PACKAGE}/{below}', f'tests/{test}'):
      if not (root / path).exists():
        yield f'{below} is said to be tested in {test}: there is no {path}'


# ----------------------------------------------------------------- readability


def long_files(root):
  for path in sorted(
    p
    for folder in (_PACKAGE, 'launch', 'configs', 'tests')
    for pattern in ('*.py', '*.cc', '*.h')
    for p in (root / folder).rglob(pattern)
  ):
    lines = len(path.read_text().splitlines())
    if lines > _LINES_OF_A_FILE:
      yield f'{path.relative_to(root)}: {lines} lines'


def long_functions(root):
  for path, tree in _trees(root, _PACKAGE, 'launch', 'configs', 'tests'):
    for node in _functions(tree):
      lines = node.end_lineno - node.lineno + 1
      if ast.get_docstring(node, clean=False) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
      if lines > _LINES_OF_A_FUNCTION and path not in _LONG:
        yield f'{path}:{node.lineno}: {node.name}: {lines} lines'


def _functions(tree):
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
  return (node for node in ast.walk(tree) if isinstance(node, kinds))


def names_a_traceback_can_print(root):
  """No function is `_`, no lambda stands where a function should have a name."""
  for path, tree in _trees(root, _PACKAGE, 'launch', 'configs'):
    for node in _functions(tree):
      if node.name == '_':
        yield f'{path}:{node.lineno}: a function named _'
    for node in ast.walk(tree):
      bound = isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr))
      if bound and isinstance(node.value, ast.Lambda):
        yield f'{path}:{node.lineno}: a lambda bound to a name'


def long_c_functions(root):
  for path in sorted((root / _PACKAGE).rglob('*')):
    if path.suffix in ('.cc', '.h'):
      for first, last, head in _c_functions(path.read_text()):
        if last - first + 1 > _LINES_OF_A_C_FUNCTION:
          name = re.search(r'([\w:~]+)\s*\(', head)
          yield (
            f'{path.relative_to(root)}:{first}: {name and name[1]}:'
            f' {last - first + 1} lines'
          )


def _c_functions(text):
  """(first line, last line, head) of the functions of a C++ source.

  A block is a function if its head ends like one and only namespaces, extern "C"
  and types are around it: good enough for sources that clang-format would leave.
  """
  text = re.sub(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'',
    lambda found: re.sub(r'[^\n]', ' ', found[0]),
    text,
    flags=re.DOTALL,
  )
  # A directive is no statement, and may go on behind a backslash.
  text = re.sub(
    r'^[ \t]*#(?:\\\n|[^\n])*',
    lambda found: re.sub(r'[^\n]', ' ', found[0]),
    text,
    flags=re.MULTILINE,
  )
  blocks, head_from = [], 0
  for found in re.finditer(r'[{};]', text):
    at = found.start()
    if found[0] == '{':
      head = text[head_from:at]
      around = all(kind == 'around' for kind, _, _ in blocks)
      kind = _kind_of_block(head) if around else 'inner'
      first = text.count('\n', 0, at - len(head.lstrip())) + 1
      blocks.append((kind, first, head))
    elif found[0] == '}':
      kind, first, head = blocks.pop()
      if kind == 'function':
        yield first, text.count('\n', 0, at) + 1, head
    head_from = at + 1


def _kind_of_block(head):
  """'around' other functions, a 'function', or 'inner': an initialiser, say."""
  head = head.strip()
  if re.search(r'\b(namespace|struct|class|union|enum|extern)\b[^()]*$', head):
    return 'around'
  tail = r'\)\s*(const|noexcept|override|->\s*[\w:<>]+|:[^:].*)?\s*$'
  return 'function' if re.search(tail, head, re.DOTALL) else 'inner'


CHECKS = (
  rooms,
  circles,
  frameworks,
  core_imports_jax_alone,
  jax_extend,
  private_jax,
  what_runs_the_library,
  side_effects,
  heavy_imports,
  structural_parameters,
  drawers,
  mirrors,
  long_files,
  long_functions,
  names_a_traceback_can_print,
  long_c_functions,
)


class LayeringTest(parameterized.TestCase):
  def test_walks_something(self):
    trees = dict(_trees(_ROOT, _PACKAGE))
    self.assertLessEqual({_room(path) for path in trees} - {None}, set(_MAY))
    self.assertIn(
      'jaxopt_compress.core.array',
      set(_imports(trees['jaxopt_compress/core/lift.py'])),
    )

  @parameterized.named_parameters((f.__name__, f) for f in CHECKS)
  def test(self, check):
    self.assertEqual(list(check(_ROOT)), [])


if __name__ == '__main__':
  root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else '.').resolve()
  for check in CHECKS:
    print(f'{check.__name__}:', *(list(check(root)) or ['fine']), sep='\n  ')
