// The convolution of a stack of images, as XLA calls it.
//
// Each window, as a row, is multiplied by the weight of each group of features. Rows are
// copied together for a few tiles at a time, as many as a first- or second-level cache
// holds; or not at all, if windows can be multiplied where they lie.

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "paths.h"
#include "scene.h"

namespace jaxopt_compress {
namespace {

// What a call says besides its operands, sorted by name.
struct Options {
  Finish finish;
  std::string_view format;
  int32_t given;  // which operands are there
  int64_t group, n;
  std::string_view path;
  Rounding rounding;
  Geometry windows;
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<jaxopt_compress::Finish>{"finish"},
    Field<std::string_view>{"format"}, Field<int32_t>{"given"},
    Field<int64_t>{"group"}, Field<int64_t>{"n"}, Field<std::string_view>{"path"},
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
  bool slides;    // whether none is made: windows are multiplied where they lie
  Scene scene;
  const Path* path;
  std::vector<Stack> stacks;
  std::vector<Item> items;  // [stacks][features]
  int64_t panels_each, tiles_each;  // of a task; parts of lines if it slides
  int64_t panel_tasks, tile_tasks;  // of an item

  // Rows of pixels of all images of a stack, and their parts.
  int64_t lines() const { return scene.images * scene.y.out(); }
  int64_t parts() const { return lines() * scene.cuts; }

