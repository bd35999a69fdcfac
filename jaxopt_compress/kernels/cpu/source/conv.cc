// The convolution of a stack of images, as XLA calls it.
//
// A product of each window, as a row, with the weight of each group of features. The
// rows of a few tiles at a time are copied together where a first or second cache
// holds them.

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "paths.h"
#include "scene.h"

namespace jaxopt_compress {
namespace {

// What a call says besides its operands.
struct Options {
  Finish finish;
  std::string_view format;
  int32_t given;  // of the operands that may be missing
  int64_t group;
  int64_t n;
  std::string_view path;
  Rounding rounding;
  Geometry windows;
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<jaxopt_compress::Finish>{"finish"},
    Field<std::string_view>{"format"},
    Field<int32_t>{"given"}, Field<int64_t>{"group"},
    Field<int64_t>{"n"},
    Field<std::string_view>{"path"},
    Field<jaxopt_compress::Rounding>{"rounding"},
    Field<jaxopt_compress::Geometry>{"windows"});

namespace jaxopt_compress {
namespace {

// Codes of rows that a worker makes before it multiplies them.
constexpr int64_t kGathered = 1 << 16;

struct Call {
  Job image_job;  // whose rows are those of images
  Job job;
  Tiles tiles;
  int64_t block;  // tiles that are made at once
  bool slides;    // or none is made: windows are multiplied where they lie
  Scene scene;
  const Path* path;
  std::vector<Stack> stacks;
  std::vector<Item> items;  // [stacks][features]
  int64_t panels_each, tiles_each;  // of a task; lines, where windows slide
  int64_t panel_tasks, tile_tasks;  // of an item

  // Rows of pixels of all images of a stack.
  int64_t lines() const { return scene.images * scene.y.out(); }

  // Bytes of results from a pixel to the next.
  int64_t pixel_bytes() const { return job.stride * bytes_of(job.out_type); }

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    thread_local Room room;
    if (round == 0) {
      const Stack& stack = call.stacks[i / call.scene.images];
      call.path->image(call.image_job, call.scene, stack,
                       i % call.scene.images,
                       room.of(image_workspace(call.scene)));
      return;
    }
    call.multiply(i, room);
  }

