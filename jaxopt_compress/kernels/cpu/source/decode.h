// Attention of few queries, as when text is written word by word: reading keys and values
// is what takes the time, so they are read once, in order, where they lie.
//
// Lanes are features of a key, and then keys of a score. See attention.h, whose m, l and
// o are kept here, too.
//
// Included inside the unnamed namespace of a path, after attention.h.

constexpr int kTogether = 4;       // rows that share what is read
constexpr int64_t kFewKeys = 64;   // keys at a time
constexpr int64_t kAhead = 16;     // keys that are asked for ahead of their use
constexpr int kPanel = 4;          // registers of values at a time

template <Type kType>
constexpr int64_t kSize = kType == Type::kF32 ? 4 : kType == Type::kBf16 ? 2 : 1;

// A register of numbers of a type.
template <Type kType>
inline typename V::F numbers_at(const char* p) {
  if constexpr (kType == Type::kF32) return V::get(reinterpret_cast<const float*>(p));
  if constexpr (kType == Type::kBf16) return V::from_halves(p);
  if constexpr (kType == Type::kS8) return V::from_bytes(p);
}

// The first n numbers, then zeros.
template <Type kType>
inline typename V::F numbers_at(const char* p, int64_t n) {
  alignas(64) char some[64] = {};
  std::memcpy(some, p, n * kSize<kType>);
  return numbers_at<kType>(some);
}

template <typename L = V>
inline void totals(typename L::F a, typename L::F b, typename L::F c, typename L::F d,
                   float* out) {
  if constexpr (L::kTurns) {
    L::totals(a, b, c, d, out);
  } else {
    out[0] = L::total(a);
    out[1] = L::total(b);
    out[2] = L::total(c);
    out[3] = L::total(d);
  }
}

// scores[r][i] = q[r] k[i] of n keys, and some past them.
template <int kRows, Type kType>
void few_scores(const Heads& a, const char* keys, int64_t n, const float* q,
                float* scores) {
  using F = typename V::F;
  const int64_t row = a.key_place * kSize<kType>, pitch = padded(a.d);
  const int64_t whole = a.d / V::kLanes * V::kLanes;
  for (int64_t i = 0; i < n; i += 4) {
    const char* k[4];
    F acc[4][kRows];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      k[j] = keys + (i + j < n ? i + j : n - 1) * row;
      for (int64_t at = 0; at < a.d * kSize<kType>; at += 128) {
        V::prefetch(k[j] + kAhead * row + at);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[j][r] = V::all(0.0f);
    }
    for (int64_t f = 0; f < whole; f += V::kLanes) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const F x = numbers_at<kType>(k[j] + f * kSize<kType>);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          acc[j][r] = V::fma(x, V::get(q + r * pitch + f), acc[j][r]);
        }
      }
    }
    for (int j = 0; whole < a.d && j < 4; ++j) {
      const F x = numbers_at<kType>(k[j] + whole * kSize<kType>, a.d - whole);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[j][r] = V::fma(x, V::get(q + r * pitch + whole), acc[j][r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      totals(acc[0][r], acc[1][r], acc[2][r], acc[3][r], scores + r * kFewKeys + i);
    }
  }
}

// The same of keys that lie feature by feature.
template <int kRows, Type kType>
void few_scores_across(const Heads& a, const char* keys, int64_t n, const float* q,
                       float* scores) {
  using F = typename V::F;
  const int64_t row = a.key_feature * kSize<kType>, pitch = padded(a.d);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t left = n - i;
    F acc[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) acc[r] = V::all(0.0f);
    for (int64_t f = 0; f < a.d; ++f) {
      const char* p = keys + f * row + i * kSize<kType>;
      const F x = left < V::kLanes ? numbers_at<kType>(p, left) : numbers_at<kType>(p);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[r] = V::fma(x, V::all(q[r * pitch + f]), acc[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) V::put(scores + r * kFewKeys + i, acc[r]);
  }
}

// o[r] = o[r] factor[r] + sum_i weights[r][i] v[i], of kC registers of features from f on;
// the last of them has `last` features.
template <int kRows, Type kType, int kC>
inline void few_values_of(const Heads& a, const char* values, int64_t n,
                          const float* weights, const float* factor, int64_t f,
                          int64_t last, float* o) {
  using F = typename V::F;
  const int64_t row = a.value_place * kSize<kType>, pitch = padded(a.dv);
  F acc[kRows][kC];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kC; ++c) {
      acc[r][c] = V::mul(V::get(o + r * pitch + f + c * V::kLanes), V::all(factor[r]));
    }
  }
  const char* p = values + f * kSize<kType>;
  for (int64_t i = 0; i < n; ++i) {
    for (int at = 0; at < kC * V::kLanes * kSize<kType>; at += 128) {
      V::prefetch(p + kAhead * row + at);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kC; ++c) {
      const char* from = p + c * V::kLanes * kSize<kType>;
      const F x = kC == 1 && last < V::kLanes ? numbers_at<kType>(from, last)
                                              : numbers_at<kType>(from);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[r][c] = V::fma(V::all(weights[r * kFewKeys + i]), x, acc[r][c]);
      }
    }
    p += row;
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kC; ++c) V::put(o + r * pitch + f + c * V::kLanes, acc[r][c]);
  }
}

