#!/bin/bash
# Builds the CPU kernels with AddressSanitizer and UBSan and calls them with random
# shapes: an access outside of an operand, or undefined arithmetic, ends it.
#
#   tests/kernels/sanitize.sh     500 examples of each test, in about six minutes
#   EXAMPLES=5000 tests/kernels/sanitize.sh
#   tests/kernels/sanitize.sh tests/kernels/cpu/conv_test.py     other tests
#
# Leaks are not looked for: Python and XLA keep what they allocate.

set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

checks='-fsanitize=address,undefined'
CXXFLAGS="$checks -fno-sanitize-recover=undefined -fno-wrapv -g1 -O1 -w" LDFLAGS=$checks \
  "$python" setup.py -q build_ext --build-lib "$folder" --build-temp "$folder"
library=$(find "$folder" -name '_kernels*.so')
if [ -z "$library" ]; then
  echo 'The kernels were not built: see above.' >&2
  exit 1
fi

# The sanitizer comes first of all; it finds what throws only if that is there.
g=${CXX:-g++}
preload="$($g -print-file-name=libasan.so) $($g -print-file-name=libstdc++.so)"
export JAXOPT_COMPRESS_KERNELS=$library
export JAXOPT_COMPRESS_EXAMPLES=${EXAMPLES:-500}
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
[ $# -gt 0 ] || set -- tests/kernels/cpu/fuzz_test.py \
  tests/kernels/cpu/fuzz_conv_test.py tests/kernels/cpu/fuzz_attention_test.py
LD_PRELOAD=$preload "$python" -m pytest -n0 -q -s "$@"
