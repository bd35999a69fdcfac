// Operands of attention as its products read them: queries turned, keys in chunks of
// features, and what is added to scores or hides them.
//
// Included inside the unnamed namespace of a path, by attention.h.

constexpr int kHalf = kRegs / 2;  // registers of half a block of queries
constexpr int kChunk = 16;        // features that lie together

// ------------------------------------------------------- how operands come to lie

// out[i * pitch + r] = factor rows[r][i], i < n, of 16 rows; those past `count` are 0.
template <typename L = V>
inline void turn(const float* const* rows, int count, int64_t n, float factor,
                 float* out, int64_t pitch) {
  if constexpr (L::kTurns) {
    const float* from[16];
    for (int64_t i = 0; i < n; i += 16) {
      for (int r = 0; r < count; ++r) from[r] = rows[r] + i;
      L::turn(from, count, static_cast<int>(n - i < 16 ? n - i : 16), factor,
              out + i * pitch, pitch);
    }
  } else {
    for (int r = 0; r < 16; ++r) {
      for (int64_t i = 0; i < n; ++i) {
        out[i * pitch + r] = r < count ? factor * rows[r][i] : 0.0f;
      }
    }
  }
}

// Entries `at` to `at + n` of an operand as floats times a factor: themselves, if they
// are that, or in `room`.
inline const float* floats_at(Type type, const char* p, int64_t at, int64_t n,
                              float factor, float* room) {
  if (type == Type::kF32) {
    const float* from = reinterpret_cast<const float*>(p) + at;
    if (factor == 1.0f) return from;
    for (int64_t i = 0; i < n; ++i) room[i] = from[i] * factor;
  } else if (type == Type::kBf16) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(p) + at;
    for (int64_t i = 0; i < n; ++i) room[i] = from_bf16(from[i]) * factor;
  } else {
    const int8_t* from = reinterpret_cast<const int8_t*>(p) + at;
    for (int64_t i = 0; i < n; ++i) room[i] = from[i] * factor;
  }
  return room;
}

inline float scale_at(const float* scale, int64_t stride, int64_t i) {
  return scale == nullptr ? 1.0f : scale[i * stride];
}

// Asks for the same row of the next head, where heads lie side by side: the machine only
// foresees what follows in memory. (The last head asks for what nobody needs.)
inline void ask(Type type, const char* p, int64_t at, int64_t n, int64_t place,
                int64_t head) {
  if (place == n) return;
  const int64_t width = width_of(type);
  for (int64_t i = 0; i < n * width; i += 64) {
    __builtin_prefetch(p + (at + head) * width + i, 0, 2);
  }
}

inline void lay_keys(const Heads& a, const Head& h, int64_t from, int64_t n, float* room,
                     float* out) {
  if (a.key_feature == 1) {
    for (int64_t i = 0; i < n; ++i) {
      ask(a.key_type, h.key, (from + i) * a.key_place, a.d, a.key_place, a.key_head);
      const float* row =
          floats_at(a.key_type, h.key, (from + i) * a.key_place, a.d,
                    scale_at(h.key_scale, a.key_scale, from + i), room);
      int64_t f = 0;
      for (; f + kChunk <= a.d; f += kChunk) {
        std::memcpy(out + (f * n + i * kChunk), row + f, kChunk * 4);
      }
      if (f < a.d) std::memcpy(out + (f * n + i * kChunk), row + f, (a.d - f) * 4);
    }
    return;
  }
  // Features are the rows here.
  for (int64_t f = 0; f < a.d; f += kChunk) {
    const int count = static_cast<int>(a.d - f < kChunk ? a.d - f : kChunk);
    const float* rows[kChunk];
    for (int r = 0; r < count; ++r) {
      rows[r] = floats_at(a.key_type, h.key, (f + r) * a.key_feature + from, n, 1.0f,
                          room + r * n);
    }
    turn(rows, count, n, 1.0f, out + f * n, kChunk);
  }
  for (int64_t i = 0; h.key_scale != nullptr && i < n; ++i) {
    const float scale = h.key_scale[(from + i) * a.key_scale];
    for (int64_t f = 0; f < a.d; ++f) {
      out[f / kChunk * kChunk * n + i * kChunk + f % kChunk] *= scale;
    }
  }
}

// Values where they lie, if they lie well, or in `out`.
inline const float* lay_values(const Heads& a, const Head& h, int64_t from, int64_t n,
                               float* out) {
  const int64_t pitch = padded(a.dv);
  if (a.value_type == Type::kF32 && h.value_scale == nullptr && a.value_place == pitch) {
    return reinterpret_cast<const float*>(h.value) + from * pitch;
  }
  for (int64_t i = 0; i < n; ++i) {
    float* to = out + i * pitch;
    ask(a.value_type, h.value, (from + i) * a.value_place, a.dv, a.value_place,
        a.value_head);
    const float* row = floats_at(a.value_type, h.value, (from + i) * a.value_place, a.dv,
                                 scale_at(h.value_scale, a.value_scale, from + i), to);
    if (row != to) std::memcpy(to, row, a.dv * 4);
    for (int64_t f = a.dv; f < pitch; ++f) to[f] = 0.0f;
  }
  return out;
}

// A block of queries.
struct Queries {
  int64_t first, count;      // rows of the head
  int registers;             // that they take
  float *laid, *o, *most, *sum;
  int32_t *low, *high;       // the keys that each sees: low <= key < high
  int64_t inner_low, inner_high, outer_low, outer_high;  // seen by all, by any
};

