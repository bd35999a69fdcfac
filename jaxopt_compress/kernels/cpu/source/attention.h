// Attention of many queries, for the instructions of `V`.
//
// Lanes are queries, 32 of them in a block, and keys are taken some at a time, as many as
// leave scores in a first-level cache. Of each query, m is the largest score so far, l
// the sum of its weights and o that of the values by them; further keys change them to
//
//   m' = max(m, max_s x_s),   l' = l e^(m - m') + sum_s e^(x_s - m'),
//   o' = o e^(m - m') + sum_s e^(x_s - m') v_s
//
// (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867, algorithm 3; Dao et al.
// 2022, https://arxiv.org/abs/2205.14135, algorithm 1). Out is o / l.
//
// Included inside the unnamed namespace of a path, after `V`.

#include "lay.h"

constexpr float kLeast = -3.40282347e38f;
// Bytes of keys, values and scores at once, in a first-level cache.
constexpr int64_t kAtOnce = 36 << 10;

// ------------------------------------------------------------------ on registers

// e^x of x <= 0, or NaN; 0 below -88.
inline typename V::F decay(typename V::F x) {
  using F = typename V::F;
  x = V::at_least(V::all(-88.0f), x);
  // x log2(e) = f - n with a whole number n.
  const F n = V::nearest(V::mul(x, V::all(-kLog2e)));
  const F f = V::fma(x, V::all(kLog2e), n);
  const F p = V::fma(polynomial(kGrowth, f), f, V::all(1.0f));
  return V::mul(p, V::halved(n));
}

// acc[r][c] += sum_{i < n} x[r * kRow + i * kStep] w[i * stride + c], c counting registers.
template <int kRows, int kC, int kRow, int kStep>
inline void outer(const float* x, const float* w, int64_t stride, int64_t n,
                  typename V::F (&acc)[kRows][kC]) {
  using F = typename V::F;
  for (int64_t i = 0; i < n; ++i) {
    F b[kC];
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) b[c] = V::get(w + c * V::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F a = V::all(x[r * kRow]);
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) acc[r][c] = V::fma(a, b[c], acc[r][c]);
    }
    x += kStep;
    w += stride;
  }
}

// Keys and queries as products read them.
struct Laid {
  const float* keys;     // [chunks][n][16]
  const float* queries;  // [d][32]
  const float* values;   // [n][padded(dv)]
  int64_t d, n, dv;
};

// Scores of keys `key` to `key + kRows`: [keys][32].
template <int kRows, int kC>
void scores_of(const Laid& p, int64_t key, float* scores) {
  typename V::F acc[kRows][kC];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) acc[r][c] = V::all(0.0f);
  }
  const float* x = p.keys + key * kChunk;
  const float* w = p.queries;
  for (int64_t left = p.d; left > 0; left -= kChunk) {
    outer<kRows, kC, kChunk, 1>(x, w, kColumns, left < kChunk ? left : kChunk, acc);
    x += p.n * kChunk;
    w += kChunk * kColumns;
  }
  scores += key * kColumns;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) {
      V::put(scores + r * kColumns + c * V::kLanes, acc[r][c]);
    }
  }
}

// o of queries `query` to `query + kRows`, some features of it: what it was times
// `factor`, which is null where it was nothing, plus values by weights [keys][32].
template <int kRows, int kC>
void values_of(const Laid& p, const float* weights, const float* factor, int64_t query,
               int64_t feature, float* o) {
  typename V::F acc[kRows][kC];
  const int64_t stride = padded(p.dv);
  o += query * stride + feature;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) {
      acc[r][c] = factor == nullptr ? V::all(0.0f)
                                    : V::mul(V::get(o + r * stride + c * V::kLanes),
                                             V::all(factor[query + r]));
    }
  }
  outer<kRows, kC, 1, kColumns>(weights + query, p.values + feature, stride, p.n, acc);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) V::put(o + r * stride + c * V::kLanes, acc[r][c]);
  }
}

using ScoresOf = void (*)(const Laid&, int64_t, float*);
using ValuesOf = void (*)(const Laid&, const float*, const float*, int64_t, int64_t,
                          float*);

template <int kC, int kMost = V::kMost>
ScoresOf scores_for(int64_t rows) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    return rows == kMost ? &scores_of<kMost, kC> : scores_for<kC, kMost - 1>(rows);
  }
}

template <int kC, int kMost = V::kMost>
ValuesOf values_for(int64_t rows) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    return rows == kMost ? &values_of<kMost, kC> : values_for<kC, kMost - 1>(rows);
  }
}

// Runs f(first, rows) over n rows in runs of about the same size.
template <typename F>
inline void in_runs(int64_t n, const F& f) {
  const int64_t count = (n + V::kMost - 1) / V::kMost;
  const int64_t each = (n + count - 1) / count;
  for (int64_t i = 0; i < n; i += each) f(i, n - i < each ? n - i : each);
}

