#!/usr/bin/env bash
# test.sh         what decides whether a change lands: lint, format, every test, the
#                 site, all of whose blocks run.
# test.sh docs    the site alone, which lies in docs/_build/html then.
# test.sh quick   what breaks first, in two minutes on two cores: imports, doctests,
#                 one model of the contract under every transform, tables of cases.
set -euo pipefail
cd "$(dirname "$0")"
ruff check .
ruff format --check .

# A warning fails the build, and so does a block that fails.
docs() { sphinx-build -W --keep-going -n -q -j 2 docs docs/_build/html; }

case "${1:-}" in
  '') pytest && docs ;;
  docs) docs ;;
  quick)
    exec pytest -k 'not ContractTest or (mlp and nnx)' \
      jaxopt_compress tests/layering_test.py tests/contract/contract_test.py \
      tests/core tests/pruning
    ;;
  *)
    echo "usage: $0 [quick|docs]" >&2
    exit 2
    ;;
esac
