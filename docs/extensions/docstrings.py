"""Docstrings as they are written here, for Sphinx: plain text into rst, by rule.

Ours are Google's sections around plain text. Equations, code and tables stand in it
as a reader of the source wants them, without markup. What the rules do:

- a paragraph that is indented, is python, or has columns becomes a literal block;
- a name in backticks becomes a literal, and no other character is markup;
- sections (Args, Returns, Raises ...) and doctests are left to napoleon.
"""

import ast
import re
import textwrap

_SECTION = re.compile(
  r'(Args|Arguments|Attributes|Example|Examples|Note|Raises|Returns|Yields):$'
)
_FIELD = re.compile(r'(  \*{0,2}[\w][\w, *.\[\]]*?: )(.*)')


def is_code(paragraph):
  """Whether lines are python, rather than words.

  >>> is_code(['y = f(x)']), is_code(['Rounds to nearest.']), is_code(['Rounds'])
  (True, False, False)
  """
  text = textwrap.dedent('\n'.join(paragraph))
  if not re.search(r'[(=\[]|^(import|from) ', text):
    return False
  try:
    ast.parse(text)
  except SyntaxError:
    return False
  return True


def escaped(line):
  """A line of words, in which only names in backticks are marked up.

  >>> escaped('scales `w * s` of *args, x_ and |g|; `Plan`s')
  'scales ``w * s`` of \\\\*args, x\\\\_ and \\\\|g\\\\|; ``Plan``\\\\ s'
  """
  parts = re.split(r'(`+[^`]+`+)', line)
  words = (
    re.sub(r'([*|\\]|_\b(?=\W|$))', r'\\\1', part) for part in parts[::2]
  )
  names = (f'``{part.strip("`")}``' for part in parts[1::2])
  out = next(words)
  for name, after in zip(names, words):
    out += name + ('\\ ' if re.match(r'\w', after) else '') + after
  return out


def _paragraphs(lines):
  """Runs of lines that are not empty, each with the number of its first line."""
  run = []
  for line in [*lines, '']:
    if line.strip():
      run.append(line)
    elif run:
      yield run
      run = []


def _indent(line):
  return len(line) - len(line.lstrip())


def to_rst(lines):
  """Lines of a docstring as lines that napoleon reads.

  Args:
    lines: a docstring without its indentation.
  """
  out, inside = [], ''
  for run in _paragraphs(lines):
    first = run[0]
    if title := _SECTION.match(first):
      inside = title[1]
    elif not first.startswith(' '):
      inside = ''
    if inside or first.lstrip().startswith('>>>'):
      literal = False
    else:
      columns = sum(bool(re.search(r'\S {3,}\S', line)) for line in run)
      literal = _indent(first) > 0 or is_code(run) or columns > 0
    if first.lstrip().startswith('>>>'):
      out += [*run, '']
    elif literal:
      out += ['::', '', *textwrap.indent('\n'.join(run), '   ').split('\n'), '']
    elif inside:
      out += [*_section(run, inside), '']
    else:
      out += [*_words(run), '']
  return out


def _words(run):
  """A paragraph of words; what is indented in it is a literal block, too."""
  out, quoted = [], False
  lists = any(re.match(r' *[-*] ', line) for line in run)
  for line in run:
    if not lists and line.startswith('  ') and not quoted:
      out += ['', '::', '']
    if quoted and not line.startswith('  '):
      out.append('')
    quoted = not lists and line.startswith('  ')
    if quoted:
      out.append(f'   {line}')
    elif lists and re.match(r' *[-*] ', line):
      if (
        out
        and not re.match(r' *[-*] ', out[-1])
        and not out[-1].startswith(' ')
      ):
        out.append('')
      out.append(line[: _indent(line) + 2] + escaped(line.lstrip()[2:]))
    else:
      out.append(escaped(line))
  return out


def _section(run, section):
  """Lines of a section: names of fields stay, their texts are words.

  Napoleon knows one result. Several that have names become a list, written as what
  napoleon would make of the section.
  """
  fields = [_FIELD.match(line) for line in run]
  several = section == 'Returns' and sum(map(bool, fields)) > 1
  out = []
  for line, field in zip(run, fields):
    if _SECTION.match(line):
      out.append(':returns:' if several else line)
    elif field and several:
      out.append(f'  - ``{field[1].strip(" :")}``: {escaped(field[2])}')
    elif field:
      name = field[1]
      name = name.replace('*', r'\*') if ',' in name else name
      out.append(name + escaped(field[2]))
    else:
      out.append(escaped(line))
  return out


def process(app, what, name, obj, options, lines):
  lines[:] = to_rst(lines)


def signature(app, what, name, obj, options, arguments, returns):
  """Defaults that a dataclass makes are written so that they can be read."""
  return (arguments or '').replace('<factory>', '...') or arguments, returns


def setup(app):
  app.connect('autodoc-process-signature', signature)
  # Before napoleon, which reads the sections.
  app.connect('autodoc-process-docstring', process, priority=100)
  return {'parallel_read_safe': True, 'parallel_write_safe': True}
