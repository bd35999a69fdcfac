// What attention is made of. The handler (attention.cc) checks a call and describes it;
// instruction paths compute it, one head of keys at a time.
//
//   out[j] = sum_s p[j, s] v[s],   p[j] = softmax(scale q[j] k[s] + bias[j, s])
//
// Rows j are the queries of all heads that share these keys: j = head * queries + t.
#pragma once

#include "job.h"

namespace jaxopt_compress {

// What all heads have. Strides count entries; 0 where an operand broadcasts.
struct Heads {
  int64_t queries, share, keys;  // queries of a head, heads that share keys
  int64_t d, dv;                 // features of keys and of values
  Type query_type, key_type, value_type, bias_type, out_type;
  int64_t query_place, query_head, key_place, key_head, key_feature;
  int64_t value_place, value_head;
  int64_t out_place, out_head;
  int64_t bias_head, bias_query, bias_key;
  int64_t mask_head, mask_query, mask_key;
  int64_t key_scale, value_scale;  // from the scale of a key to the next
  float scale;
  float masked;  // the score of what may not be seen
  bool causal;
  int64_t left, right;  // the window; -1 for none

  int64_t rows() const { return queries * share; }
};

// One head of keys.
struct Head {
  const char *query, *key, *value;
  const char* bias;     // or null
  const uint8_t* mask;  // or null
  const float *key_scale, *value_scale;  // or null
  char* out;
  int64_t wanted, known;  // queries and keys below their lengths
};

// A run of keys.
struct Keys {
  int64_t from, to;
};

// Up to so many rows are computed key by key, as reading keys takes the time. Keys may
// then be split between workers, and what they found is merged.
constexpr int64_t kFewQueries = 8;

inline bool few(const Heads& a) { return a.rows() <= kFewQueries; }

// Features with room for whole registers.
inline int64_t padded(int64_t features) { return (features + 15) / 16 * 16; }

// Floats of what a worker found of a run of keys: of each row its largest score, the sum
// of its weights, and the sum of the values by them.
inline int64_t found_floats(const Heads& a) {
  return kFewQueries * (2 + padded(a.dv));
}

inline int64_t width_of(Type type) {
  return type == Type::kF32 ? 4 : type == Type::kBf16 ? 2 : 1;
}

inline bool sees(const Heads& a, int64_t t, int64_t key) {
  return !(a.causal && key > t) && !(a.left >= 0 && key < t - a.left) &&
         !(a.right >= 0 && key > t + a.right);
}

// The keys that some of the queries `first` to `last` of a head may see, but for masks
// that differ between queries.
inline Keys seen(const Heads& a, const Head& h, int64_t first, int64_t last) {
  Keys k = {0, h.known};
  if (a.causal && last < k.to) k.to = last;
  if (a.right >= 0 && last + a.right < k.to) k.to = last + a.right;
  if (a.left >= 0 && first - a.left > 0) k.from = first - a.left;
  if (h.mask != nullptr && a.mask_query == 0 && a.mask_head == 0) {
    while (k.from < k.to && !h.mask[(k.to - 1) * a.mask_key]) --k.to;
    while (k.from < k.to && !h.mask[k.from * a.mask_key]) ++k.from;
  }
  if (k.from > k.to) k.from = k.to;
  return k;
}

}  // namespace jaxopt_compress
