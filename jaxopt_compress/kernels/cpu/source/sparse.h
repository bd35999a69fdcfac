// A panel without its zeros, as jaxopt_compress/kernels/sparse_layout.py lays it out:
//
//   there    a bit for each unit, in whole words of 64; where units are skipped
//   masks    16 bytes for each unit that is there, a bit for each entry
//   values   of the entries whose bits are set
//
// A unit is 128 entries of four rows; r = 4 / size rows fill four bytes:
//
//   entry[j][h][l][i] = w(r j + i, 16 h + l)
//
// Included inside the unnamed namespace of a path, after panel.h.

constexpr int kEntries = kSteps * kColumns;  // of a unit
constexpr int kMaskBytes = kEntries / 8;
constexpr int kLine = 64;  // bytes; offsets count in lines

inline uint64_t word_at(const uint8_t* p) {
  uint64_t x;
  std::memcpy(&x, p, 8);
  return x;
}

// Where the next unit begins. Whatever masks say, nothing is read past the end of the
// stream: it ends with padding as long as a unit, and both pointers stop there.
struct Run {
  const uint8_t* there;  // null: all are
  const uint8_t* masks;
  const uint8_t* values;
  const uint8_t* last;  // where a unit may begin
  int64_t constant;     // bytes of the values of a unit; 0: as many as its bits

  bool has(int64_t unit) const {
    return there == nullptr || (there[unit / 8] >> (unit % 8) & 1);
  }
  // Half a unit's values, which are four lines if they are floats.
  void prefetch() const {
    V::prefetch(values + 2048);
    V::prefetch(values + 2048 + 128);
    V::prefetch(masks + 1024);
  }
  void pass(int64_t bytes) {
    values += constant ? constant : bytes;
    values = values < last ? values : last;
    masks += kMaskBytes;
    masks = masks < last ? masks : last;
  }
};

inline int64_t there_bytes(int64_t units) { return (units + 63) / 64 * 8; }

inline Run run_of(const Job& job, const Item& item, int64_t panel) {
  const uint8_t* at = item.w + int64_t{item.offsets[panel]} * kLine;
  Run run = {nullptr, at, at, item.w + job.stream - job.format.bytes, 0};
  run.constant = job.constant * job.format.bytes / kEntries;
  int64_t count = job.units;
  if (job.skips) {
    run.there = at;
    run.masks += there_bytes(job.units);
    count = 0;
    for (int64_t i = 0; i < there_bytes(job.units); i += 8) {
      count += __builtin_popcountll(word_at(at + i));
    }
  }
  const int64_t room = run.last - run.masks;
  run.values = count * kMaskBytes < room ? run.masks + count * kMaskBytes : run.last;
  return run;
}

// ------------------------------------------------- units with their zeros put back

// Entries of a unit, `empty` where there is none. Returns the bytes of its values.
template <typename T>
inline int64_t spread_unit(const uint8_t* masks, const uint8_t* values, T empty,
                           T* out) {
  const uint8_t* from = values;
  for (int i = 0; i < kEntries; ++i) out[i] = empty;
  for (int i = 0; i < kEntries; i += 64) {
    for (uint64_t bits = word_at(masks + i / 8); bits != 0; bits &= bits - 1) {
      std::memcpy(out + i + __builtin_ctzll(bits), from, sizeof(T));
      from += sizeof(T);
    }
  }
  return from - values;
}

// What a path has instructions for.
template <typename T, typename W>
constexpr bool expands() {
  return sizeof(T) == 4 ? W::kExpands : W::kExpandsNarrow;
}

// Units `first` to `end` as codes of eight bits.
template <typename W>
void spread_codes(Run& run, int64_t first, int64_t end, uint8_t* out) {
  for (int64_t u = first; u < end; ++u, out += kEntries) {
    if (!run.has(u)) {
      std::memset(out, 128, kEntries);
      continue;
    }
    run.prefetch();
    int64_t bytes;
    if constexpr (expands<uint8_t, W>()) {
      const uint64_t low = word_at(run.masks), high = word_at(run.masks + 8);
      const int64_t half = __builtin_popcountll(low);
      W::save(out, W::expand_codes(low, run.values));
      W::save(out + 64, W::expand_codes(high, run.values + half));
      bytes = half + __builtin_popcountll(high);
    } else {
      bytes = spread_unit<uint8_t>(run.masks, run.values, 128, out);
    }
    run.pass(bytes);
  }
}

