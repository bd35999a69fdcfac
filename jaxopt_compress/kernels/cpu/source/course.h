// Where the windows of a convolution of floats lie, along an axis.
//
// Output o has its window at  o stride - low,  and tap t lies  t dilation  further on. If
// the entries of the image lie `spread` apart, with zeros between them, only those taps
// count that meet an entry:
//
//   entry(o, t) = (o stride - low + t dilation) / spread,   where that is whole
//
// Outputs that are `period` apart meet entries with the same taps: they are a phase. So
// nothing is multiplied by the zeros of a transposed convolution.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "image.h"

namespace jaxopt_compress {

struct Tap {
  int64_t tap;
  int64_t entry;  // that the first output of the phase meets
};

struct Phase {
  int64_t first;  // output
  int64_t count;  // outputs
  std::vector<Tap> taps;
};

struct Course {
  int64_t period = 1;  // outputs from one of a phase to the next
  int64_t step = 1;    // entries that its window moves on meanwhile
  // Entries that windows reach: from -low on, and `high` of them past the last.
  int64_t low = 0, high = 0;
  int64_t reach = 1;  // entries that the first windows of all phases lie in
  std::vector<Phase> phases;

  const Phase& of(int64_t output) const { return phases[output % period]; }
  // The entry that an output meets with the tap of its phase at `i`.
  int64_t entry(int64_t output, size_t i) const {
    return of(output).taps[i].entry + output / period * step;
  }
};

inline int64_t floor_div(int64_t n, int64_t by) {
  return n / by - (n % by != 0 && (n < 0) != (by < 0));
}

inline Course course_of(const Axis& axis) {
  Course c;
  const int64_t shared = std::gcd(axis.spread, axis.stride);
  c.period = axis.spread / shared;
  c.step = axis.stride / shared;
  const int64_t out = axis.out();
  int64_t lowest = axis.size, highest = -1;
  for (int64_t first = 0; first < c.period; ++first) {
    Phase phase = {first, first < out ? (out - first - 1) / c.period + 1 : 0, {}};
    for (int64_t tap = 0; tap < axis.taps; ++tap) {
      const int64_t at = first * axis.stride - axis.low + tap * axis.dilation;
      if (at - floor_div(at, axis.spread) * axis.spread != 0) continue;
      phase.taps.push_back({tap, floor_div(at, axis.spread)});
    }
    if (phase.count > 0 && !phase.taps.empty()) {
      const int64_t first_entry = phase.taps.front().entry;
      const int64_t last_entry = phase.taps.back().entry;
      c.low = std::max(c.low, -first_entry);
      c.high =
          std::max(c.high, last_entry + (phase.count - 1) * c.step + 1 - axis.size);
      lowest = std::min(lowest, first_entry);
      highest = std::max(highest, last_entry);
      c.reach = std::max(c.reach, highest - lowest + 1);
    }
    c.phases.push_back(phase);
  }
  return c;
}

// A run of floats of a window that lie together.
struct FloatPiece {
  int64_t line;  // which tap of the phase along the height
  int64_t from;  // floats past where the first entry of the line lies
  int64_t n;
  int64_t to;    // row of the weight
};

// What the images of a call of floats have in common.
struct FloatScene {
  Axis y, x;
  Course rows, columns;
  int64_t images, channels;
  int64_t features;  // groups of features
  bool apart;        // whether channels are kept apart
  bool direct;       // whether lines of images are read where they lie
  int64_t lines;     // of an image, that are held at once
  int64_t block;     // lines of results that are made at once
  // [phases of rows][phases of columns], of the first group of features.
  std::vector<std::vector<FloatPiece>> pieces;

  // Floats of a pixel as lines have them.
  int64_t pitch(int64_t n) const { return apart ? n : channels; }
  // Floats of a line, which may be read one register past its end.
  int64_t line(int64_t n) const {
    const int64_t entries = columns.low + x.size + columns.high;
    return depth_columns(entries * pitch(n)) + kDepthColumns;
  }
  int64_t row() const { return depth_columns(x.size * channels); }  // of an image
};

// What a task computes, for one image.
struct FloatPart {
  int64_t image, features;
  int64_t panel, panels;           // of 32 columns
  int64_t y_first, y_last;         // rows of results
  int64_t x_first, x_last;         // and their pixels
};

}  // namespace jaxopt_compress