template <int kRows, Type kType>
void few_values(const Heads& a, const char* values, int64_t n, const float* weights,
                const float* factor, float* o) {
  int64_t f = 0;
  for (; f + kPanel * V::kLanes <= a.dv; f += kPanel * V::kLanes) {
    few_values_of<kRows, kType, kPanel>(a, values, n, weights, factor, f, V::kLanes, o);
  }
  for (; f < a.dv; f += V::kLanes) {
    few_values_of<kRows, kType, 1>(a, values, n, weights, factor, f, a.dv - f, o);
  }
}

// The functions for some rows and types.
struct FewOf {
  void (*scores)(const Heads&, const char*, int64_t, const float*, float*);
  void (*values)(const Heads&, const char*, int64_t, const float*, const float*, float*);
};

template <int kRows>
FewOf few_of(const Heads& a) {
  const bool across = a.key_feature != 1;
  FewOf found;
  switch (a.key_type) {
    case Type::kF32:
      found.scores = across ? few_scores_across<kRows, Type::kF32>
                            : few_scores<kRows, Type::kF32>;
      break;
    case Type::kBf16:
      found.scores = across ? few_scores_across<kRows, Type::kBf16>
                            : few_scores<kRows, Type::kBf16>;
      break;
    default:
      found.scores = across ? few_scores_across<kRows, Type::kS8>
                            : few_scores<kRows, Type::kS8>;
  }
  found.values = a.value_type == Type::kF32    ? few_values<kRows, Type::kF32>
                 : a.value_type == Type::kBf16 ? few_values<kRows, Type::kBf16>
                                               : few_values<kRows, Type::kS8>;
  return found;
}

// --------------------------------------------------------------- rows of a head

// What is found of rows: m and l of each, then o.
struct Found {
  float *most, *sum, *o;
  explicit Found(float* p)
      : most(p), sum(p + kFewQueries), o(p + 2 * kFewQueries) {}
};

// Where `find` keeps what it makes.
struct Finding {
  float *q, *weights, *factor;
  float* all;   // what is merged
  float* room;  // a row as floats
  Finding(char* workspace, const Heads& a)
      : q(reinterpret_cast<float*>(workspace)),
        weights(q + kFewQueries * padded(a.d)),
        factor(weights + kFewQueries * kFewKeys),
        all(factor + 16),
        room(all + found_floats(a)) {}
};

int64_t find_workspace(const Heads& a) {
  const int64_t room = a.d > kFewKeys ? a.d : kFewKeys;
  return 4 * (kFewQueries * (padded(a.d) + kFewKeys) + 16 + found_floats(a) + room) + 64;
}

// Scores of a row with scales, bias and what is masked.
inline void finish_scores(const Heads& a, const Head& h, int64_t row, int64_t from,
                          int64_t n, float* x, float* room) {
  for (int64_t i = 0; h.key_scale != nullptr && i < n; ++i) {
    x[i] *= h.key_scale[(from + i) * a.key_scale];
  }
  if (h.bias != nullptr) {
    const int64_t at = place_of(a, row, a.bias_head, a.bias_query);
    const int64_t first = a.bias_key == 0 ? 0 : from, count = a.bias_key == 0 ? 1 : n;
    const float* b = floats_at(a.bias_type, h.bias, at + first, count, 1.0f, room);
    for (int64_t i = 0; i < n; ++i) x[i] += b[i * a.bias_key];
  }
  if (h.mask != nullptr) {
    const uint8_t* mask = h.mask + place_of(a, row, a.mask_head, a.mask_query);
    for (int64_t i = 0; i < n; ++i) {
      x[i] = mask[(from + i) * a.mask_key] ? x[i] : a.masked;
    }
  }
  const int64_t t = row % a.queries;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t key = from + i;
    if (key >= h.known || !sees(a, t, key)) x[i] = a.masked;
  }
}

