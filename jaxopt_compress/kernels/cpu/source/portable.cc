// C++ and nothing else.

#include <cstring>

#include "job.h"

namespace jaxopt_compress {
namespace {

#include "rows.h"

struct V {
  struct I {
    int32_t x[4];
  };
  struct F {
    float x[4];
  };
  using Numbers = const float*;
  static constexpr int kLanes = 4;
  static constexpr int kMost = 4;
  static constexpr bool kExpands = false, kExpandsNarrow = false;

  template <typename T, typename Each>
  static T each(Each one) {
    T out;
    for (int i = 0; i < 4; ++i) out.x[i] = one(i);
    return out;
  }
  static I none() { return integers(0); }
  static I load(const void* p) {
    I out;
    std::memcpy(out.x, p, 16);
    return out;
  }
  static void save(void* p, I x) { std::memcpy(p, x.x, 16); }
  static I integers(int32_t x) {
    return each<I>([=](int) { return x; });
  }
  static I less(I x, int32_t y) {
    return each<I>([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(x.x[i]) -
                                  static_cast<uint32_t>(y));
    });
  }
  static I four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return integers(x);
  }
  static I dot(I acc, I u, I s) {
    uint8_t a[16];
    int8_t b[16];
    std::memcpy(a, u.x, 16);
    std::memcpy(b, s.x, 16);
    // Sums of unsigned numbers: they wrap as those of the other paths do.
    return each<I>([&](int i) {
      uint32_t sum = static_cast<uint32_t>(acc.x[i]);
      for (int j = 4 * i; j < 4 * i + 4; ++j) {
        sum += static_cast<uint32_t>(a[j] * b[j]);
      }
      return static_cast<int32_t>(sum);
    });
  }
  static I field(I x, int shift, int mask) {
    const uint32_t masks = 0x01010101u * static_cast<uint32_t>(mask);
    return each<I>([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(x.x[i]) >> shift & masks);
    });
  }
  static I join(I low, I high) {
    return each<I>([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(low.x[i]) |
                                  static_cast<uint32_t>(high.x[i]) << 2);
    });
  }
  static I table(const uint8_t* p) { return load(p); }
  static I look_up(I table, I code) {
    uint8_t entries[16], codes[16], out[16];
    std::memcpy(entries, table.x, 16);
    std::memcpy(codes, code.x, 16);
    for (int i = 0; i < 16; ++i) out[i] = entries[codes[i] & 15];
    return load(out);
  }
  static void prefetch(const void*) {}

  static F all(float x) {
    return each<F>([=](int) { return x; });
  }
  static F get(const float* p) {
    return each<F>([=](int i) { return p[i]; });
  }
  static void put(float* p, F x) { std::memcpy(p, x.x, 16); }
  static F floats(I x) {
    return each<F>([&](int i) { return static_cast<float>(x.x[i]); });
  }
  static F fma(F a, F b, F c) {
    return each<F>([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
  }
  static F mul(F a, F b) {
    return each<F>([&](int i) { return a.x[i] * b.x[i]; });
  }
  static F add(F a, F b) {
    return each<F>([&](int i) { return a.x[i] + b.x[i]; });
  }
  static F sub(F a, F b) {
    return each<F>([&](int i) { return a.x[i] - b.x[i]; });
  }

  static Numbers numbers(const float* p) { return p; }
  static F number(Numbers numbers, I raw, int shift) {
    return each<F>([&](int i) {
      return numbers[static_cast<uint32_t>(raw.x[i]) >> shift & 15];
    });
  }
};

#include "tile.h"
#include "pixels.h"
#include "depthwise.h"

bool here() { return true; }

}  // namespace

const Path kPortable = {"portable",   here,    tiles, workspace,
                        prepare_rows, multiply, prepare_image, gather, depthwise};

}  // namespace jaxopt_compress
