// Rows of x to codes. A row is read once for its range, and once more, from the cache,
// for its codes, which go to where the tile has them.
//
// Included inside the unnamed namespace of a path, after `V`. What `V` does not do
// itself, whole rounding of 64 numbers and the interleaving of rows, are plain loops.

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

// The least and the largest of `n` numbers and those of an extent. Several registers are
// compared in turn, so that no comparison waits for the last. A NaN or an infinity makes
// the sum of all numbers times zero NaN, which costs less than looking for it.
inline void extend_both(const float* x, int64_t n, Extent& extent) {
  constexpr int kEach = 4, kStep = kEach * V::kLanes;
  float low = extent.low, high = extent.high, none = 0.0f;
  int64_t i = 0;
  if (n >= kStep) {
    const typename V::F zero = V::all(0.0f);
    typename V::F lows[kEach], highs[kEach], nones[kEach];
    for (int j = 0; j < kEach; ++j) lows[j] = highs[j] = nones[j] = zero;
    for (; i + kStep <= n; i += kStep) {
#pragma GCC unroll 4
      for (int j = 0; j < kEach; ++j) {
        const typename V::F v = V::get(x + i + j * V::kLanes);
        lows[j] = V::at_most(v, lows[j]);
        highs[j] = V::at_least(v, highs[j]);
        nones[j] = V::fma(v, zero, nones[j]);
      }
    }
    for (int j = 1; j < kEach; ++j) {
      lows[0] = V::at_most(lows[0], lows[j]);
      highs[0] = V::at_least(highs[0], highs[j]);
      nones[0] = V::add(nones[0], nones[j]);
    }
    lows[0] = V::at_most(V::all(low), lows[0]);
    highs[0] = V::at_least(V::all(high), highs[0]);
    low = V::lowest(lows[0]);
    high = V::highest(highs[0]);
    none = V::has_nan(nones[0]) ? __builtin_nanf("") : 0.0f;
  }
  for (; i < n; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    none += x[i] * 0.0f;
  }
  extent.low = low;
  extent.high = high;
  const float most = high > -low ? high : -low;
  extent.most = none == 0.0f && extent.most == extent.most ? most : __builtin_nanf("");
}

// Adds `n` numbers to an extent. NaN stays.
inline void extend(const Job& job, const float* x, int64_t n, Extent& extent) {
  if (!job.symmetric && job.act == Act::kDynamic) return extend_both(x, n, extent);
  const float most = largest(x, n);
  if (extent.most == extent.most && !(most <= extent.most)) extent.most = most;
}

struct Range {
  float scale, zero;
  bool bad;  // all products are NaN: an entry is, or infinite, or no code stands for 0
};

