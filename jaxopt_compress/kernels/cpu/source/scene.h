// What the handlers of convolutions share: images, windows, and what becomes of them.
#pragma once

#include <algorithm>

#include "call.h"
#include "region.h"

namespace jaxopt_compress {

using Geometry = ffi::Span<const int64_t>;

// Fills in a scene from the shape [*lead, images, height, width, channels] of x and
// the numbers (y, x) of taps, strides, spreads, dilations, and of padding below and
// above. False if they make no convolution, or one whose sizes would overflow.
inline bool scene_of(Dims x, Geometry numbers, Scene* s) {
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
inline bool are_codes(const Part& zeros) {
  if (!zeros.there()) return true;
  const float* z = static_cast<const float*>(zeros.data());
  return std::all_of(z, z + zeros.entries(), [](float x) {
    return x >= -128.0f && x <= 127.0f && x == static_cast<int>(x);
  });
}

// Whether the result has the sizes that the windows give it.
inline bool out_fits(const Operands& p, const Scene& s, int64_t features) {
  return p.out.is({s.images, s.y.out(), s.x.out(), features});
}

// Bytes of the codes of a stack of images, and of what goes with them.
inline int64_t stack_bytes(const Scene& s) {
  return rounded(s.bytes()) + rounded(s.sums() * 4) + 2 * rounded(s.images * 4) +
         rounded(s.shared_cells() * 4) + rounded(s.extents() * 4);
}

// The images of entry `i` of a stack, with room for what they become.
inline Stack stack_of(const Operands& p, const Scene& s, Dims lead, int64_t i,
                      char* memory) {
  Stack stack = {};
  stack.x = p.x.at(lead, i);
  stack.act_scale = p.act_scale.number(lead, i, 1.0f);
  stack.act_zero = p.act_zero.number(lead, i, 0.0f);
  stack.codes = memory;
  memory += rounded(s.bytes());
  stack.sums = reinterpret_cast<int32_t*>(memory);
  memory += rounded(s.sums() * 4);
  stack.scales = reinterpret_cast<float*>(memory);
  memory += rounded(s.images * 4);
  stack.zeros = reinterpret_cast<float*>(memory);
  memory += rounded(s.images * 4);
  stack.cells = reinterpret_cast<int32_t*>(memory);
  memory += rounded(s.shared_cells() * 4);
  stack.extents = reinterpret_cast<float*>(memory);
  return stack;
}

// The job of making codes of images: its rows are those of an image.
inline Job image_job_of(const Job& job, const Scene& s) {
  Job of_images = job;
  of_images.k = s.x.size * s.channels;
  return of_images;
}

// How many strips an image is cut into while its codes are made: one, if there are images
// for all workers.
inline int64_t strips_for(const Scene& s, int64_t images, int64_t workers) {
  constexpr int64_t kLeast = 4096;  // entries of a strip
  const int64_t most = s.y.size * s.x.size * s.channels / kLeast;
  if (images >= workers) return 1;
  return std::max<int64_t>(std::min({2 * workers / images, s.y.size, most}), 1);
}

// How many tasks the rounds have in which codes of all images are made.
struct ImageTasks {
  int64_t extents, codes, sums;

  ImageTasks(const Job& job, const Scene& s, int64_t images) : codes(images * s.strips) {
    const bool measured = job.act != Act::kCodes && !job.in_floats();
    extents = s.strips > 1 && measured ? codes : 0;
    sums = s.strips > 1 && (s.of_runs() || s.of_cells()) ? codes : 0;
  }
};

}  // namespace jaxopt_compress
