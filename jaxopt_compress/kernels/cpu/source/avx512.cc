// AVX-512 with VNNI.

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cstring>

#include "job.h"

namespace jaxopt_compress {
namespace {

#include "rows.h"

#include "lanes512.h"
#include "tile.h"

bool here() {
  return __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Path kAvx512Vnni = {"avx512-vnni", here,         tiles,   workspace,
                          prepare_rows,  multiply};

}  // namespace jaxopt_compress

#endif