// Scores of n keys to weights, in place; `most` and `sum` become m' and l', and `factor`
// is what o of before is to be multiplied by.
inline void weigh(int64_t n, int registers, float* scores, float* most, float* sum,
                  float* factor) {
  using F = typename V::F;
  for (int c = 0; c < registers; ++c) {
    float* x = scores + c * V::kLanes;
    const F before = V::get(most + c * V::kLanes);
    // Several at once, as each has to wait for the one before it.
    F m[4] = {before, before, before, before};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        m[j] = V::at_least(m[j], V::get(x + (i + j) * kColumns));
      }
    }
    for (; i < n; ++i) m[0] = V::at_least(m[0], V::get(x + i * kColumns));
    const F now = V::at_least(V::at_least(m[0], m[1]), V::at_least(m[2], m[3]));
    const F shrunk = decay(V::sub(before, now));
    const auto weight = [&](int64_t i) {
      const F w = decay(V::sub(V::get(x + i * kColumns), now));
      V::put(x + i * kColumns, w);
      return w;
    };
    // Eight are added up first: one by one, equal ones, as those of what is masked, would
    // all be rounded to the same side by a sum near 1.
    F total = V::all(0.0f);
    for (i = 0; i + 8 <= n; i += 8) {
      F w[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) w[j] = weight(i + j);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) w[j] = V::add(w[j], w[j + 4]);
      total = V::add(total, V::add(V::add(w[0], w[1]), V::add(w[2], w[3])));
    }
    for (; i < n; ++i) total = V::add(total, weight(i));
    total = V::fma(V::get(sum + c * V::kLanes), shrunk, total);
    V::put(most + c * V::kLanes, now);
    V::put(sum + c * V::kLanes, total);
    V::put(factor + c * V::kLanes, shrunk);
  }
}

// -------------------------------------------------------------- rows of a head

// How many keys, values and scores fit into kAtOnce bytes.
inline int64_t keys_that_fit(const Heads& a) {
  const int64_t most = kAtOnce / 4 / (a.d + padded(a.dv) + kColumns);
  return most < 16 ? 16 : most > 512 ? 512 : most;
}

// How many of some keys are taken at a time.
inline int64_t keys_at_once(const Heads& a, int64_t keys) {
  const int64_t most = keys_that_fit(a);
  // A few more at once cost less than a second run.
  const int64_t runs = keys <= most + most / 4 ? 1 : (keys + most - 1) / most;
  return keys == 0 ? 1 : (keys + runs - 1) / runs;
}

inline int64_t most_at_once(const Heads& a) {
  const int64_t most = keys_that_fit(a) * 5 / 4;
  return most < a.keys ? most : a.keys;
}

int64_t find_workspace(const Heads& a);

int64_t attention_workspace(const Heads& a, int64_t rows) {
  if (few(a)) return find_workspace(a);
  const int64_t blocks = (rows + kColumns - 1) / kColumns;
  const int64_t n = most_at_once(a), wide = n > a.d ? n : a.d;
  const int64_t of_block =
      padded(a.d) * kColumns + kColumns * padded(a.dv) + 4 * kColumns;
  const int64_t shared = n * (padded(a.d) + padded(a.dv) + kColumns) + kColumns +
                         16 * wide + n * kColumns;
  return (blocks * of_block + shared) * 4 +
         blocks * static_cast<int64_t>(sizeof(Queries)) + 128;
}

// Results of rows `first` to `first + count` of a head.
inline void store_rows(const Heads& a, const Head& h, int64_t first, int64_t count,
                       const float* all, const float* sum) {
  const int64_t pitch = padded(a.dv);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t row = first + j;
    const int64_t at = place_of(a, row, a.out_head, a.out_place);
    const bool wanted = row % a.queries < h.wanted;
    const float inverse = 1.0f / sum[j];
    const float* o = all + j * pitch;
    if (a.out_type == Type::kF32) {
      float* out = reinterpret_cast<float*>(h.out) + at;
      for (int64_t f = 0; f < a.dv; ++f) out[f] = wanted ? o[f] * inverse : 0.0f;
    } else {
      uint16_t* out = reinterpret_cast<uint16_t*>(h.out) + at;
      for (int64_t f = 0; f < a.dv; ++f) {
        out[f] = to_bf16(wanted ? o[f] * inverse : 0.0f);
      }
    }
  }
}

// Asks for where results will be written.
inline void ask_results(const Heads& a, const Head& h, const Queries& q) {
  const int64_t width = width_of(a.out_type);
  for (int64_t j = 0; j < q.count; ++j) {
    const int64_t at = place_of(a, q.first + j, a.out_head, a.out_place);
    for (int64_t i = 0; i < a.dv * width; i += 64) {
      __builtin_prefetch(h.out + at * width + i, 1, 2);
    }
  }
}