// Scores of a row to weights, in place; returns what o of before is multiplied by.
inline float weigh_row(int64_t n, float* x, float* most, float* sum) {
  using F = typename V::F;
  // Whole registers, of scores that weigh nothing.
  for (int64_t i = n; i % V::kLanes != 0; ++i) x[i] = -__builtin_inff();
  F largest = V::all(*most);
  for (int64_t i = 0; i < n; i += V::kLanes) largest = V::at_least(largest, V::get(x + i));
  float lanes[V::kLanes], now = *most;
  V::put(lanes, largest);
  for (float lane : lanes) now = lane > now ? lane : now;
  F total = V::all(0.0f);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const F weight = decay(V::sub(V::get(x + i), V::all(now)));
    V::put(x + i, weight);
    total = V::add(total, weight);
  }
  V::put(lanes, decay(V::all(*most - now)));
  *sum = *sum * lanes[0] + V::total(total);
  *most = now;
  return lanes[0];
}

void find(const Heads& a, const Head& h, Keys keys, float* found, char* workspace) {
  const int64_t rows = a.rows(), pitch = padded(a.d);
  const Found f(found);
  const Finding w(workspace, a);
  std::memset(w.q, 0, rows * pitch * 4);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = place_of(a, r, a.query_head, a.query_place);
    const float* from = floats_at(a.query_type, h.query, at, a.d, a.scale, w.room);
    std::memcpy(w.q + r * pitch, from, a.d * 4);
    f.most[r] = kLeast;
    f.sum[r] = 0.0f;
  }
  std::memset(f.o, 0, rows * padded(a.dv) * 4);
  const int64_t key = a.key_place * width_of(a.key_type);
  const int64_t value = a.value_place * width_of(a.value_type);
  for (int64_t from = keys.from; from < keys.to; from += kFewKeys) {
    const int64_t n = keys.to - from < kFewKeys ? keys.to - from : kFewKeys;
    for (int64_t r = 0; r < rows; r += kTogether) {
      const int64_t some = rows - r < kTogether ? rows - r : kTogether;
      const FewOf of = some == 1   ? few_of<1>(a)
                       : some == 2 ? few_of<2>(a)
                       : some == 3 ? few_of<3>(a)
                                   : few_of<4>(a);
      float* x = w.weights + r * kFewKeys;
      of.scores(a, h.key + from * key, n, w.q + r * pitch, x);
      for (int64_t j = 0; j < some; ++j) {
        float* of_row = x + j * kFewKeys;
        finish_scores(a, h, r + j, from, n, of_row, w.room);
        w.factor[j] = weigh_row(n, of_row, f.most + r + j, f.sum + r + j);
        for (int64_t i = 0; h.value_scale != nullptr && i < n; ++i) {
          of_row[i] *= h.value_scale[(from + i) * a.value_scale];
        }
      }
      of.values(a, h.value + from * value, n, x, w.factor, f.o + r * padded(a.dv));
    }
  }
}

void merge(const Heads& a, const Head& h, int64_t count, const float* found,
           char* workspace) {
  const int64_t rows = a.rows(), pitch = padded(a.dv);
  float* const all = Finding(workspace, a).all;
  const Found to(all);
  std::memcpy(all, found, found_floats(a) * 4);
  for (int64_t i = 1; i < count; ++i) {
    const Found part(const_cast<float*>(found) + i * found_floats(a));
    for (int64_t r = 0; r < rows; ++r) {
      const float before = to.most[r];
      const float now = part.most[r] > before ? part.most[r] : before;
      float lanes[V::kLanes];
      V::put(lanes, decay(V::all(before - now)));
      const float old = lanes[0];
      V::put(lanes, decay(V::all(part.most[r] - now)));
      to.most[r] = now;
      to.sum[r] = to.sum[r] * old + part.sum[r] * lanes[0];
      for (int64_t f = 0; f < a.dv; ++f) {
        float& o = to.o[r * pitch + f];
        o = o * old + part.o[r * pitch + f] * lanes[0];
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (!sees_all(a, h, r, to.most[r], to.sum[r])) continue;
    find(a, h, {0, a.keys}, all, workspace);
    break;
  }
  store_rows(a, h, 0, rows, to.o, to.sum);
}
