// What the handlers of convolutions share: the scene of their operands.
#pragma once

#include <algorithm>
#include <cstring>

#include "call.h"
#include "region.h"

namespace jaxopt_compress {

using Geometry = ffi::Span<const int64_t>;

// Fills in a scene from the shape [*lead, images, height, width, channels] of x and
// the numbers (y, x) of taps, strides, spreads, dilations, and of padding below and
// above. False where they are no convolution, or one too large to count.
inline bool scene_of(Batch::Dims x, Geometry numbers, Scene* s) {
  if (x.size() < 4 || numbers.size() != 12) return false;
  constexpr int64_t kMost = int64_t{1} << 31;
  for (size_t i = 0; i < 12; ++i) {
    if (numbers[i] < (i < 8 ? 1 : 0) || numbers[i] >= kMost) return false;
  }
  const size_t at = x.size() - 4;
  Axis* axes[] = {&s->y, &s->x};
  for (size_t i = 0; i < 2; ++i) {
    *axes[i] = {x[at + 1 + i],  numbers[i],     numbers[2 + i], numbers[4 + i],
                numbers[6 + i], numbers[8 + i], numbers[10 + i]};
    if (axes[i]->size >= kMost) return false;
  }
  s->images = x[at];
  s->channels = s->pitch = x[at + 3];
  const double bytes = 16.0 * s->images * s->channels * s->tall() * s->wide();
  return s->channels > 0 && bytes < 1e15 &&
         1.0 * s->taps() * s->channels < kMost;
}

// Zero points that are given must be codes: padding is written in them.
inline bool are_codes(const ffi::AnyBuffer& zeros) {
  if (zeros.element_count() == 0) return true;
  if (type_of(zeros) != Type::kF32) return false;
  const float* z = static_cast<const float*>(zeros.untyped_data());
  for (size_t i = 0; i < zeros.element_count(); ++i) {
    if (!(z[i] >= -128.0f && z[i] <= 127.0f) || z[i] != static_cast<int>(z[i])) {
      return false;
    }
  }
  return true;
}

// A job as far as operands say it.
inline Job job_of(const ffi::AnyBuffer& x, const ffi::AnyBuffer& scale,
                  const ffi::AnyBuffer& zero, const ffi::AnyBuffer& out,
                  const Rounding& rounding) {
  Job job = {};
  static_cast<Rounding&>(job) = rounding;
  job.x_type = type_of(x);
  if (x.element_count() == 0) {
    // Nothing but padding: of any type.
    job.x_type = job.act == Act::kCodes ? Type::kS8 : Type::kF32;
  }
  job.scale_type = type_of(scale);
  job.zero_type = type_of(zero);
  job.out_type = type_of(out);
  job.digits = 1;
  if (job.act == Act::kFloat) job.digits = job.x_type == Type::kBf16 ? 2 : 3;
  return job;
}

inline bool types_fit(const Job& job, const ffi::AnyBuffer& act_scale) {
  const auto floating = [](Type t) { return t == Type::kF32 || t == Type::kBf16; };
  if (job.act == Act::kCodes) {
    return job.x_type == Type::kS8 && job.out_type == Type::kS32;
  }
  return floating(job.x_type) && floating(job.out_type) &&
         (floating(job.scale_type) || job.scale_type == Type::kE8m0) &&
         (job.zero_type == Type::kNone || job.zero_type == Type::kF32 ||
          job.zero_type == Type::kS8) &&
         (job.act != Act::kStatic || type_of(act_scale) == Type::kF32);
}

inline float number_of(const char* p, float otherwise) {
  float x = otherwise;
  if (p != nullptr) std::memcpy(&x, p, 4);
  return x;
}

// Bytes that a stack of images becomes.
inline int64_t stack_bytes(const Scene& s) {
  return rounded(s.bytes()) + rounded(s.sums() * 4) + 2 * rounded(s.images * 4);
}

inline void place(const Scene& s, char* memory, Stack* stack) {
  stack->codes = memory;
  memory += rounded(s.bytes());
  stack->sums = reinterpret_cast<int32_t*>(memory);
  memory += rounded(s.sums() * 4);
  stack->scales = reinterpret_cast<float*>(memory);
  memory += rounded(s.images * 4);
  stack->zeros = reinterpret_cast<float*>(memory);
}

}  // namespace jaxopt_compress
