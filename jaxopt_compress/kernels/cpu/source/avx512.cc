// AVX-512 with VNNI; with -mavx512vbmi2, its expansion of bytes as well.

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cstring>

#include "heads.h"
#include "job.h"

namespace jaxopt_compress {
namespace {

#include "lanes512.h"
#include "rows.h"
#include "tile.h"
#include "pixels.h"
#include "gather.h"
#include "slide.h"
#include "depthwise.h"
#include "floats.h"
#include "attention.h"
#include "decode.h"

bool here() {
  return __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") &&
#if defined(__AVX512VBMI2__)
         __builtin_cpu_supports("avx512vbmi2") &&
#endif
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

#if defined(__AVX512VBMI2__)
const Path kAvx512Vbmi2 = {"avx512-vbmi2", here, tiles, workspace, prepare_rows,
    multiply, prepare_image, gather, slide, depthwise, float_conv,
    attention_workspace, attend, find, merge};
#else
const Path kAvx512Vnni = {"avx512-vnni", here, tiles, workspace, prepare_rows,
    multiply, prepare_image, gather, slide, depthwise, float_conv,
    attention_workspace, attend, find, merge};
#endif

}  // namespace jaxopt_compress

#endif