// Calls each(row, h, floats of sixteen columns) for a unit. Returns the bytes of its
// values. Where the values of a row begin is counted from the beginning of the word, not
// from the row before: counts of 16 bits would depend on their register's last content.
template <typename T, typename W, typename Each>
inline int64_t each_sixteen(const uint8_t* masks, const uint8_t* values,
                            const Each& each) {
  constexpr int kBits = 64 / sizeof(T);  // of a register
  int64_t done = 0;
#pragma GCC unroll 2
  for (int i = 0; i < kEntries; i += 64) {
    const uint64_t word = word_at(masks + i / 8);
#pragma GCC unroll 4
    for (int bit = 0; bit < 64; bit += kBits) {
      const uint64_t before = word & ((uint64_t{1} << bit) - 1);
      const uint8_t* from =
          values + sizeof(T) * (done + __builtin_popcountll(before));
      const int h = (i + bit) / kBits % 2, row = (i + bit) / kBits / 2;
      if constexpr (sizeof(T) == 4) {
        each(row, h, W::expand_floats(static_cast<uint16_t>(word >> bit), from));
      } else {
        const typename W::I two =
            W::expand_words(static_cast<uint32_t>(word >> bit), from);
        each(2 * row, h, W::low_half(two));
        each(2 * row + 1, h, W::high_half(two));
      }
    }
    done += __builtin_popcountll(word);
  }
  return sizeof(T) * done;
}

// Units `first` to `end` as rows of floats.
template <typename T, typename W>
void spread_rows(Run& run, int64_t first, int64_t end, float* out) {
  for (int64_t u = first; u < end; ++u, out += kEntries) {
    if (!run.has(u)) {
      std::memset(out, 0, kEntries * sizeof(float));
      continue;
    }
    run.prefetch();
    int64_t bytes;
    if constexpr (expands<T, W>()) {
      bytes = each_sixteen<T, W>(
          run.masks, run.values, [out](int row, int h, typename W::F x) {
            W::put(out + row * kColumns + 16 * h, x);
          });
    } else if constexpr (sizeof(T) == 4) {
      bytes = spread_unit<float>(run.masks, run.values, 0.0f, out);
    } else {
      uint16_t words[kEntries];
      bytes = spread_unit<uint16_t>(run.masks, run.values, 0, words);
      for (int i = 0; i < kEntries; ++i) {
        const int row = i / 64 * 2 + i % 2, column = i % 64 / 2;
        out[row * kColumns + column] = from_bf16(words[i]);
      }
    }
    run.pass(bytes);
  }
}

inline void spread_rows_any(const Job& job, Run& run, int64_t first, int64_t end,
                            float* out) {
  return job.format.bits == 16 ? spread_rows<uint16_t, V>(run, first, end, out)
                               : spread_rows<float, V>(run, first, end, out);
}

// --------------------------------------- few rows: units expanded in registers only

// Floats from one row to the next: whole units, with zeros past the end of the matrix.
// The number of lines is odd, as rows a power of two apart would evict each other.
inline int64_t float_stride(const Job& job) {
  return ((job.k + 15) / 16 | 1) * 16;
}

// Calls each(unit), which returns the bytes of its values, for units that are there.
template <bool kSkips, typename Each>
inline void each_unit(Run& run, int64_t first, int64_t end, const Each& each) {
  if constexpr (!kSkips) {
    for (int64_t u = first; u < end; ++u) {
      run.prefetch();
      run.pass(each(u));
    }
  } else {
    for (int64_t word = first / 64; word * 64 < end; ++word) {
      uint64_t bits = word_at(run.there + 8 * word);
      if (word * 64 < first) bits &= ~uint64_t{0} << (first % 64);
      if (end - word * 64 < 64) bits &= ~(~uint64_t{0} << (end % 64));
      for (; bits != 0; bits &= bits - 1) {
        run.prefetch();
        run.pass(each(word * 64 + __builtin_ctzll(bits)));
      }
    }
  }
}

// acc[r][c] += codes of rows times units `first` to `end`; x begins at unit 0. If units
// are skipped, of_x[r] += 128 times the codes of x that were not, in every lane.
template <typename W, bool kSkips, int kRows>
inline void sparse_product(Run& run, int64_t first, int64_t end, const int8_t* x,
                           typename W::I (&acc)[kRows][kRegs],
                           typename W::I (&of_x)[kRows]) {
  each_unit<kSkips>(run, first, end, [&](int64_t u) {
    const uint64_t low = word_at(run.masks), high = word_at(run.masks + 8);
    const int64_t half = __builtin_popcountll(low);
    const typename W::I b[2] = {W::expand_codes(low, run.values),
                                W::expand_codes(high, run.values + half)};
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename W::I a = W::four(x + (u * kRows + r) * kSteps);
      acc[r][0] = W::dot(acc[r][0], b[0], a);
      acc[r][1] = W::dot(acc[r][1], b[1], a);
      if constexpr (kSkips) {
        of_x[r] = W::dot(of_x[r], W::bytes(128), a);
      }
    }
    return half + __builtin_popcountll(high);
  });
}

