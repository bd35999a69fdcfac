// Plain C++, for machines without the instructions of the other paths.

#include <cstring>

#include "heads.h"
#include "job.h"

namespace jaxopt_compress {
namespace {

// Vector types of GCC and Clang, which compile to whatever registers there are.
typedef int32_t Integers __attribute__((vector_size(16)));
typedef uint32_t Unsigned __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

struct V {
  using I = Integers;
  using F = Floats;
  using Numbers = const float*;
  static constexpr int kLanes = 4;
  static constexpr int kMost = 3;
  static constexpr bool kExpands = false, kExpandsNarrow = false, kRounds = false;

  static I none() { return integers(0); }
  static I load(const void* p) {
    I x;
    std::memcpy(&x, p, 16);
    return x;
  }
  static void save(void* p, I x) { std::memcpy(p, &x, 16); }
  static I integers(int32_t x) { return I{x, x, x, x}; }
  // Unsigned, so that sums wrap as those of the other paths do.
  static I sum(I x, I y) {
    return reinterpret_cast<I>(reinterpret_cast<Unsigned>(x) +
                               reinterpret_cast<Unsigned>(y));
  }
  static I less(I x, int32_t y) {
    return reinterpret_cast<I>(reinterpret_cast<Unsigned>(x) -
                               reinterpret_cast<Unsigned>(integers(y)));
  }
  static I four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return integers(x);
  }
  static I dot(I acc, I u, I s) {
    Unsigned sum = reinterpret_cast<Unsigned>(acc);
    for (int j = 0; j < 4; ++j) {
      const I a = (u >> (8 * j)) & 255;
      const I b =
          reinterpret_cast<I>(reinterpret_cast<Unsigned>(s) << (24 - 8 * j)) >> 24;
      sum += reinterpret_cast<Unsigned>(a * b);
    }
    return reinterpret_cast<I>(sum);
  }
  static I field(I x, int shift, int mask) {
    return (x >> shift) & (0x01010101 * mask);
  }
  static I join(I low, I high) { return low | (high << 2); }
  static I table(const uint8_t* p) { return load(p); }
  static I look_up(I table, I code) {
    uint8_t entries[16], codes[16], out[16];
    save(entries, table);
    save(codes, code);
    for (int i = 0; i < 16; ++i) out[i] = entries[codes[i] & 15];
    return load(out);
  }
  static void prefetch(const void*) {}

  static F all(float x) { return F{x, x, x, x}; }
  static F get(const float* p) {
    F x;
    std::memcpy(&x, p, 16);
    return x;
  }
  // The first n columns of a register, or all; zeros for the rest.
  static F get(const float* p, int n) {
    if (n >= kLanes) return get(p);
    float some[kLanes] = {};
    std::memcpy(some, p, 4 * n);
    return get(some);
  }
  static void put(float* p, F x) { std::memcpy(p, &x, 16); }
  // The first n columns of a register, or all.
  static void put(float* p, F x, int n) {
    float all[kLanes];
    put(all, x);
    std::memcpy(p, all, 4 * (n < kLanes ? n : kLanes));
  }
  static F floats(I x) { return __builtin_convertvector(x, F); }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F mul(F a, F b) { return a * b; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F at_least(F floor, F y) { return y < floor ? floor : y; }
  static F at_most(F top, F y) { return y > top ? top : y; }
  // p 2^(whole - 1), from -126, where that is 0.
  static F scaled(F p, F whole) {
    return p * reinterpret_cast<F>(__builtin_convertvector(whole + 126.0f, I) << 23);
  }
  static F where_negative(F x, F a, F b) {
    return reinterpret_cast<I>(x) < 0 ? a : b;
  }
  static F quotient(F a, F b) { return a / b; }
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

  static F nearest(F x) {
    return F{__builtin_nearbyintf(x[0]), __builtin_nearbyintf(x[1]),
             __builtin_nearbyintf(x[2]), __builtin_nearbyintf(x[3])};
  }
  // 2^-n of a whole number n from -127 to 126; 0 of 127, and of NaN.
  static F halved(F n) {
    const F known = n == n ? n : F{} + 127.0f;
    return reinterpret_cast<F>((127 - __builtin_convertvector(known, I)) << 23);
  }
  static float total(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static F from_halves(const char* p) {
    uint16_t x[4];
    std::memcpy(x, p, 8);
    return reinterpret_cast<F>(Unsigned{x[0], x[1], x[2], x[3]} << 16);
  }
  static F from_bytes(const char* p) {
    int8_t x[4];
    std::memcpy(x, p, 4);
    return F{static_cast<float>(x[0]), static_cast<float>(x[1]),
             static_cast<float>(x[2]), static_cast<float>(x[3])};
  }
  static constexpr bool kTurns = false;

  static Numbers numbers(const float* p) { return p; }
  static F number(Numbers numbers, I raw, int shift) {
    const I code = (raw >> shift) & 15;
    return F{numbers[code[0]], numbers[code[1]], numbers[code[2]], numbers[code[3]]};
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

bool here() { return true; }

}  // namespace

const Path kPortable = {"portable", here, tiles, workspace, prepare_rows,
    multiply, prepare_image, gather, slide, depthwise, float_conv,
    attention_workspace, attend, find, merge};

}  // namespace jaxopt_compress
