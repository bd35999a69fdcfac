// A panel of columns: its codes, its scales, and what its sums become.
//
// Included inside the unnamed namespace of a path, after `V`:
//
//   V::I     32-bit integers of V::kLanes columns;  V::F  floats of as many
//   V::dot   adds the products of four unsigned bytes and four signed ones
//   V::kMost rows of the largest tile

#include "curves.h"

constexpr int kRegs = kColumns / V::kLanes;  // registers of a row of a panel
constexpr int kRegBytes = V::kLanes * kSteps;

// The unsigned codes of step j of a unit, columns of register r.
template <int kBits, bool kTable>
inline typename V::I spread(const uint8_t* unit, int j, int r,
                            typename V::I table) {
  const typename V::I raw = V::load(unit + r * kRegBytes);
  if constexpr (kBits == 8) return raw;
  typename V::I code;
  if constexpr (kBits == 4) {
    code = V::field(raw, 4 * j, 15);
  } else {
    code = V::field(raw, 2 * j, 3);
  }
  if constexpr (kBits == 3) {
    const int column = r * V::kLanes, half = column / 16;
    const typename V::I high =
        V::load(unit + 128 + (column % 16) * kSteps);
    code = V::join(code, V::field(high, 4 * half + j, 1));
  }
  if constexpr (kTable) code = V::look_up(table, code);
  return code;
}

constexpr int steps_of(int bits) { return bits == 8 ? 1 : bits == 4 ? 2 : 4; }
constexpr int bytes_of(int bits) { return bits == 3 ? 192 : 128; }

// Scales, zero points and the like of the columns of a panel.
struct PanelScales {
  float* scale;   // [groups][32]
  float* zero;    // [groups][32] or null
  float* totals;  // [32] or null
  float* bias;    // [32] or null
  float floor;
};

inline int columns_of(const Job& job, int64_t panel) {
  const int64_t left = job.n - panel * kColumns;
  return left < kColumns ? left : kColumns;
}