  void multiply(int64_t i, Room& room) const {
    const int64_t of_item = panel_tasks * tile_tasks;
    const int64_t panel = i % of_item / tile_tasks * panels_each;
    const int64_t panels = std::min(panels_each, job.panels - panel);
    const int64_t first = i % tile_tasks * tiles_each;
    const int64_t features = i / of_item % scene.features;
    const Stack& stack = stacks[i / of_item / scene.features];
    if (slides) {
      path->slide(job, scene, stack, items[i / of_item], features, panel, panels,
                  first, std::min(first + tiles_each, lines()),
                  room.of(rounded(scales_workspace(job)) +
                          job.steps() * kColumns * kSteps +
                          scene.taps() * scene.pitch * kColumns));
      return;
    }
    const int64_t last = std::min(first + tiles_each, tiles.count);
    const int64_t each = tiles.used / job.digits;
    Tiles t = tiles;
    t.count = block;
    const Layout layout(job, t);
    char* memory = room.of(layout.bytes() + path->workspace(job, t));
    Item item = items[i / of_item];
    char* const out = static_cast<char*>(item.out);
    const char* const other = static_cast<const char*>(item.other);
    layout.place(memory, &item);
    char* workspace = memory + layout.bytes();
    // What windows do not reach: the ends of groups.
    std::memset(item.codes, 0, layout.codes);
    Job some = job;
    for (int64_t tile = first; tile < last; tile += block) {
      t.count = std::min(block, last - tile);
      const int64_t pixel = tile * each;
      some.rows = std::min(t.count * each, job.rows - pixel);
      item.out = out + pixel * pixel_bytes();
      if (job.joins) item.other = other + pixel * pixel_bytes();
      for (int64_t j = 0; j < t.count; ++j) {
        path->gather(some, t, scene, stack, features, pixel + j * each, item, j);
      }
      path->multiply(some, t, item, panel, panels, 0, t.count, workspace);
    }
  }
};

// The runs of a window that lie together, as far as groups go.
void find_pieces(const Job& job, Scene* s) {
  const int64_t own = s->own_pitch(), all = s->taps() * own;
  const bool joined = s->x.dilation == 1 && s->features == 1;
  const int64_t run = joined ? s->x.taps * own : own;
  const int64_t width = job.group_steps() * kSteps;
  const int64_t group = job.groups > 1 ? job.group : all;
  for (int64_t k = 0; k < all;) {
    const int64_t tap = k / own, channel = k % own;
    const int64_t position = tap / s->x.taps * s->y.dilation * s->wide() +
                             tap % s->x.taps * s->x.dilation;
    int64_t end = (k / run + 1) * run;
    int64_t to = k;
    // Floats are not laid out by groups.
    if (!job.in_floats()) {
      end = std::min(end, (k / group + 1) * group);
      to = k / group * width + k % group;
    }
    const int64_t from = position * s->pitch + channel;
    const int64_t n = std::min(end, all) - k;
    s->pieces.push_back({from * s->entry, to * s->entry, n * s->entry});
    k += n;
    if (k == all || k % group == 0) s->ends.push_back(s->pieces.size());
  }
  // Sums of channels make those of rows up, unless a group ends between them.
  s->cell = job.in_floats() ? 0
            : job.groups == 1 ? own
            : own % job.group == 0 ? job.group : 0;
  s->of_windows = s->cell > 0 && job.groups == 1;
  if (s->of_windows) s->parts.push_back(0);
  if (s->cell == 0 || s->of_windows) return;
  const int64_t cells = own / s->cell;
  for (int64_t i = 0; i < s->taps() * cells; ++i) {
    const int64_t tap = i / cells;
    const int64_t position = tap / s->x.taps * s->y.dilation * s->wide() +
                             tap % s->x.taps * s->x.dilation;
    s->parts.push_back(position * s->cells() + i % cells);
  }
}

// Whether windows can be multiplied where they lie: in whole steps, and what their
// codes add up to is known.
bool can_slide(const Job& job, const Scene& s) {
  if (job.in_floats() || s.cell == 0) return false;
  for (const Piece& piece : s.pieces) {
    if (piece.to % kSteps != 0 || piece.bytes % kSteps != 0) return false;
  }
  return true;
}

ffi::Error conv(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                ffi::AnyBuffer w, ffi::RemainingArgs rest,
                ffi::Result<ffi::AnyBuffer> out, Options options) {
  if (out->element_count() == 0) return ffi::Error::Success();
  const auto operands = Operands::of(rest, options.given);
  if (!operands) return wrong("operands are missing");
  const auto [scale, zero, totals, bias, act_scale, act_zero, other] =
      *operands;
  const auto& [finish, format, given, group, n, path, rounding, windows] = options;
  const Format* found = format_of(format);
  if (found == nullptr) return wrong("no format " + std::string(format));
  const auto x_dims = x.dimensions(), w_dims = w.dimensions();
  const auto out_dims = out->dimensions();
  if (n < 1 || group < 1 || !known(rounding)) {
    return wrong("sizes must be positive");
  }
  if (out_dims.size() < 4 || w_dims.size() < 4) {
    return wrong("x must be stacks of images, w of groups of matrices");
  }
  auto call = std::make_unique<Call>();
  Scene& scene = call->scene;
  if (!scene_of(x_dims, windows, &scene)) {
    return wrong("windows do not fit the images");
  }
  const Batch::Dims lead(out_dims.begin(), out_dims.size() - 4);
  const ffi::AnyBuffer* others[] = {&scale, &zero, &totals, &bias};
  bool fits = Batch::fits(x_dims, 4, lead) && Batch::fits(w_dims, 4, lead);
  // Images that share a weight are one stack.
  bool shared = Batch::single(w_dims, 4);
  for (const ffi::AnyBuffer* each : others) {
    if (each->element_count() == 0) continue;
    fits = fits && Batch::fits(each->dimensions(), 3, lead);
    shared = shared && Batch::single(each->dimensions(), 3);
  }
  for (const ffi::AnyBuffer* each : {&act_scale, &act_zero}) {
    if (each->element_count() == 0) continue;
    fits = fits && Batch::fits(each->dimensions(), 2, lead);
    shared = shared && Batch::single(each->dimensions(), 2);
  }
  if (other.element_count() > 0) {
    fits = fits && Batch::fits(other.dimensions(), 4, lead);
    shared = shared && Batch::full(other.dimensions(), 4, lead);
  }
  if (!fits) return wrong("leading axes do not fit those of the result");

  ffi::AnyBuffer result = *out;
  Job& job = call->job;
  job = job_of(x, scale, zero, result, rounding);
  if (!finish_of(finish, other, result, &job)) {
    return wrong("results of this type cannot be finished like this");
  }
  job.format = *found;
  if (job.in_floats()) job.digits = 1;
  const size_t at = w_dims.size() - 4;
  scene.features = w_dims[at];
  if (scene.features < 1 || scene.channels % scene.features != 0) {
    return wrong("groups of features do not divide the channels");
  }
  scene.planes = job.digits;
  scene.entry = job.in_floats() ? 4 : 1;
  job.k = scene.taps() * scene.own_channels();
  job.n = n;
  job.stride = scene.features * n;
  job.group = std::min(group, job.k);
  job.groups = ceil_div(job.k, job.group);
  job.panels = w_dims[at + 1];
  job.units = w_dims[at + 2];
  const int64_t unit_rows = job.format.rows;
  const int64_t last = job.k - (job.groups - 1) * job.group;
  const int64_t unit_each = ceil_div(job.group, unit_rows);
  const size_t out_at = out_dims.size() - 4;
  const bool sizes =
      out_dims[out_at] == scene.images && out_dims[out_at + 1] == scene.y.out() &&
      out_dims[out_at + 2] == scene.x.out() &&
      out_dims[out_at + 3] == job.stride &&
      w_dims[at + 3] == job.format.bytes &&
      job.panels == ceil_div(n, kColumns) &&
      job.units ==
          (job.groups - 1) * unit_each + ceil_div(last, unit_rows);
  if (!sizes) return wrong("shapes do not fit each other");
  const bool codes = job.act == Act::kCodes;
  const bool types =
      types_fit(job, act_scale) && w.element_type() == ffi::U8 &&
      are_f32(totals, bias, act_scale, act_zero) &&
      (zero.element_count() == 0 || job.zero_type != Type::kNone) &&
      !(codes && (job.groups > 1 || job.zero_type != Type::kNone)) &&
      !(job.in_floats() && job.act != Act::kFloat);
  if (!types) return wrong("types do not fit each other");
  if (!job.in_floats() && job.group > kMostSummed) {
    return wrong("sums of so many products do not fit in 32 bits");
  }
  const auto stack_of = [](const ffi::AnyBuffer& b, int64_t features, int64_t rows,
                           int64_t columns) {
    const auto d = b.dimensions();
    return b.element_count() == 0 ||
           (d[d.size() - 3] == features && d[d.size() - 2] == rows &&
            d[d.size() - 1] == columns);
  };
  const int64_t features = scene.features;
  if ((!codes && !stack_of(scale, features, job.groups, n)) ||
      !stack_of(zero, features, job.groups, n) ||
      !stack_of(totals, features, 1, n) || !stack_of(bias, features, 1, n)) {
    return wrong("shapes of scales do not fit");
  }
  if (other.element_count() > 0 &&
      !std::equal(out_dims.begin() + out_at, out_dims.end(),
                  other.dimensions().end() - 4)) {
    return wrong("the other operand does not fit the result");
  }
  if (!are_codes(act_zero)) return wrong("zero points must be int8 numbers");

  int64_t stacks = 1;
  for (int64_t d : lead) stacks *= d;
  const int64_t of_stack = scene.images * scene.y.size * scene.x.size * scene.channels;
  if (shared && static_cast<int64_t>(x.element_count()) == stacks * of_stack) {
    scene.images *= stacks;
    stacks = 1;
  }
  const bool merged = stacks == 1;
  job.rows = scene.images * scene.pixels();
  call->image_job = job;
  call->image_job.k = scene.x.size * scene.channels;
  const std::string name(path);
  call->path = path_for(job, name.c_str());
  if (call->path == nullptr) {
    return wrong("no instruction path " + name + " for this convolution here");
  }
  call->tiles = call->path->tiles(job);
  const Tiles& t = call->tiles;
  if (t.size > kMostSlots) return wrong("tiles are too large");
  call->block = std::max<int64_t>(std::min(kGathered / t.codes(), t.count), 1);
  // Wide tiles of many columns and long rows are worth the copies that they need.
  const bool wide =
      t.chunk > kSteps && n > kColumns && job.k > 4 * int64_t{t.chunk};
  if (!wide && !job.in_floats() && job.groups == 1 && scene.features == 1) {
    scene.pitch = (scene.channels + kSteps - 1) / kSteps * kSteps;
  }
  find_pieces(job, &scene);
  call->slides = !wide && can_slide(job, scene);

  thread_local Room room;
  char* memory = room.of(stacks * stack_bytes(scene));
  const auto entry = [&](const ffi::AnyBuffer& b, size_t inner, int64_t i,
                         int64_t bytes) -> const char* {
    if (b.element_count() == 0) return nullptr;
    const int64_t place = merged ? 0 : Batch::at(b.dimensions(), inner, lead, i);
    return static_cast<const char*>(b.untyped_data()) + place * bytes;
  };
  const int64_t pixels = job.rows * job.stride * bytes_of(job.out_type);
  for (int64_t i = 0; i < stacks; ++i) {
    Stack stack = {};
    stack.x = entry(x, 4, i, of_stack * bytes_of(job.x_type));
    stack.act_scale = number_of(entry(act_scale, 2, i, 4), 1.0f);
    stack.act_zero = number_of(entry(act_zero, 2, i, 4), 0.0f);
    place(scene, memory + i * stack_bytes(scene), &stack);
    call->stacks.push_back(stack);
    const auto own = [&](const ffi::AnyBuffer& b, int64_t bytes, int64_t f) {
      const char* all = entry(b, 3, i, features * bytes);
      return all == nullptr ? nullptr : all + f * bytes;
    };
    const int64_t w_bytes = job.panels * job.units * job.format.bytes;
    for (int64_t f = 0; f < features; ++f) {
      Item item = {};
      item.w = reinterpret_cast<const uint8_t*>(
          entry(w, 4, i, features * w_bytes) + f * w_bytes);
      item.scale = own(scale, job.groups * n * bytes_of(job.scale_type), f);
      item.zero = own(zero, job.groups * n * bytes_of(job.zero_type), f);
      item.totals = reinterpret_cast<const float*>(own(totals, n * 4, f));
      item.bias = reinterpret_cast<const float*>(own(bias, n * 4, f));
      item.out = static_cast<char*>(out->untyped_data()) + i * pixels +
                 f * n * bytes_of(job.out_type);
      item.other = entry(other, 4, i, pixels);
      if (job.joins) {
        item.other = static_cast<const char*>(item.other) +
                     f * n * bytes_of(job.out_type);
      }
      call->items.push_back(item);
    }
  }

  const int64_t products = stacks * features;
  // In products; a result and an entry of an image count as 64.
  const double work = 1.0 * products * job.rows * n * (job.digits * job.k + 64) +
                      64.0 * stacks * of_stack;
  const bool small = work < (1 << 22);
  const int64_t workers = small ? 1 : std::max<int64_t>(pool.num_threads(), 1);
  const int64_t wanted = workers == 1 ? 1 : 8 * workers;
  // Whole panels where there are tiles enough: their rows are made once.
  const int64_t runs = std::max<int64_t>(wanted / products, 1);
  const int64_t count = call->slides ? call->lines() : t.count;
  const int64_t tile_runs = std::min(runs, count);
  call->tiles_each = ceil_div(count, tile_runs);
  call->tile_tasks = ceil_div(count, call->tiles_each);
  const int64_t panel_runs =
      std::min(std::max<int64_t>(runs / call->tile_tasks, 1), job.panels);
  call->panels_each = ceil_div(job.panels, panel_runs);
  call->panel_tasks = ceil_div(job.panels, call->panels_each);
  const Site site = {w.untyped_data(), id.run_id};
  const bool done = run(pool, site, workers - 1, &Call::task, call.get(),
                        stacks * scene.images,
                        products * call->panel_tasks * call->tile_tasks);
  if (!done) return wrong("there is no memory for a product of this size");
  return ffi::Error::Success();
}

}  // namespace

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_conv(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_conv, conv,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

}  // namespace jaxopt_compress
