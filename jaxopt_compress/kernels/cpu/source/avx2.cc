// AVX2; with -mavxvnni, its four-way byte products as well.

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cstring>

#include "heads.h"
#include "job.h"

namespace jaxopt_compress {
namespace {

struct V {
  using I = __m256i;
  using F = __m256;
  struct Numbers {
    __m256 low, high;
  };
  static constexpr int kLanes = 8;
  static constexpr int kMost = 3;
  static constexpr bool kExpands = false, kExpandsNarrow = false, kRounds = false;

  static I none() { return _mm256_setzero_si256(); }
  static I load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static void save(void* p, I x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x);
  }
  static I integers(int32_t x) { return _mm256_set1_epi32(x); }
  static I sum(I x, I y) { return _mm256_add_epi32(x, y); }
  static I less(I x, int32_t y) {
    return _mm256_sub_epi32(x, _mm256_set1_epi32(y));
  }
  static I four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
  static I dot(I acc, I u, I s) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(acc, u, s);
#else
    // Even and odd bytes separately, as 16-bit numbers: madd adds products in 32 bits.
    const I mask = _mm256_set1_epi16(0xff);
    const I even = _mm256_madd_epi16(_mm256_and_si256(u, mask),
                                     _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const I odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8),
                                    _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
#endif
  }
  static I field(I x, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(x, shift),
                            _mm256_set1_epi8(static_cast<char>(mask)));
  }
  static I join(I low, I high) {
    return _mm256_or_si256(low, _mm256_slli_epi16(high, 2));
  }
  static I table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I look_up(I table, I code) { return _mm256_shuffle_epi8(table, code); }
  static void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
    _mm_prefetch(static_cast<const char*>(p) + 64, _MM_HINT_T0);
  }

  static F all(float x) { return _mm256_set1_ps(x); }
  static F get(const float* p) { return _mm256_loadu_ps(p); }
  // The first n columns of a register, or all; zeros for the rest.
  static F get(const float* p, int n) {
    if (n >= kLanes) return get(p);
    float some[kLanes] = {};
    std::memcpy(some, p, 4 * n);
    return get(some);
  }
  static void put(float* p, F x) { _mm256_storeu_ps(p, x); }
  // The first n columns of a register, or all.
  static void put(float* p, F x, int n) {
    float all[kLanes];
    put(all, x);
    std::memcpy(p, all, 4 * (n < kLanes ? n : kLanes));
  }
  static F floats(I x) { return _mm256_cvtepi32_ps(x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F at_least(F floor, F y) { return _mm256_max_ps(floor, y); }
  static F at_most(F top, F y) { return _mm256_min_ps(top, y); }
  // p 2^(whole - 1), from -126, where that is 0.
  static F scaled(F p, F whole) {
    const I power = _mm256_add_epi32(_mm256_cvtps_epi32(whole), integers(126));
    return mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
  }
  static F where_negative(F x, F a, F b) { return _mm256_blendv_ps(b, a, x); }
  static F quotient(F a, F b) { return _mm256_div_ps(a, b); }
  static float lowest(F x) {
    float all[kLanes], low;
    put(all, x);
    low = all[0];
    for (int i = 1; i < kLanes; ++i) low = all[i] < low ? all[i] : low;
    return low;
  }
  static float highest(F x) { return -lowest(sub(V::all(0.0f), x)); }
  static bool has_nan(F x) {
    float all[kLanes], sum = 0.0f;
    put(all, x);
    for (int i = 0; i < kLanes; ++i) sum += all[i];
    return sum != sum;
  }

  static F nearest(F x) { return _mm256_round_ps(x, 8); }
  // 2^-n of a whole number n from -127 to 126; 0 of 127.
  static F halved(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_sub_epi32(_mm256_set1_epi32(127), _mm256_cvtps_epi32(n)), 23));
  }
  static float total(F x) {
    const __m128 half =
        _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static F from_halves(const char* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
        16));
  }
  static F from_bytes(const char* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static constexpr bool kTurns = false;

  static Numbers numbers(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
  }
  static F number(const Numbers& numbers, I raw, int shift) {
    const I code = _mm256_srli_epi32(raw, shift);
    // The top bit of the code chooses the half.
    const F choice = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(numbers.low, code),
                            _mm256_permutevar8x32_ps(numbers.high, code), choice);
  }
};

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
#if defined(__AVXVNNI__)
  unsigned a, b, c, d;
  const bool vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
  const bool vnni = true;
#endif
  return vnni && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

#if defined(__AVXVNNI__)
const Path kAvxVnni = {"avx-vnni", here, tiles, workspace, prepare_rows,
    multiply, prepare_image, gather, slide, depthwise, float_conv,
    attention_workspace, attend, find, merge};
#else
const Path kAvx2 = {"avx2", here, tiles, workspace, prepare_rows,
    multiply, prepare_image, gather, slide, depthwise, float_conv,
    attention_workspace, attend, find, merge};
#endif

}  // namespace jaxopt_compress

#endif