// Whether what is masked counts for a row, too: it sees nothing, or nothing that scores
// so much more that the rest weighs 0. All keys are to be read then; but not for a row
// that is NaN already, which would take the others of its block along.
inline bool sees_all(const Heads& a, const Head& h, int64_t row, float most,
                     float sum) {
  return !(most - a.masked > 128.0f) && sum == sum && a.masked >= kLeast &&
         row % a.queries < h.wanted;
}

// Rows `first` to `last` of a head by some of the keys, those that a block does not see
// left out; by all of them if it is said so. False if a row needs them all.
inline bool attend_keys(const Heads& a, const Head& h, int64_t first, int64_t last,
                        Keys keys, bool all, char* workspace) {
  const int64_t blocks = (last - first + kColumns - 1) / kColumns;
  const int64_t most = most_at_once(a), wide = most > a.d ? most : a.d;
  float* free = reinterpret_cast<float*>(workspace);
  const auto take = [&free](int64_t n) { return (free += n) - n; };
  float* const keys_laid = take(most * padded(a.d));
  float* const values_laid = take(most * padded(a.dv));
  float* const scores = take(most * kColumns);
  float* const factor = take(kColumns);
  float* const room = take(16 * wide + most * kColumns);
  float* const of_blocks = take(
      blocks * (padded(a.d) * kColumns + kColumns * padded(a.dv) + 4 * kColumns));
  Queries* const queries = reinterpret_cast<Queries*>(free);
  free = of_blocks;
  for (int64_t b = 0; b < blocks; ++b) {
    Queries& q = queries[b];
    q.first = first + b * kColumns;
    q.count = last - q.first < kColumns ? last - q.first : kColumns;
    q.registers = q.count <= kColumns / 2 ? kHalf : kRegs;
    q.laid = take(padded(a.d) * kColumns);
    q.o = take(kColumns * padded(a.dv));
    q.most = take(kColumns);
    q.sum = take(kColumns);
    q.low = reinterpret_cast<int32_t*>(take(kColumns));
    q.high = reinterpret_cast<int32_t*>(take(kColumns));
    lay_queries(a, h, room, &q);
    ask_results(a, h, q);
    lay_ranges(a, h.known, &q);
    for (int j = 0; j < kColumns; ++j) q.most[j] = kLeast;
    std::memset(q.sum, 0, kColumns * 4);
    std::memset(q.o, 0, kColumns * padded(a.dv) * 4);
  }

  const int64_t each = keys_at_once(a, keys.to - keys.from);
  for (int64_t from = keys.from; from < keys.to; from += each) {
    const int64_t n = keys.to - from < each ? keys.to - from : each;
    lay_keys(a, h, from, n, room, keys_laid);
    Laid p = {keys_laid, nullptr, lay_values(a, h, from, n, values_laid), a.d, n, a.dv};
    for (int64_t b = 0; b < blocks; ++b) {
      Queries& q = queries[b];
      if (!all && (from + n <= q.outer_low || from >= q.outer_high)) continue;
      p.queries = q.laid;
      const bool narrow = q.registers == kHalf;
      in_runs(n, [&](int64_t key, int64_t rows) {
        (narrow ? scores_for<kHalf> : scores_for<kRegs>)(rows)(p, key, scores);
      });
      if (h.bias != nullptr) add_bias(a, h, q, from, n, scores, room);
      if (h.mask != nullptr) hide(a, h, q, from, n, scores, room);
      if (from < q.inner_low || from + n > q.inner_high) {
        hide_outside(a, q, from, n, scores);
      }
      weigh(n, q.registers, scores, q.most, q.sum, factor);
      in_runs(q.count, [&](int64_t query, int64_t rows) {
        int64_t f = 0;
        for (; f + kColumns <= padded(a.dv); f += kColumns) {
          values_for<kRegs>(rows)(p, scores, factor, query, f, q.o);
        }
        if (f < a.dv) values_for<kHalf>(rows)(p, scores, factor, query, f, q.o);
      });
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const Queries& q = queries[b];
    for (int64_t j = 0; !all && j < q.count; ++j) {
      if (sees_all(a, h, q.first + j, q.most[j], q.sum[j])) return false;
    }
    store_rows(a, h, q.first, q.count, q.o, q.sum);
  }
  return true;
}

void attend(const Heads& a, const Head& h, int64_t first, int64_t last,
            char* workspace) {
  // Rows of several heads are of any query.
  const bool one = first / a.queries == (last - 1) / a.queries;
  const Keys some = one ? seen(a, h, first % a.queries, (last - 1) % a.queries + 1)
                        : seen(a, h, 0, a.queries);
  if (attend_keys(a, h, first, last, some, false, workspace)) return;
  attend_keys(a, h, first, last, {0, a.keys}, true, workspace);
}
