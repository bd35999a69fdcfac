// NEON with the dot product of ARMv8.2.

#if defined(__aarch64__)

#include <arm_neon.h>
#include <sys/auxv.h>

#include <cstring>

#include "heads.h"
#include "job.h"

namespace jaxopt_compress {
namespace {

struct V {
  using I = int32x4_t;
  using F = float32x4_t;
  struct Numbers {
    const float* p;
  };
  static constexpr int kLanes = 4;
  static constexpr int kMost = 3;
  static constexpr bool kExpands = false, kExpandsNarrow = false, kRounds = false;

  static I none() { return vdupq_n_s32(0); }
  static I load(const void* p) {
    return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  static void save(void* p, I x) {
    vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(x));
  }
  static I integers(int32_t x) { return vdupq_n_s32(x); }
  static I sum(I x, I y) { return vaddq_s32(x, y); }
  static I less(I x, int32_t y) { return vsubq_s32(x, vdupq_n_s32(y)); }
  static I four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return vdupq_n_s32(x);
  }
  // Codes are unsigned, but there are only signed products: u = 128 + v, and the 128
  // times each of the four signed bytes are added separately.
  static I dot(I acc, I u, I s) {
    const int8x16_t v = vreinterpretq_s8_u8(
        veorq_u8(vreinterpretq_u8_s32(u), vdupq_n_u8(128)));
    const int8x16_t x = vreinterpretq_s8_s32(s);
    acc = vdotq_s32(acc, v, x);
    const int8x16_t half = vdupq_n_s8(64);
    acc = vdotq_s32(acc, half, x);
    return vdotq_s32(acc, half, x);
  }
  static I field(I x, int shift, int mask) {
    const uint8x16_t bytes =
        vshlq_u8(vreinterpretq_u8_s32(x), vdupq_n_s8(static_cast<int8_t>(-shift)));
    return vreinterpretq_s32_u8(vandq_u8(bytes, vdupq_n_u8(mask)));
  }
  static I join(I low, I high) {
    return vorrq_s32(low, vreinterpretq_s32_u8(
                              vshlq_n_u8(vreinterpretq_u8_s32(high), 2)));
  }
  static I table(const uint8_t* p) { return load(p); }
  static I look_up(I table, I code) {
    return vreinterpretq_s32_u8(
        vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(code)));
  }
  static void prefetch(const void* p) { __builtin_prefetch(p); }

  static F all(float x) { return vdupq_n_f32(x); }
  static F get(const float* p) { return vld1q_f32(p); }
  // The first n columns of a register, or all; zeros for the rest.
  static F get(const float* p, int n) {
    if (n >= kLanes) return get(p);
    float some[kLanes] = {};
    std::memcpy(some, p, 4 * n);
    return get(some);
  }
  static void put(float* p, F x) { vst1q_f32(p, x); }
  // The first n columns of a register, or all.
  static void put(float* p, F x, int n) {
    float all[kLanes];
    put(all, x);
    std::memcpy(p, all, 4 * (n < kLanes ? n : kLanes));
  }
  static F floats(I x) { return vcvtq_f32_s32(x); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F at_least(F floor, F y) { return vmaxq_f32(floor, y); }
  static F at_most(F top, F y) { return vminq_f32(top, y); }
  // p 2^(whole - 1), from -126, where that is 0.
  static F scaled(F p, F whole) {
    const I power = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(126));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(power, 23)));
  }
  static F where_negative(F x, F a, F b) {
    return vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(x)), a, b);
  }
  static F quotient(F a, F b) { return vdivq_f32(a, b); }
  static float lowest(F x) { return vminvq_f32(x); }
  static float highest(F x) { return vmaxvq_f32(x); }
  static bool has_nan(F x) { return vminvq_u32(vceqq_f32(x, x)) == 0; }

  static F nearest(F x) { return vrndnq_f32(x); }
  // 2^-n of a whole number n from -127 to 126; 0 of 127.
  static F halved(F n) {
    return vreinterpretq_f32_s32(
        vshlq_n_s32(vsubq_s32(vdupq_n_s32(127), vcvtq_s32_f32(n)), 23));
  }
  static float total(F x) { return vaddvq_f32(x); }
  static F from_halves(const char* p) {
    return vreinterpretq_f32_u32(
        vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
  }
  static F from_bytes(const char* p) {
    int8_t x[8] = {};
    std::memcpy(x, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(x)))));
  }
  static constexpr bool kTurns = false;

  static Numbers numbers(const float* p) { return {p}; }
  static F number(const Numbers& numbers, I raw, int shift) {
    uint32_t codes[4];
    vst1q_s32(reinterpret_cast<int32_t*>(codes), raw);
    float out[4];
    for (int i = 0; i < 4; ++i) out[i] = numbers.p[codes[i] >> shift & 15];
    return vld1q_f32(out);
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

bool here() { return getauxval(AT_HWCAP) & (1 << 20); }  // HWCAP_ASIMDDP

}  // namespace

const Path kNeonDot = {"neon-dotprod", here, tiles, workspace, prepare_rows,
    multiply, prepare_image, gather, slide, depthwise, float_conv,
    attention_workspace, attend, find, merge};

}  // namespace jaxopt_compress

#endif