template <typename W, bool kSkips, int kRows>
void sparse_codes(const Job& job, const Tiles& t, const Item& item, int64_t panel,
                  int64_t tile, Run run, const PanelScales& scales) {
  const int8_t* codes = item.codes + tile * t.codes();
  const int32_t* of_x = item.sums + tile * job.groups * t.size;
  const int rows = static_cast<int>(rows_in(job, t, tile));
  const int64_t row = tile * (t.used / job.digits);
  alignas(64) float y[kRows][kColumns];
  alignas(64) int32_t sums[kRows][kColumns];
  for (int64_t g = 0; g < job.groups; ++g, of_x += kRows) {
    const int64_t first = g * job.group_units();
    typename W::I acc[kRows][kRegs], met[kRows];
    for (int r = 0; r < kRows; ++r) {
      acc[r][0] = acc[r][1] = met[r] = W::integers(0);
    }
    sparse_product<W, kSkips, kRows>(run, first, first + job.units_of(g), codes,
                                    acc, met);
    for (int r = 0; r < kRows; ++r) {
      // Make up for units that were skipped: their codes are 128.
      int32_t skipped = 0;
      if constexpr (kSkips) {
        alignas(64) int32_t lanes[16];
        W::save(lanes, met[r]);
        skipped = static_cast<int32_t>(static_cast<uint32_t>(lanes[0]) -
                                       128u * static_cast<uint32_t>(of_x[r]));
      }
      W::save(sums[r], W::less(acc[r][0], skipped));
      W::save(sums[r] + 16, W::less(acc[r][1], skipped));
    }
    if (job.act == Act::kCodes) {
      for (int r = 0; r < rows; ++r) {
        store_sums(job, item, panel, row + r, of_x[r], sums[r]);
      }
      return;
    }
    add_group(sums, job.digits, job.format.offset, rows, of_x,
              scales.scale + g * kColumns,
              scales.zero ? scales.zero + g * kColumns : nullptr, g == 0, y);
  }
  for (int r = 0; r < rows; ++r) {
    store_row(job, item, panel, scales, row + r, item.scales[tile * t.size + r],
              item.zeros[tile * t.size + r], y[r]);
  }
}

// acc[r][c] += rows times all units.
template <typename T, typename W, bool kSkips, int kRows>
inline void sparse_float_product(Run& run, int64_t units, const float* x,
                                 int64_t stride,
                                 typename W::F (&acc)[kRows][kRegs]) {
  each_unit<kSkips>(run, 0, units, [&](int64_t u) {
    const float* at = x + u * kSteps;
    return each_sixteen<T, W>(
        run.masks, run.values, [&](int row, int h, typename W::F b) {
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            acc[r][h] = W::fma(W::all(at[r * stride + row]), b, acc[r][h]);
          }
        });
  });
}

template <typename T, typename W, bool kSkips, int kRows>
void sparse_floats(const Job& job, const Tiles& t, const Item& item,
                   int64_t panel, int64_t tile, Run run,
                   const PanelScales& scales) {
  const float* x = reinterpret_cast<const float*>(item.codes + tile * t.codes());
  const int rows = static_cast<int>(rows_in(job, t, tile));
  typename W::F acc[kRows][kRegs];
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = W::all(0.0f);
  sparse_float_product<T, W, kSkips, kRows>(run, job.units, x, float_stride(job), acc);
  alignas(64) float y[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    W::put(y[r], acc[r][0]);
    W::put(y[r] + 16, acc[r][1]);
  }
  for (int r = 0; r < rows; ++r) {
    store_row(job, item, panel, scales, tile * t.used + r, 1.0f, 0.0f, y[r]);
  }
}

// Up to so many rows, units are expanded in registers. Codes allow for more rows than
// floats, but not if units are skipped, which takes registers as well.
constexpr int kFewSparse = 8, kFewCodes = 12;

using SparseFew = void (*)(const Job&, const Tiles&, const Item&, int64_t,
                           int64_t, Run, const PanelScales&);

template <typename W, bool kSkips, int kMost>
SparseFew sparse_few_of(int bits, int size) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    if (size < kMost) return sparse_few_of<W, kSkips, kMost - 1>(bits, size);
    if constexpr (kMost > kFewSparse) {
      return &sparse_codes<W, kSkips, kMost>;
    } else if (bits == 32) {
      return &sparse_floats<float, W, kSkips, kMost>;
    } else if constexpr (W::kExpandsNarrow) {
      return bits == 16 ? &sparse_floats<uint16_t, W, kSkips, kMost>
                        : &sparse_codes<W, kSkips, kMost>;
    }
    return nullptr;
  }
}

inline int few_sparse(const Job& job) {
  return job.skips || job.in_floats() ? kFewSparse : kFewCodes;
}

// The function for tiles `first` to `last`. Null if units must be expanded in memory:
// because there are many rows, or no instructions for it, or because x has numbers that
// are not finite, whose products with zeros count although those are skipped.
template <typename W = V>
SparseFew sparse_few_for(const Job& job, const Tiles& t, const Item& item,
                         int64_t first, int64_t last) {
  if (t.size > few_sparse(job)) return nullptr;
  if constexpr (W::kExpands) {
    if (!job.skips) {
      constexpr int kMost = W::kExpandsNarrow ? kFewCodes : kFewSparse;
      return sparse_few_of<W, false, kMost>(job.format.bits, t.size);
    }
    bool all_finite = true;
    for (int64_t i = first; job.in_floats() && i < last; ++i) {
      all_finite = all_finite && finite(item.scales[i * t.size]);
    }
    if (all_finite) {
      return sparse_few_of<W, true, kFewSparse>(job.format.bits, t.size);
    }
  }
  return nullptr;
}