// A sign, four bits of exponent and three of mantissa; all ones are NaN. Without a
// branch, so that a row of scales is read by vectors.
inline float from_e4m3(uint8_t code) {
  const int32_t magnitude = code & 127;
  const float small = magnitude * 0x1p-9f;  // below the smallest exponent
  uint32_t small_bits;
  std::memcpy(&small_bits, &small, 4);
  uint32_t bits = (static_cast<uint32_t>(magnitude) << 20) + (120u << 23);
  bits = magnitude < 8 ? small_bits : bits;
  bits = magnitude == 127 ? 0x7fc00000u : bits;
  bits |= static_cast<uint32_t>(code & 128) << 24;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline void to_floats(Type type, const void* from, int64_t at, int n,
                      float* out) {
  if (type == Type::kF32) {
    const float* p = static_cast<const float*>(from) + at;
    for (int i = 0; i < n; ++i) out[i] = p[i];
  } else if (type == Type::kBf16) {
    const uint16_t* p = static_cast<const uint16_t*>(from) + at;
    for (int i = 0; i < n; ++i) out[i] = from_bf16(p[i]);
  } else if (type == Type::kE8m0) {
    const uint8_t* p = static_cast<const uint8_t*>(from) + at;
    for (int i = 0; i < n; ++i) {
      const uint32_t e = p[i];
      const uint32_t bits = e == 0 ? 0x00400000u : e == 255 ? 0x7fc00000u : e << 23;
      std::memcpy(out + i, &bits, 4);
    }
  } else if (type == Type::kE4m3) {
    const uint8_t* p = static_cast<const uint8_t*>(from) + at;
    for (int i = 0; i < n; ++i) out[i] = from_e4m3(p[i]);
  } else {
    const int8_t* p = static_cast<const int8_t*>(from) + at;
    for (int i = 0; i < n; ++i) out[i] = p[i];
  }
  for (int i = n; i < kColumns; ++i) out[i] = 0.0f;
}

inline PanelScales scales_of(const Job& job, const Item& item, int64_t panel,
                             float* room) {
  PanelScales found = {room, nullptr, nullptr, nullptr, job.floor};
  if (job.finishes()) found.floor = -__builtin_inff();  // `finish` applies it last
  if (job.act == Act::kCodes) return found;
  const int n = columns_of(job, panel);
  const int64_t first = panel * kColumns;
  const auto copied = [&](const float* from, float* to) -> float* {
    if (from == nullptr) return nullptr;
    to_floats(Type::kF32, from, first, n, to);
    return to;
  };
  found.totals = copied(item.totals, room + 2 * job.groups * kColumns);
  found.bias = copied(item.bias, room + (2 * job.groups + 1) * kColumns);
  if (job.scale_type == Type::kNone) return found;
  for (int64_t g = 0; g < job.groups; ++g) {
    to_floats(job.scale_type, item.scale, g * job.n + first, n,
              room + g * kColumns);
  }
  if (item.global_scale != 1.0f) {
    for (int64_t i = 0; i < job.groups * kColumns; ++i) room[i] *= item.global_scale;
  }
  if (job.format.unit != 1.0f) {
    for (int64_t i = 0; i < job.groups * kColumns; ++i) {
      room[i] *= job.format.unit;
    }
  }
  if (job.zero_type != Type::kNone) {
    found.zero = room + job.groups * kColumns;
    for (int64_t g = 0; g < job.groups; ++g) {
      to_floats(job.zero_type, item.zero, g * job.n + first, n,
                found.zero + g * kColumns);
    }
    // Zero points are numbers, but sums count steps of the format.
    if (job.format.unit != 1.0f) {
      for (int64_t i = 0; i < job.groups * kColumns; ++i) {
        found.zero[i] /= job.format.unit;
      }
    }
  }
  return found;
}

// The results of one register of a row: max(floor, a (y - b t) + bias), which stays
// NaN if it is.
inline typename V::F result(const PanelScales& scales, int column,
                            typename V::F a, typename V::F minus_b,
                            typename V::F y) {
  if (scales.totals != nullptr) {
    y = V::fma(minus_b, V::get(scales.totals + column), y);
  }
  y = V::mul(y, a);
  if (scales.bias != nullptr) y = V::add(y, V::get(scales.bias + column));
  return V::at_least(V::all(scales.floor), y);
}

// The numbers that one register of sums stands for, if there is one group of rows:
// s (sum - z sum of x).
inline typename V::F number(const Job& job, const PanelScales& scales, int column,
                            typename V::I sum, int32_t of_x) {
  typename V::F v = V::floats(V::less(sum, job.format.offset * of_x));
  if (scales.zero != nullptr) {
    v = V::fma(V::get(scales.zero + column), V::all(-static_cast<float>(of_x)), v);
  }
  return V::mul(v, V::get(scales.scale + column));
}

// Whether sums become results without leaving registers, by `number` and `result`.
inline bool at_once(const Job& job) {
  return job.groups == 1 && job.digits == 1 && job.act != Act::kCodes &&
         job.out_type == Type::kF32;
}

// A row of `n` results from its sums; `sum(c)` returns the c-th register of them.
template <typename Sum>
inline void put_row(const Job& job, const PanelScales& scales, int n, float scale,
                    float zero, int32_t of_x, float* out, Sum sum) {
  const typename V::F a = V::all(scale), minus_b = V::all(-zero);
#pragma GCC unroll 8
  for (int c = 0; c < kRegs; ++c) {
    const int at = c * V::kLanes;
    if (at >= n) break;
    V::put(out + at,
           result(scales, at, a, minus_b, number(job, scales, at, sum(c), of_x)),
           n - at);
  }
}

// One register of what `add_group` adds without zero points: y + s sum.
inline typename V::F added(const Job& job, const PanelScales& scales, int64_t group,
                           int column, typename V::I sum, int32_t of_x,
                           typename V::F y) {
  const typename V::F s = V::get(scales.scale + group * kColumns + column);
  return V::fma(V::floats(V::less(sum, job.format.offset * of_x)), s, y);
}

// The first `n` of what is joined with a register of results.
inline typename V::F other_of(const Job& job, const void* other, int64_t at, int n) {
  if (job.out_type == Type::kF32) {
    return V::get(static_cast<const float*>(other) + at, n);
  }
  const uint16_t* from = static_cast<const uint16_t*>(other) + at;
  float y[V::kLanes] = {};
  for (int i = 0; i < V::kLanes && i < n; ++i) y[i] = from_bf16(from[i]);
  return V::get(y);
}

using Bend = typename V::F (*)(typename V::F);

// Finishes rows of `n` results each, from the one at place `at` of all: curve, gain and
// shift, other, floor. They are read and written at y, `stride` from one row to the next.
template <Bend kBend>
void finish_by(const Job& job, const Item& item, int64_t at, int rows, int n,
               int64_t stride, float* y) {
  const typename V::F floor = V::all(job.floor);
  // Rows begin at the same column.
  const float* gain = job.after ? item.after + at % job.stride : nullptr;
  for (int r = 0; r < rows; ++r, at += job.stride, y += stride) {
    for (int c = 0; c < n; c += V::kLanes) {
      typename V::F v = V::get(y + c, n - c);
      if constexpr (kBend != nullptr) v = kBend(v);
      if (gain != nullptr) {
        v = V::fma(v, V::get(gain + c, n - c), V::get(gain + job.n + c, n - c));
      }
      if (job.joins) {
        const typename V::F other = other_of(job, item.other, at + c, n - c);
        v = job.times ? V::mul(v, other) : V::add(v, other);
      }
      V::put(y + c, V::at_least(floor, v), n - c);
    }
  }
}

using Finisher = void (*)(const Job&, const Item&, int64_t, int, int, int64_t, float*);

// In the order of kCurves.
#define JAXOPT_COMPRESS_FINISHER(name) &finish_by<&bend_##name>,
constexpr Finisher kFinishers[] = {JAXOPT_COMPRESS_CURVES(JAXOPT_COMPRESS_FINISHER)};
#undef JAXOPT_COMPRESS_FINISHER

// `finish_by` the curve of the job.
inline void finish(const Job& job, const Item& item, int64_t at, int rows, int n,
                   int64_t stride, float* y) {
  const Finisher by =
      job.curve == kNoCurve ? &finish_by<nullptr> : kFinishers[job.curve];
  by(job, item, at, rows, n, stride, y);
}

// The same for one row.
inline void finish(const Job& job, const Item& item, int64_t at, int n, float* y) {
  finish(job, item, at, 1, n, n, y);
}

// Finishes rows of a panel, which are float32.
inline void finish_rows(const Job& job, const Item& item, int64_t panel, int64_t row,
                        int rows) {
  const int64_t at = row * job.stride + panel * kColumns;
  finish(job, item, at, rows, columns_of(job, panel), job.stride,
         static_cast<float*>(item.out) + at);
}

// Stores one row of results of a panel in the type of the result.
inline void store_row(const Job& job, const Item& item, int64_t panel,
                      const PanelScales& scales, int64_t row, float scale,
                      float zero, float* y) {
  const int n = columns_of(job, panel);
  const int64_t at = row * job.stride + panel * kColumns;
  const typename V::F a = V::all(scale), minus_b = V::all(-zero);
  const bool wide = job.out_type == Type::kF32;
  float* out = wide ? static_cast<float*>(item.out) + at : y;
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; c += V::kLanes) {
    if (c >= n) break;
    V::put(out + c, result(scales, c, a, minus_b, V::get(y + c)),
           wide ? n - c : V::kLanes);
  }
  if (job.finishes()) finish(job, item, at, 1, n, kColumns, out);
  if (wide) return;
  uint16_t* half = static_cast<uint16_t*>(item.out) + at;
  for (int i = 0; i < n; ++i) half[i] = to_bf16(y[i]);
}

