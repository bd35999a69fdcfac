// A panel of columns: its codes, its scales, and what its sums become.
//
// Included inside the unnamed namespace of a path, after `V`:
//
//   V::I     32-bit integers of V::kLanes columns;  V::F  floats of as many
//   V::dot   adds the products of four unsigned bytes and four signed ones
//   V::kMost rows of the largest tile

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

// What a panel brings along: scales and zero points of its columns.
struct PanelScales {
  float* scale;  // [groups][32]
  float* zero;   // [groups][32] or null
};

inline int64_t scales_workspace(const Job& job) {
  return job.groups * kColumns * 4 * (job.zero_type == Type::kNone ? 1 : 2);
}

inline int columns_of(const Job& job, int64_t panel) {
  const int64_t left = job.n - panel * kColumns;
  return left < kColumns ? left : kColumns;
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
  } else {
    const int8_t* p = static_cast<const int8_t*>(from) + at;
    for (int i = 0; i < n; ++i) out[i] = p[i];
  }
  for (int i = n; i < kColumns; ++i) out[i] = 0.0f;
}

inline PanelScales scales_of(const Job& job, const Item& item, int64_t panel,
                             float* room) {
  PanelScales found = {room, nullptr};
  if (job.act == Act::kCodes || job.scale_type == Type::kNone) return found;
  const int n = columns_of(job, panel);
  const int64_t first = panel * kColumns;
  for (int64_t g = 0; g < job.groups; ++g) {
    to_floats(job.scale_type, item.scale, g * job.n + first, n,
              room + g * kColumns);
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
    // Zero points count in numbers, sums in steps of the format.
    if (job.format.unit != 1.0f) {
      for (int64_t i = 0; i < job.groups * kColumns; ++i) {
        found.zero[i] /= job.format.unit;
      }
    }
  }
  return found;
}

// One row of results of a panel: y = a (y - b t) + bias, in its own type.
inline void store_row(const Job& job, const Item& item, int64_t panel,
                      int64_t row, float scale, float zero, float* y) {
  const int n = columns_of(job, panel);
  const int64_t first = panel * kColumns;
  if (item.totals != nullptr) {
    const float* t = item.totals + first;
    for (int i = 0; i < n; ++i) y[i] -= zero * t[i];
  }
  for (int i = 0; i < kColumns; ++i) y[i] *= scale;
  if (item.bias != nullptr) {
    for (int i = 0; i < n; ++i) y[i] += item.bias[first + i];
  }
  const int64_t at = row * job.stride + first;
  if (job.out_type == Type::kF32) {
    float* out = static_cast<float*>(item.out) + at;
    if (n == kColumns) {
      for (int i = 0; i < kColumns; ++i) out[i] = y[i];
    } else {
      for (int i = 0; i < n; ++i) out[i] = y[i];
    }
  } else {
    uint16_t* out = static_cast<uint16_t*>(item.out) + at;
    for (int i = 0; i < n; ++i) out[i] = to_bf16(y[i]);
  }
}

inline void store_sums(const Job& job, const Item& item, int64_t panel,
                       int64_t row, int32_t of_x, const int32_t* y) {
  int32_t* out =
      static_cast<int32_t*>(item.out) + row * job.stride + panel * kColumns;
  const int n = columns_of(job, panel);
  for (int i = 0; i < n; ++i) out[i] = y[i] - job.format.offset * of_x;
}

// Adds the sums of a group to the results of rows: y += s (sum - z sum of x).
// `offset` is what codes are above their numbers.
inline void add_group(const int32_t (*sums)[kColumns], int digits, int offset,
                      int rows, const int32_t* of_x, const float* scale,
                      const float* zero, bool first, float (*y)[kColumns]) {
  using F = typename V::F;
  for (int r = 0; r < rows; ++r) {
    const int32_t* from = sums[r * digits];
    float total = static_cast<float>(of_x[r * digits]);
    for (int d = 1; d < digits; ++d) {
      total = total * 256.0f + static_cast<float>(of_x[r * digits + d]);
    }
    for (int c = 0; c < kColumns; c += V::kLanes) {
      F v = V::floats(V::less(V::load(from + c), offset * of_x[r * digits]));
      for (int d = 1; d < digits; ++d) {
        const typename V::I more = V::less(V::load(from + d * kColumns + c),
                                           offset * of_x[r * digits + d]);
        v = V::fma(v, V::all(256.0f), V::floats(more));
      }
      if (zero != nullptr) {
        v = V::fma(V::get(zero + c), V::all(-total), v);
      }
      F sum = first ? V::all(0.0f) : V::get(y[r] + c);
      V::put(y[r] + c, V::fma(v, V::get(scale + c), sum));
    }
  }
}

// Spreads a panel out to codes of eight bits.
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