// What of bias and mask concerns query `row`.
inline int64_t place_of(const Heads& a, int64_t row, int64_t head, int64_t query) {
  return row / a.queries * head + row % a.queries * query;
}

inline void lay_queries(const Heads& a, const Head& h, float* room, Queries* q) {
  for (int half = 0; half * 16 < q->registers * V::kLanes; ++half) {
    const float* rows[16];
    const int64_t left = q->count - half * 16;
    const int count = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);
    for (int r = 0; r < count; ++r) {
      const int64_t at =
          place_of(a, q->first + half * 16 + r, a.query_head, a.query_place);
      ask(a.query_type, h.query, at, a.d, a.query_place, a.share * a.query_head);
      rows[r] = floats_at(a.query_type, h.query, at, a.d, 1.0f, room + r * a.d);
    }
    turn(rows, count, a.d, a.scale, q->laid + half * 16, kColumns);
  }
}

inline void lay_ranges(const Heads& a, int64_t known, Queries* q) {
  q->inner_low = q->outer_high = 0;
  q->inner_high = q->outer_low = a.keys;
  for (int64_t j = 0; j < kColumns; ++j) {
    const int64_t row = q->first + (j < q->count ? j : q->count - 1);
    const int64_t t = row % a.queries;
    int64_t low = 0, high = known;
    if (a.causal && t + 1 < high) high = t + 1;
    if (a.right >= 0 && t + a.right + 1 < high) high = t + a.right + 1;
    if (a.left >= 0 && t - a.left > 0) low = t - a.left;
    q->low[j] = static_cast<int32_t>(low < a.keys ? low : a.keys);
    q->high[j] = static_cast<int32_t>(high);
    if (low > q->inner_low) q->inner_low = low;
    if (high < q->inner_high) q->inner_high = high;
    if (low < q->outer_low) q->outer_low = low;
    if (high > q->outer_high) q->outer_high = high;
  }
}

// ------------------------------------------------------- what is added and masked

// A square of bias or mask, turned to [keys][32]. `row_at(r, room)` is row r as floats.
template <typename Row>
inline void turn_rows(const Queries& q, int64_t n, float* room, float* out,
                      const Row& row_at) {
  for (int half = 0; half * 16 < q.count; ++half) {
    const float* rows[16];
    const int64_t left = q.count - half * 16;
    const int count = static_cast<int>(left < 16 ? left : 16);
    for (int r = 0; r < count; ++r) rows[r] = row_at(half * 16 + r, room + r * n);
    turn(rows, count, n, 1.0f, out + half * 16, kColumns);
  }
}

inline void add_bias(const Heads& a, const Head& h, const Queries& q, int64_t from,
                     int64_t n, float* scores, float* room) {
  const int64_t keys = a.bias_key == 0 ? 1 : n;
  const int64_t first = a.bias_key == 0 ? 0 : from;
  if (a.bias_query == 0 && a.bias_head == 0) {
    const float* bias = floats_at(a.bias_type, h.bias, first, keys, 1.0f, room);
    for (int64_t i = 0; i < n; ++i) {
      const float b = bias[keys == 1 ? 0 : i];
      for (int j = 0; j < kColumns; ++j) scores[i * kColumns + j] += b;
    }
    return;
  }
  float* turned = room + 16 * n;
  turn_rows(q, keys, room, turned, [&](int64_t r, float* to) {
    const int64_t at = place_of(a, q.first + r, a.bias_head, a.bias_query) + first;
    return floats_at(a.bias_type, h.bias, at, keys, 1.0f, to);
  });
  for (int64_t i = 0; i < n; ++i) {
    const float* b = turned + (keys == 1 ? 0 : i) * kColumns;
    // Rows past the last are not written, and nobody reads their scores.
    for (int j = 0; j < q.registers * V::kLanes; ++j) scores[i * kColumns + j] += b[j];
  }
}

inline void hide(const Heads& a, const Head& h, const Queries& q, int64_t from,
                 int64_t n, float* scores, float* room) {
  const int64_t keys = a.mask_key == 0 ? 1 : n;
  const int64_t first = a.mask_key == 0 ? 0 : from;
  if (a.mask_query == 0 && a.mask_head == 0) {
    for (int64_t i = 0; i < n; ++i) {
      // A run of one key, the last one, is not at 0.
      if (h.mask[keys == 1 ? first : from + i]) continue;
      for (int j = 0; j < kColumns; ++j) scores[i * kColumns + j] = a.masked;
    }
    return;
  }
  float* turned = room + 16 * n;
  turn_rows(q, keys, room, turned, [&](int64_t r, float* to) {
    const uint8_t* mask =
        h.mask + place_of(a, q.first + r, a.mask_head, a.mask_query) + first;
    for (int64_t i = 0; i < keys; ++i) to[i] = mask[i];
    return static_cast<const float*>(to);
  });
  for (int64_t i = 0; i < n; ++i) {
    const float* sees = turned + (keys == 1 ? 0 : i) * kColumns;
    float* x = scores + i * kColumns;
    for (int j = 0; j < q.registers * V::kLanes; ++j) {
      x[j] = sees[j] != 0.0f ? x[j] : a.masked;
    }
  }
}

// What is outside of the range that a query sees.
inline void hide_outside(const Heads& a, const Queries& q, int64_t from, int64_t n,
                         float* scores) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = static_cast<int32_t>(from + i);
    float* x = scores + i * kColumns;
    for (int j = 0; j < kColumns; ++j) {
      x[j] = q.low[j] <= key && key < q.high[j] ? x[j] : a.masked;
    }
  }
}
