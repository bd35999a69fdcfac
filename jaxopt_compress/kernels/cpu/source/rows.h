// Rows of x to codes. Plain loops, which each instruction path compiles for itself.
//
// Included inside the unnamed namespace of a path.

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;  // NaN
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// A row of x as floats: itself, or converted into `room`.
inline const float* floats_of(const Job& job, const void* x, int64_t row,
                              float* room) {
  if (job.x_type == Type::kF32) {
    return static_cast<const float*>(x) + row * job.k;
  }
  const uint16_t* from = static_cast<const uint16_t*>(x) + row * job.k;
  for (int64_t i = 0; i < job.k; ++i) room[i] = from_bf16(from[i]);
  return room;
}

#include "norm.h"

// The largest magnitude of a row; NaN or infinity where there is one.
inline float largest(const float* x, int64_t k) {
  int32_t most = 0;
  for (int64_t i = 0; i < k; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float m;
  std::memcpy(&m, &most, 4);
  return m;
}

inline bool finite(float x) { return x - x == 0.0f; }

constexpr float kTiny = 1.17549435e-38f;

// What a range is made from: the largest magnitude, which is NaN or infinity if there
// is one; and, if codes have zero points, the least and the largest number or zero.
struct Extent {
  float most = 0.0f, low = 0.0f, high = 0.0f;
};

// Adds `n` numbers to an extent. NaN stays.
inline void extend(const Job& job, const float* x, int64_t n, Extent& extent) {
  const float most = largest(x, n);
  if (extent.most == extent.most && !(most <= extent.most)) extent.most = most;
  if (job.symmetric || job.act != Act::kDynamic) return;
  float low = extent.low, high = extent.high;
  for (int64_t i = 0; i < n; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  extent.low = low;
  extent.high = high;
}

struct Range {
  float scale, zero;
  bool bad;  // there is a NaN or an infinity, so all products are NaN
};

// The same as jaxopt_compress/quantization/scales.py computes.
inline Range range_of(const Job& job, const Item& item, const Extent& extent) {
  const float m = extent.most;
  if (job.act == Act::kStatic) {
    if (!finite(item.act_zero)) return {1.0f, 0.0f, true};
    return {item.act_scale, item.act_zero, m != m};
  }
  if (!finite(m)) return {1.0f, 0.0f, true};
  if (job.act == Act::kFloat) {
    // Codes stay below 127 * 2^(8 (digits - 1)), rounding included.
    const float scale = m * (1.0f / (job.digits == 3 ? 8323000.0f : 32500.0f));
    return {scale > kTiny ? scale : kTiny, 0.0f, false};
  }
  float reach = m, center = 0.0f;
  if (!job.symmetric) {
    reach = (extent.high - extent.low) * 0.5f;
    center = (extent.high + extent.low) * 0.5f;
  }
  float scale = reach * (1.0f / job.bound);
  scale = scale > kTiny ? scale : kTiny;
  if (job.symmetric) return {scale, 0.0f, false};
  float zero = (job.high + job.low) * 0.5f - center * (1.0f / scale);
  zero = __builtin_nearbyintf(zero);
  zero = zero < job.low ? job.low : zero > job.high ? job.high : zero;
  return {scale, zero, false};
}

// Rounds to even. Clang does not know the builtin.
inline int32_t nearest(float x) {
#if defined(__clang__)
  return static_cast<int32_t>(__builtin_rintf(x));
#else
  return __builtin_irintf(x);  // one instruction
#endif
}

// Codes of x / scale; low, high and zero are whole numbers. x ends half a code outside
// of its own range at most, and however far outside of one that was given.
template <bool kOwn>
inline void round_row(const float* x, int64_t k, float inverse, float zero,
                      float low, float high, int8_t* out) {
  const float least = low - zero, most = high - zero;
  const int32_t first = static_cast<int32_t>(low), last = static_cast<int32_t>(high);
  const int32_t shift = static_cast<int32_t>(zero);
  for (int64_t i = 0; i < k; ++i) {
    float v = x[i] * inverse;
    if constexpr (!kOwn) {
      v = v > least ? v : least;
      v = v < most ? v : most;
    }
    int32_t q = nearest(v) + shift;
    if constexpr (kOwn) {  // as integers, which is quicker
      q = q > first ? q : first;
      q = q < last ? q : last;
    }
    out[i] = static_cast<int8_t>(q);
  }
}

// Digits of x / scale, which is at most 127 * 2^(8 (digits - 1)).
inline void digits_row(const float* x, int64_t k, float inverse, int digits,
                       int8_t* const* out) {
  if (digits == 3) {
    int8_t *a = out[0], *b = out[1], *c = out[2];
    for (int64_t i = 0; i < k; ++i) {
      const int32_t q = nearest(x[i] * inverse);
      const int32_t q1 = (q + 128) >> 8, q0 = (q1 + 128) >> 8;
      a[i] = static_cast<int8_t>(q0);
      b[i] = static_cast<int8_t>(q1 - q0 * 256);
      c[i] = static_cast<int8_t>(q - q1 * 256);
    }
  } else {
    int8_t *a = out[0], *b = out[1];
    for (int64_t i = 0; i < k; ++i) {
      const int32_t q = nearest(x[i] * inverse);
      const int32_t q0 = (q + 128) >> 8;
      a[i] = static_cast<int8_t>(q0);
      b[i] = static_cast<int8_t>(q - q0 * 256);
    }
  }
}

// Codes of `n` numbers, or their digits.
inline void codes_of(const Job& job, const Range& range, const float* x,
                     int64_t n, int8_t* const* out) {
  if (range.bad) {
    for (int d = 0; d < job.digits; ++d) std::memset(out[d], 0, n);
  } else if (job.act == Act::kFloat) {
    digits_row(x, n, 1.0f / range.scale, job.digits, out);
  } else {
    const auto round =
        job.act == Act::kDynamic ? &round_row<true> : &round_row<false>;
    round(x, n, 1.0f / range.scale, range.zero, job.low, job.high, out[0]);
  }
}

// Entries of rows that are placed at once, so that the lines they go to stay in cache.
constexpr int64_t kPlaced = 512;

// Entries from to from + n of a row of codes, to where a tile has entry `to` on.
inline void place(const Tiles& t, const int8_t* row, int64_t from, int64_t n,
                  int64_t to, int64_t slot, int8_t* codes) {
  const int64_t chunk = t.chunk;
  if (chunk == 4) {
    int8_t* out = codes + to * t.size + slot * 4;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) std::memcpy(out + i * t.size, row + from + i, 4);
    if (i < n) std::memcpy(out + i * t.size, row + from + i, n - i);
    return;
  }
  // Chunk by chunk; the first may already be filled in part.
  int64_t inside = to % chunk;
  int8_t* out = codes + (to - inside) * t.size + slot * chunk;
  for (int64_t i = 0; i < n; inside = 0, out += chunk * t.size) {
    const int64_t run = n - i < chunk - inside ? n - i : chunk - inside;
    if (run == 64) {  // the largest chunk: its length is known, so it is one move
      std::memcpy(out, row + from + i, 64);
    } else {
      std::memcpy(out + inside, row + from + i, run);
    }
    i += run;
  }
}

// Writes rows of codes into a tile, group by group, and adds up each group. If a group
// ends before its last unit does, the rest of that unit is not written.
inline void place_rows(const Job& job, const Tiles& t, const int8_t* const* rows,
                       int64_t count, int8_t* codes, int32_t* sums) {
  const int64_t width = job.group_steps() * kSteps;
  for (int64_t g = 0; g < job.groups; ++g) {
    const int64_t begin = g * job.group, left = job.k - begin;
    const int64_t n = job.groups > 1 && job.group < left ? job.group : left;
    for (int64_t i = 0; i < n; i += kPlaced) {
      const int64_t run = n - i < kPlaced ? n - i : kPlaced;
      for (int64_t slot = 0; slot < count; ++slot) {
        place(t, rows[slot], begin + i, run, g * width + i, slot, codes);
      }
    }
    for (int64_t slot = 0; slot < count; ++slot) {
      const int8_t* row = rows[slot] + begin;
      int32_t sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += row[i];
      sums[g * t.size + slot] = sum;
    }
  }
}

constexpr int kMostRows = 32;  // of codes, in a tile

// A row of floats, and the codes of a tile one row after the other.
inline int64_t rows_workspace(const Job& job, const Tiles& t) {
  return (job.k + 64) * (4 + t.size);
}

// Makes the codes of one tile of rows.
void prepare(const Job& job, const Tiles& t, const Item& item, int64_t tile,
             char* workspace) {
  const int64_t each = t.used / job.digits, first = tile * each;
  int8_t* codes = item.codes + tile * t.codes();
  int32_t* sums = item.sums + tile * job.groups * t.size;
  float* scales = item.scales + tile * t.size;
  float* zeros = item.zeros + tile * t.size;
  float* room = reinterpret_cast<float*>(workspace);
  int8_t* made = reinterpret_cast<int8_t*>(room + job.k + 64);
  const int8_t* slots[kMostRows];
  const int64_t rows = rows_in(job, t, tile);
  // Rows past the last and the ends of groups are zeros.
  if (rows * job.digits < t.size || t.chunks * t.chunk != job.k) {
    std::memset(codes, 0, t.codes());
    std::memset(sums, 0, sizeof(int32_t) * job.groups * t.size);
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (job.act == Act::kCodes) {
      slots[r] = static_cast<const int8_t*>(item.x) + (first + r) * job.k;
      continue;
    }
    int8_t* digits[3] = {nullptr, nullptr, nullptr};
    for (int d = 0; d < job.digits; ++d) {
      digits[d] = made + (r * job.digits + d) * (job.k + 64);
      slots[r * job.digits + d] = digits[d];
    }
    const float* x = row_of(job, item, first + r, room);
    Extent extent;
    extend(job, x, job.k, extent);
    const Range range = range_of(job, item, extent);
    codes_of(job, range, x, job.k, digits);
    scales[r] = range.bad ? __builtin_nanf("") : range.scale;
    zeros[r] = range.zero;
  }
  place_rows(job, t, slots, rows * job.digits, codes, sums);
}