inline void store_sums(const Job& job, const Item& item, int64_t panel,
                       int64_t row, int32_t of_x, const int32_t* y) {
  int32_t* out =
      static_cast<int32_t*>(item.out) + row * job.stride + panel * kColumns;
  const int n = columns_of(job, panel);
  // Unsigned, since sums may have wrapped: only the difference is sure to fit.
  const uint32_t above = static_cast<uint32_t>(job.format.offset * of_x);
  for (int i = 0; i < n; ++i) {
    out[i] = static_cast<int32_t>(static_cast<uint32_t>(y[i]) - above);
  }
}

template <int kDigits, bool kZero>
inline void add_digits(const int32_t (*sums)[kColumns], int offset, int rows,
                       const int32_t* of_x, const float* scale,
                       const float* zero, bool first, float (*y)[kColumns]) {
  using F = typename V::F;
  F s[kRegs], z[kRegs];
#pragma GCC unroll 8
  for (int c = 0; c < kRegs; ++c) {
    s[c] = V::get(scale + c * V::kLanes);
    if constexpr (kZero) z[c] = V::get(zero + c * V::kLanes);
  }
  for (int r = 0; r < rows; ++r) {
    const int32_t* from = sums[r * kDigits];
    const int32_t* x = of_x + r * kDigits;
    float total = static_cast<float>(x[0]);
    for (int d = 1; d < kDigits; ++d) {
      total = total * 256.0f + static_cast<float>(x[d]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kRegs; ++c) {
      const int at = c * V::kLanes;
      F v = V::floats(V::less(V::load(from + at), offset * x[0]));
#pragma GCC unroll 3
      for (int d = 1; d < kDigits; ++d) {
        const typename V::I more =
            V::less(V::load(from + d * kColumns + at), offset * x[d]);
        v = V::fma(v, V::all(256.0f), V::floats(more));
      }
      if constexpr (kZero) v = V::fma(z[c], V::all(-total), v);
      const F sum = first ? V::all(0.0f) : V::get(y[r] + at);
      V::put(y[r] + at, V::fma(v, s[c], sum));
    }
  }
}

// Adds the sums of a group to the results of rows: y += s (sum - z sum of x).
// A number is its code less `offset`.
inline void add_group(const int32_t (*sums)[kColumns], int digits, int offset,
                      int rows, const int32_t* of_x, const float* scale,
                      const float* zero, bool first, float (*y)[kColumns]) {
  const auto add = digits == 1   ? zero ? &add_digits<1, true>
                                        : &add_digits<1, false>
                   : digits == 2 ? zero ? &add_digits<2, true>
                                        : &add_digits<2, false>
                   : zero        ? &add_digits<3, true>
                                 : &add_digits<3, false>;
  add(sums, offset, rows, of_x, scale, zero, first, y);
}

// Expands a panel to codes of eight bits.
template <int kBits, bool kTable>
void spread_panel(const Job& job, const uint8_t* w, int64_t units,
                  uint8_t* out) {
  typename V::I table = V::none();
  if constexpr (kTable) table = V::table(job.format.table);
  for (int64_t u = 0; u < units; ++u) {
#pragma GCC unroll 4
    for (int j = 0; j < steps_of(kBits); ++j) {
#pragma GCC unroll 8
      for (int c = 0; c < kRegs; ++c) {
        V::save(out + c * kRegBytes, spread<kBits, kTable>(w, j, c, table));
      }
      out += kColumns * kSteps;
    }
    w += bytes_of(kBits);
  }
}

inline void spread_any(const Job& job, const uint8_t* w, int64_t units,
                       uint8_t* out) {
  switch (job.format.bits) {
    case 4:
      return job.format.table ? spread_panel<4, true>(job, w, units, out)
                              : spread_panel<4, false>(job, w, units, out);
    case 3:
      return spread_panel<3, false>(job, w, units, out);
    default:
      return spread_panel<2, false>(job, w, units, out);
  }
}

