// Images as codes, and where the windows of a convolution lie in them.
//
// The codes of an image are written with its padding and its dilation,
//
//   [digits][tall][wide][pitch]
//
// so that every window is the same list of runs of bytes, relative to where it begins:
// edges need no special case. The pitch is the number of channels, or that number filled
// up with zeros to whole steps. Padding has the code of a real zero. A row of a product
// is a window in the order (tap y, tap x, channel). Rows are copied together for a few
// tiles at a time, so the whole matrix of patches never exists.
#pragma once

#include <cstdint>
#include <vector>

#include "codes.h"

namespace jaxopt_compress {

// One of the two axes that a window moves along.
struct Axis {
  int64_t size;       // of the image
  int64_t taps, stride;
  int64_t spread;     // positions from an entry of the image to the next
  int64_t dilation;   // positions from a tap to the next
  int64_t low, high;  // positions added at the ends

  int64_t inside() const { return size > 0 ? (size - 1) * spread + 1 : 0; }
  int64_t padded() const { return low + inside() + high; }
  int64_t reach() const { return (taps - 1) * dilation + 1; }
  int64_t out() const {
    return padded() < reach() ? 0 : (padded() - reach()) / stride + 1;
  }
  bool plain() const { return spread == 1 && low == 0 && high == 0; }
};

// A run of entries of a window that lie together.
struct Piece {
  int64_t from;   // bytes past where the window begins
  int64_t to;     // bytes past where its row of codes begins
  int64_t bytes;
};

// What the images of a call have in common.
struct Scene {
  Axis y, x;
  int64_t images;    // of a stack
  int64_t channels;
  int64_t pitch;     // entries from a position to the next
  int64_t entry;     // bytes of a code, or of a float
  int64_t features;  // groups of features, each of them a product of its own
  int64_t planes;    // digits
  // Channels whose codes are added up together; 0 if groups of rows end between them.
  int64_t cell;
  bool of_windows;  // whether sums are those of whole windows, not of cells
  std::vector<Piece> pieces;  // of the first group of features
  int64_t cuts = 1;  // parts of a row of pixels that are computed apart
  int64_t strips = 1;  // runs of rows of an image whose codes are made apart
  // Where the sum of each group of rows is, relative to the sums of the window.
  std::vector<int64_t> parts;
  std::vector<int64_t> ends;  // for each group of rows, the pieces up to its last

  int64_t own_channels() const { return channels / features; }
  int64_t own_pitch() const { return pitch / features; }
  int64_t tall() const { return y.padded(); }
  int64_t wide() const { return x.padded(); }
  int64_t positions() const { return tall() * wide(); }  // of a plane
  int64_t pixels() const { return y.out() * x.out(); }   // of an image
  int64_t taps() const { return y.taps * x.taps; }
  int64_t cells() const { return cell == 0 ? 0 : pitch / cell; }
  int64_t plane_cells() const { return positions() * cells(); }
  // Sums of windows are made from windows that are one run of codes of several taps,
  // or from sums of cells, unless these are the same.
  bool of_runs() const { return of_windows && pieces.size() == 1 && taps() > 1; }
  bool of_cells() const {
    return of_windows && !of_runs() && (taps() > 1 || pixels() != positions());
  }
  // Bytes of the codes of a stack of images, and how many sums go with them.
  int64_t bytes() const {
    return images * planes * positions() * pitch * entry;
  }
  int64_t plane_sums() const {
    return of_windows ? pixels() * features : positions() * cells();
  }
  int64_t sums() const { return images * planes * plane_sums(); }
  // Sums of cells that strips of an image leave to each other, and extents.
  int64_t shared_cells() const {
    return strips > 1 && of_cells() ? images * planes * plane_cells() : 0;
  }
  int64_t extents() const { return strips > 1 ? 3 * images * strips : 0; }
};

// A stack of images.
struct Stack {
  const void* x;  // [images, height, width, channels]
  float act_scale, act_zero;
  // Made from x, image by image.
  char* codes;    // [images][planes][tall][wide][pitch]
  // Of the codes of windows, or of their cells:
  int32_t* sums;  // [images][planes], [out y][out x][features] or [tall][wide][cells]
  float* scales;  // [images]
  float* zeros;   // [images]
  // Only where images are several strips.
  int32_t* cells;  // [images][planes][tall][wide][cells]
  float* extents;  // [images][strips][3]
};

// Rows of codes in a tile, at most.
constexpr int kMostSlots = 64;

// A row of floats, sums of channels, and three rows of codes.
inline int64_t image_workspace(const Scene& s) {
  return (s.x.size * s.channels + 64) * (4 + 3) +
         (s.of_cells() ? 3 * s.plane_cells() * 4 : 0);
}

// Columns of a depthwise weight are filled up to multiples of this: layout.py.
constexpr int kDepthColumns = 16;

inline int64_t depth_columns(int64_t n) {
  return (n + kDepthColumns - 1) / kDepthColumns * kDepthColumns;
}

// Bytes for four rows of an image side by side, for all taps, and for a row of results, of
// sixteen channels.
inline int64_t depthwise_workspace(const Scene& s) {
  const int64_t quads = (s.y.taps + kSteps - 1) / kSteps;
  return (s.planes * quads * s.wide() * kSteps + s.x.out() * 4) * kDepthColumns;
}

}  // namespace jaxopt_compress
