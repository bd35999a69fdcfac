// Norms of rows, which may stand in front of a product:
//
//   y = (x - mean) / sqrt(mean of (x - mean)^2 + eps) * scale + shift
//
// with 0 for the mean if it is not centered. A row stays in the first-level cache, so
// reading it once for each mean costs little, and squares are those of differences.
//
// Included by rows.h.

// The sum of `k` terms. As many are added side by side as fill several registers.
template <typename Term>
inline float sum_of(int64_t k, Term term) {
  constexpr int kEach = 64;
  float parts[kEach] = {};
  int64_t i = 0;
  for (; i + kEach <= k; i += kEach) {
    for (int j = 0; j < kEach; ++j) parts[j] += term(i + j);
  }
  for (; i < k; ++i) parts[i % kEach] += term(i);
  for (int half = kEach / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) parts[j] += parts[j + half];
  }
  return parts[0];
}

// The norm of a row of k floats, which may lie at `out` already.
inline void normalize(const Norm& norm, int64_t k, const float* x, const float* scale,
                      const float* shift, float* out) {
  const float each = 1.0f / static_cast<float>(k);
  const float mean =
      norm.centered ? sum_of(k, [x](int64_t i) { return x[i]; }) * each : 0.0f;
  const float squares = sum_of(k, [x, mean](int64_t i) {
    const float apart = x[i] - mean;
    return apart * apart;
  });
  const float factor = 1.0f / __builtin_sqrtf(squares * each + norm.eps);
  if (scale == nullptr) {
    for (int64_t i = 0; i < k; ++i) out[i] = (x[i] - mean) * factor;
  } else {
    for (int64_t i = 0; i < k; ++i) out[i] = (x[i] - mean) * factor * scale[i];
  }
  if (shift == nullptr) return;
  for (int64_t i = 0; i < k; ++i) out[i] += shift[i];
}

// A row of x as floats that become codes: itself, or converted or normalized in `room`.
inline const float* row_of(const Job& job, const Item& item, int64_t row, float* room) {
  const float* x = floats_of(job, item.x, row, room);
  if (!job.norm.there) return x;
  normalize(job.norm, job.k, x, item.norm_scale, item.norm_shift, room);
  if (job.x_type == Type::kF32) {
    float* kept = static_cast<float*>(item.normed);
    if (kept != nullptr) std::memcpy(kept + row * job.k, room, job.k * sizeof(float));
    return room;
  }
  // The norm of bfloat16 is bfloat16, whoever reads it.
  uint16_t* kept = static_cast<uint16_t*>(item.normed);
  for (int64_t i = 0; i < job.k; ++i) {
    const uint16_t half = to_bf16(room[i]);
    if (kept != nullptr) kept[row * job.k + i] = half;
    room[i] = from_bf16(half);
  }
  return room;
}
