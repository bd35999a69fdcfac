#!/usr/bin/env bash
# test.sh         what decides whether a change lands: lint, format, every test.
# test.sh quick   what breaks first, in two minutes on two cores: imports, doctests,
#                 one model of the contract under every transform, tables of cases.
set -euo pipefail
cd "$(dirname "$0")"
ruff check .
ruff format --check .

case "${1:-}" in
  '') exec pytest ;;
  quick)
    exec pytest -k 'not ContractTest or (mlp and nnx)' \
      jaxopt_compress tests/layering_test.py tests/contract/contract_test.py \
      tests/core tests/pruning
    ;;
  *)
    echo "usage: $0 [quick]" >&2
    exit 2
    ;;
esac
