"""The site: sphinx-build -W --keep-going -j 2 docs docs/_build/html"""

import hashlib
import os
import pathlib
import sys

_HERE = pathlib.Path(__file__).parent
_ROOT = _HERE.parent
sys.path[:0] = [str(_HERE / 'extensions'), str(_ROOT)]

# What runs the pages: this checkout, on four simulated devices, compiled quickly.
os.environ['PYTHONPATH'] = os.pathsep.join(
  [str(_ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
)
os.environ['PATH'] = os.pathsep.join(
  [str(pathlib.Path(sys.executable).parent), os.environ['PATH']]
)
# extensions/kernels/page starts it: without a notice on the terminal for each page, nor
# the warning of jc.pack where no kernels were built, as pages are built there, too.
os.environ['JUPYTER_PATH'] = str(_HERE / 'extensions')
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['IPYKERNEL_CELL_NAME'] = 'page.py'  # in what errors say
os.environ['XLA_FLAGS'] = ' '.join(
  [
    '--xla_force_host_platform_device_count=4',
    '--xla_backend_optimization_level=0',
  ]
)

project = 'jaxopt_compress'
author = 'The jaxopt_compress authors'
copyright = author
extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
  'sphinx_design',
  'sphinx_copybutton',
  'sphinxcontrib.katex',
  'blocks',
  'docstrings',
  'api',
  'gallery',
]
exclude_patterns = ['_build', 'extensions', 'static']

# Every block runs; an error or a word on stderr is a warning, which is fatal.
nb_custom_formats = {'.md': ['blocks.read', {}, False]}
nb_execution_mode = 'force'
# tests/colabs_test.py runs the notebooks; the site shows what they were kept with.
nb_execution_excludepatterns = ['gallery/*']
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_output_stderr = 'remove-warn'
nb_merge_streams = True
nb_ipywidgets_js = {}

autodoc_member_order = 'bysource'
napoleon_use_ivar = True
autodoc_typehints_format = 'short'
# A field of a class is looked for by its bare name, which others may have, too.
suppress_warnings = ['ref.python']
# Only our own names have pages here; links to other libraries would need a network.
nitpick_ignore_regex = [(r'py:.*', r'(?!jaxopt_compress).*')]

myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3

html_theme = 'furo'
html_title = 'jaxopt_compress'
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source = False
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True
# KaTeX writes MathML, which browsers draw without its fonts: no network.
katex_css_path = 'katex-math.css'
katex_options = "output: 'mathml', throwOnError: true"


def _library():
  """A digest of what pages run on: where it changes, all of them run again."""
  paths = sorted((_ROOT / 'jaxopt_compress').rglob('*'))
  paths += sorted((_HERE / 'extensions').glob('*.py'))
  digest = hashlib.sha256()
  for path in paths:
    if path.suffix in ('.py', '.so', '.cc', '.h'):
      digest.update(path.read_bytes())
  return digest.hexdigest()


def _forget(app, error):
  """A page is read once, and warns then: a build that warned must not be kept."""
  if app._warncount and not error:
    (app.doctreedir / 'environment.pickle').unlink(missing_ok=True)


def setup(app):
  app.add_config_value('library', _library(), 'env')
  app.connect('build-finished', _forget)