// The same as jaxopt_compress/quantization/scales.py computes.
inline Range range_of(const Job& job, const Item& item, const Extent& extent) {
  const float m = extent.most;
  if (job.act == Act::kStatic) {
    // What is no whole number of eight bits does not convert to a code, and each path
    // would do otherwise. It may lie outside of the codes that are used.
    const float zero = item.act_zero;
    const bool code =
        zero >= -128.0f && zero <= 127.0f && zero == __builtin_nearbyintf(zero);
    if (!code) return {1.0f, 0.0f, true};
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
    // Halves first: the difference of two large numbers is infinite.
    const float low = extent.low * 0.5f, high = extent.high * 0.5f;
    reach = high - low;
    center = high + low;
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
inline void round_some(const float* x, int64_t n, float inverse, float zero,
                       float low, float high, int8_t* out) {
  const float least = low - zero, most = high - zero;
  const int32_t first = static_cast<int32_t>(low), last = static_cast<int32_t>(high);
  const int32_t shift = static_cast<int32_t>(zero);
  for (int64_t i = 0; i < n; ++i) {
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

// The same, 64 by 64 where `V` does that; `step` bytes from 64 codes to the next.
template <bool kOwn, typename W = V>
inline void round_row(const float* x, int64_t n, float inverse, float zero, float low,
                      float high, int64_t step, int8_t* out) {
  int64_t i = 0;
  if constexpr (W::kRounds) {
    const typename W::Grid grid(inverse, zero, low, high);
    for (; i + 64 <= n; i += 64, out += step) {
      W::save(out, W::template codes<kOwn>(x + i, grid));
    }
  }
  for (; i < n; i += 64, out += step) {
    const int64_t run = n - i < 64 ? n - i : 64;
    round_some<kOwn>(x + i, run, inverse, zero, low, high, out);
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

// Codes of `n` numbers, or their digits. `step` is from 64 codes to the next; digits
// follow each other.
inline void codes_of(const Job& job, const Range& range, const float* x, int64_t n,
                     int8_t* const* out, int64_t step = 64) {
  if (range.bad && step == 64) {
    for (int d = 0; d < job.digits; ++d) std::memset(out[d], 0, n);
  } else if (range.bad) {
    int8_t* to = out[0];
    for (int64_t i = 0; i < n; i += 64, to += step) {
      std::memset(to, 0, n - i < 64 ? n - i : 64);
    }
  } else if (job.act == Act::kFloat) {
    digits_row(x, n, 1.0f / range.scale, job.digits, out);
  } else {
    const auto round =
        job.act == Act::kDynamic ? &round_row<true> : &round_row<false>;
    round(x, n, 1.0f / range.scale, range.zero, job.low, job.high, step, out[0]);
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

// The sum of `n` codes, `step` bytes from 64 of them to the next.
inline int32_t sum_of(const int8_t* codes, int64_t n, int64_t step = 64) {
  constexpr int kEach = 64 / (V::kLanes * kSteps);
  const typename V::I ones = V::integers(0x01010101);
  typename V::I sums[kEach];
  for (int j = 0; j < kEach; ++j) sums[j] = V::integers(0);
  int64_t i = 0;
  for (; i + 64 <= n; i += 64, codes += step) {
#pragma GCC unroll 4
    for (int j = 0; j < kEach; ++j) {
      sums[j] = V::dot(sums[j], ones, V::load(codes + j * V::kLanes * kSteps));
    }
  }
  for (int j = 1; j < kEach; ++j) sums[0] = V::sum(sums[0], sums[j]);
  int32_t all[V::kLanes];
  V::save(all, sums[0]);
  int32_t sum = 0;
  for (int j = 0; j < V::kLanes; ++j) sum += all[j];
  for (; i < n; ++i) sum += *codes++;
  return sum;
}

// So many rows are interleaved by `V`; fewer are as quickly copied four by four.
constexpr int64_t kInterleaved = 5;

// Entries from `from` to from + n of rows of codes, to where a tile has entry `to` on.
template <typename W = V>
inline void place_all(const Tiles& t, const int8_t* const* rows, int64_t count,
                      int64_t from, int64_t n, int64_t to, int8_t* codes) {
  int64_t i = 0;
  if constexpr (W::kRounds) {
    if (t.chunk == kSteps && count >= kInterleaved) {
      for (; i + 64 <= n; i += 64) {
        W::interleave(rows, count, from + i, codes + (to + i) * t.size,
                      kSteps * t.size);
      }
    }
  }
  for (; i < n; i += kPlaced) {
    const int64_t run = n - i < kPlaced ? n - i : kPlaced;
    for (int64_t slot = 0; slot < count; ++slot) {
      place(t, rows[slot], from + i, run, to + i, slot, codes);
    }
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
    place_all(t, rows, count, begin, n, g * width, codes);
    for (int64_t slot = 0; slot < count; ++slot) {
      sums[g * t.size + slot] = sum_of(rows[slot] + begin, n);
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
  // Where 64 entries of a row lie together in the tile, codes are written there.
  const bool there = job.groups == 1 && job.digits == 1 && job.act != Act::kCodes &&
                     (t.chunk == 64 || t.size == 1);
  const int64_t step = there ? 64 * t.size : 64;
  for (int64_t r = 0; r < rows; ++r) {
    if (job.act == Act::kCodes) {
      slots[r] = static_cast<const int8_t*>(item.x) + (first + r) * job.k;
      continue;
    }
    int8_t* digits[3] = {nullptr, nullptr, nullptr};
    for (int d = 0; d < job.digits; ++d) {
      digits[d] = there ? codes + r * t.chunk
                        : made + (r * job.digits + d) * (job.k + 64);
      slots[r * job.digits + d] = digits[d];
    }
    const float* x = row_of(job, item, first + r, room);
    Extent extent;
    extend(job, x, job.k, extent);
    const Range range = range_of(job, item, extent);
    codes_of(job, range, x, job.k, digits, step);
    if (there) sums[r] = sum_of(digits[0], job.k, step);
    scales[r] = range.bad ? __builtin_nanf("") : range.scale;
    zeros[r] = range.zero;
  }
  if (!there) place_rows(job, t, slots, rows * job.digits, codes, sums);
}