  // Bytes of results from a pixel to the next.
  int64_t pixel_bytes() const { return job.stride * bytes_of(job.out_type); }

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    thread_local Room room;
    if (round < 3) {
      const int64_t strips = call.scene.images * call.scene.strips;
      call.path->image(call.image_job, call.scene, call.stacks[i / strips], i % strips,
                       round, room.of(image_workspace(call.scene)));
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
                  first, std::min(first + tiles_each, parts()),
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
    // Gathering does not write the ends of groups.
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

// Finds the runs of entries of a window that lie together, each within a group of rows.
void find_pieces(const Job& job, Scene* s) {
  s->pieces.clear();
  s->ends.clear();
  s->parts.clear();
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
  // Sums of rows are made of sums of channels, unless a group ends between channels.
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

// Whether windows can be multiplied where they lie: they are whole steps, and the sums of
// their codes are known. What is read past the last piece meets zeros of the weight.
bool can_slide(const Job& job, const Scene& s) {
  if (job.in_floats() || s.cell == 0) return false;
  for (const Piece& piece : s.pieces) {
    const bool last = &piece == &s.pieces.back() && job.groups == 1;
    if (piece.to % kSteps != 0 || (piece.bytes % kSteps != 0 && !last)) return false;
  }
  return true;
}

// Describes the products of windows, once the format is known and operands fit the
// stack.
ffi::Error describe(const Operands& p, const Options& options, Call* call) {
  Job& job = call->job;
  Scene& scene = call->scene;
  scene.features = p.w.axis(0);
  if (scene.features < 1 || scene.channels % scene.features != 0) {
    return wrong("groups of features do not divide the channels");
  }
  scene.planes = job.digits;
  scene.entry = job.in_floats() ? 4 : 1;
  set_matrix(scene.taps() * scene.own_channels(), options.n, options.group, &job);
  job.stride = scene.features * job.n;
  const bool sizes =
      p.w.there() && out_fits(p, scene, job.stride) &&
      p.w.is({scene.features, job.panels, job.units, job.format.bytes});
  if (!sizes) return wrong("shapes do not fit each other");
  // An image of one column is one row, whose windows are computed side by side.
  if (scene.x.size == 1 && scene.x.taps == 1 && scene.x.plain()) {
    std::swap(scene.y, scene.x);
  }
  const ffi::Error finish = set_finish(p, options.finish, &job);
  if (finish.failure()) return finish;
  if (!p.w.is(Type::kU8)) return wrong("types do not fit each other");
  const bool scaled = job.act != Act::kCodes;
  const ffi::Error checked = check_operands(p, job, scaled, scene.features);
  if (checked.failure()) return checked;
  if (!are_codes(p.act_zero)) return wrong("zero points must be int8 numbers");
  return ffi::Error::Success();
}

// Chooses the path, and whether windows are copied together into tiles.
ffi::Error choose(std::string_view path, Call* call) {
  Job& job = call->job;
  Scene& scene = call->scene;
  call->image_job = image_job_of(job, scene);
  const std::string name(path);
  call->path = path_for(job, name.c_str());
  if (call->path == nullptr) {
    return wrong("no instruction path " + name + " for this convolution here");
  }
  call->tiles = call->path->tiles(job);
  const Tiles& t = call->tiles;
  if (t.size > kMostSlots) return wrong("tiles are too large");
  call->block = std::max<int64_t>(std::min(kGathered / t.codes(), t.count), 1);
  // With many columns and long rows, wide tiles are worth the copies that they need.
  const bool wide =
      t.chunk > kSteps && job.n > kColumns && job.k > 4 * int64_t{t.chunk};
  find_pieces(job, &scene);
  call->slides = !wide && can_slide(job, scene);
  if (!wide && !call->slides && !job.in_floats() && job.groups == 1 &&
      scene.features == 1) {
    scene.pitch = (scene.channels + kSteps - 1) / kSteps * kSteps;
    find_pieces(job, &scene);
    call->slides = can_slide(job, scene);
  }
  return ffi::Error::Success();
}

// What each stack of images and each group of features reads and writes.
void fill(const Operands& p, Dims lead, int64_t stacks, Call* call) {
  const Job& job = call->job;
  const Scene& scene = call->scene;
  thread_local Room room;
  char* memory = room.of(stacks * stack_bytes(scene));
  const auto moved = [](const void* from, int64_t bytes) {
    return from == nullptr ? nullptr : static_cast<const char*>(from) + bytes;
  };
  for (int64_t i = 0; i < stacks; ++i) {
    call->stacks.push_back(
        stack_of(p, scene, lead, i, memory + i * stack_bytes(scene)));
    const Item first = item_of(p, job, lead, i);
    for (int64_t f = 0; f < scene.features; ++f) {
      // Numbers of columns lie group of features after group of features.
      const int64_t column = f * job.n, scale = column * job.groups;
      const int64_t result = column * bytes_of(job.out_type);
      Item item = first;
      item.w += f * job.panels * job.units * job.format.bytes;
      item.scale = moved(item.scale, scale * bytes_of(job.scale_type));
      item.zero = moved(item.zero, scale * bytes_of(job.zero_type));
      item.totals = item.totals == nullptr ? nullptr : item.totals + column;
      item.bias = item.bias == nullptr ? nullptr : item.bias + column;
      item.after = item.after == nullptr ? nullptr : item.after + 2 * column;
      item.out = static_cast<char*>(item.out) + result;
      item.other = moved(item.other, result);
      call->items.push_back(item);
    }
  }
}

// Cuts the products into tasks: whole panels where there are tiles enough, so that rows
// of codes are made once.
void plan(int64_t workers, int64_t products, Call* call) {
  const Job& job = call->job;
  const int64_t runs = std::max<int64_t>(tasks_for(workers) / products, 1);
  // Parts of lines are as long as the windows that a path computes at once, or longer.
  constexpr int64_t kShortest = 28;
  const int64_t most = std::max<int64_t>(call->scene.x.out() / kShortest, 1);
  call->scene.cuts = std::clamp<int64_t>(ceil_div(runs, call->lines()), 1, most);
  const int64_t count = call->slides ? call->parts() : call->tiles.count;
  call->tiles_each = ceil_div(count, std::min(runs, count));
  call->tile_tasks = ceil_div(count, call->tiles_each);
  const int64_t panel_runs =
      std::min(std::max<int64_t>(runs / call->tile_tasks, 1), job.panels);
  call->panels_each = ceil_div(job.panels, panel_runs);
  call->panel_tasks = ceil_div(job.panels, call->panels_each);
}

ffi::Error conv(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                ffi::AnyBuffer w, ffi::RemainingArgs rest,
                ffi::Result<ffi::AnyBuffer> out, const Options& options) {
  const auto p = Operands::of(x, w, rest, options.given, *out, {4, 4, 3, 4});
  if (!p) return wrong("operands are missing");
  if (!p->out.there()) return ffi::Error::Success();
  const Format* format = format_of(kFormats, options.format);
  if (format == nullptr) return wrong("no format " + std::string(options.format));
  if (options.n < 1 || options.group < 1 || !known(options.rounding)) {
    return wrong("sizes must be positive");
  }
  if (!p->out.has_own() || !p->x.has_own() || !p->w.has_own()) {
    return wrong("x must be stacks of images, w of groups of matrices");
  }
  auto call = std::make_unique<Call>();
  Job& job = call->job;
  Scene& scene = call->scene;
  if (!scene_of(p->x.dims(), options.windows, &scene)) {
    return wrong("windows do not fit the images");
  }
  const Dims lead = p->lead();
  if (!p->fit(lead)) return wrong("leading axes do not fit those of the result");
  job = job_of(*p, options.rounding, *format);
  const ffi::Error described = describe(*p, options, call.get());
  if (described.failure()) return described;

  // Images that share a weight are one stack.
  int64_t stacks = count_of(lead);
  const int64_t entries = scene.y.size * scene.x.size * scene.channels;
  if (p->share_weight(lead) &&
      p->x.entries() == stacks * scene.images * entries) {
    scene.images *= stacks;
    stacks = 1;
  }
  job.rows = scene.images * scene.pixels();
  const ffi::Error chosen = choose(options.path, call.get());
  if (chosen.failure()) return chosen;
  const int64_t products = stacks * scene.features;
  // Counted in products of codes; a result and an entry of an image count as 64.
  const double work = 1.0 * products * job.rows * job.n * (job.digits * job.k + 64) +
                      64.0 * stacks * scene.images * entries;
  const int64_t workers = workers_for(pool, work < (1 << 22));
  const int64_t images = stacks * scene.images;
  scene.strips = strips_for(scene, images, workers);
  fill(*p, lead, stacks, call.get());
  plan(workers, products, call.get());
  const Site site = {w.untyped_data(), id.run_id};
  const ImageTasks tasks(job, scene, images);
  const bool done = run(pool, site, workers - 1, &Call::task, call.get(),
                        tasks.extents, tasks.codes, tasks.sums,
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
