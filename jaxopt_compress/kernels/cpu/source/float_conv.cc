// The convolution of a stack of images with a weight of floats, as XLA calls it.

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
  bool apart;  // whether channels are kept apart
  Finish finish;
  int32_t given;  // which operands are there
  int64_t n;      // columns of a group of features
  std::string_view path;
  Rounding rounding;
  Geometry windows;
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<bool>{"apart"},
    Field<jaxopt_compress::Finish>{"finish"}, Field<int32_t>{"given"},
    Field<int64_t>{"n"}, Field<std::string_view>{"path"},
    Field<jaxopt_compress::Rounding>{"rounding"},
    Field<jaxopt_compress::Geometry>{"windows"});

namespace jaxopt_compress {
namespace {

struct Call {
  Job job;
  FloatScene scene;
  const Path* path;
  std::vector<Item> items;  // [stacks][features]
  // Of a task: rows of results, their pixels, panels; and how many tasks there are.
  int64_t rows_each, pixels_each, panels_each;
  int64_t row_tasks, pixel_tasks, panel_tasks;

  int64_t tasks() const {
    return static_cast<int64_t>(items.size()) * scene.images * row_tasks *
           pixel_tasks * panel_tasks;
  }

  static void task(const void* context, int, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    const FloatScene& s = call.scene;
    thread_local Room room;
    FloatPart part;
    part.panel = i % call.panel_tasks * call.panels_each;
    i /= call.panel_tasks;
    part.x_first = i % call.pixel_tasks * call.pixels_each;
    i /= call.pixel_tasks;
    part.y_first = i % call.row_tasks * call.rows_each;
    i /= call.row_tasks;
    part.image = i % s.images;
    i /= s.images;
    part.features = i % s.features;
    part.panels = std::min(call.panels_each, call.job.panels - part.panel);
    part.x_last = std::min(part.x_first + call.pixels_each, s.x.out());
    part.y_last = std::min(part.y_first + call.rows_each, s.y.out());
    call.path->float_conv(call.job, s, call.items[i], part,
                          room.of(float_workspace(s, call.job)));
  }
};

// The runs of a window for each phase of rows and of columns.
void find_pieces(int64_t pitch, FloatScene* s) {
  const int64_t own = s->apart ? 1 : s->channels / s->features;
  for (const Phase& row : s->rows.phases) {
    for (const Phase& column : s->columns.phases) {
      std::vector<FloatPiece> pieces;
      for (size_t y = 0; y < row.taps.size(); ++y) {
        for (const Tap& tap : column.taps) {
          const int64_t to = (row.taps[y].tap * s->x.taps + tap.tap) * own;
          const FloatPiece piece = {static_cast<int64_t>(y), tap.entry * pitch, own, to};
          FloatPiece* last = pieces.empty() ? nullptr : &pieces.back();
          // Taps side by side are one run if a pixel has no other channels.
          const bool joins = last != nullptr && !s->apart && own == pitch &&
                             last->line == piece.line && last->to + last->n == to &&
                             last->from + last->n == piece.from;
          if (joins) {
            last->n += own;
          } else {
            pieces.push_back(piece);
          }
        }
      }
      s->pieces.push_back(pieces);
    }
  }
}

// Describes the images, once operands fit the stack; an error where they do not fit.
ffi::Error describe(const Operands& p, const Options& options, Scene* images,
                    Call* call) {
  Job& job = call->job;
  FloatScene& s = call->scene;
  s.apart = options.apart;
  s.channels = images->channels;
  s.images = images->images;
  s.features = s.apart ? 1 : p.w.axis(0);
  if (s.features < 1 || s.channels % s.features != 0) {
    return wrong("groups of features do not divide the channels");
  }
  const int64_t taps = images->taps();
  set_matrix(s.apart ? taps : taps * (s.channels / s.features), options.n,
             int64_t{1} << 40, &job);
  job.stride = s.features * job.n;
  if (s.apart) job.panels = 1;
  const int64_t columns = depth_columns(job.n);
  const bool sizes =
      p.w.there() && out_fits(p, *images, job.stride) &&
      (s.apart ? job.n % s.channels == 0 && p.w.is({taps, columns})
               : p.w.is({s.features, columns / kDepthColumns, job.k, kDepthColumns}));
  if (!sizes) return wrong("shapes do not fit each other");
  if (!p.w.is(Type::kF32) || job.out_type != Type::kF32 || job.act != Act::kFloat ||
      p.scale.there() || p.zero.there() || p.act_scale.there()) {
    return wrong("types do not fit each other");
  }
  const ffi::Error finish = set_finish(p, options.finish, &job);
  if (finish.failure()) return finish;
  return check_operands(p, job, false, s.features);
}

// Where windows lie, and whether lines are copied.
void find_windows(const Scene& images, bool as_one, Call* call) {
  FloatScene& s = call->scene;
  s.y = images.y;
  s.x = images.x;
  // Windows of one entry meet pixels one by one: all images are one line.
  const bool single = s.y.plain() && s.x.plain() && images.taps() == 1 &&
                      s.y.stride == 1 && s.x.stride == 1;
  if (single && as_one) {
    s.x.size *= s.y.size * s.images;
    s.y.size = s.images = 1;
  }
  s.rows = course_of(s.y);
  s.columns = course_of(s.x);
  const int64_t pitch = s.pitch(call->job.stride);
  s.direct = s.columns.low == 0 && s.columns.high == 0 && pitch == s.channels &&
             call->job.x_type == Type::kF32 &&
             (!s.apart || pitch % kDepthColumns == 0);
  // Short rows are made together, so that each panel is read for some pixels.
  constexpr int64_t kTogether = 56;
  s.block = std::clamp<int64_t>(kTogether / std::max<int64_t>(s.x.out(), 1), 1, 8);
  s.lines = s.rows.reach + ceil_div(s.block, s.rows.period) * s.rows.step;
  find_pieces(pitch, &s);
}

// Cuts a call into tasks: rows, then their pixels, then panels.
void plan(int64_t workers, Call* call) {
  const FloatScene& s = call->scene;
  const int64_t given = static_cast<int64_t>(call->items.size()) * s.images;
  const auto cut = [](int64_t runs, int64_t all, int64_t whole, int64_t* each) {
    *each = ceil_div(ceil_div(all, std::clamp<int64_t>(runs, 1, all)), whole) * whole;
    return ceil_div(all, *each);
  };
  int64_t runs = std::max<int64_t>(tasks_for(workers) / given, 1);
  call->row_tasks = cut(runs, s.y.out(), 1, &call->rows_each);
  runs /= call->row_tasks;
  // Tiles of all paths have up to fourteen pixels; phases take turns.
  call->pixel_tasks = cut(runs, s.x.out(), 14 * s.columns.period, &call->pixels_each);
  // Lines are copied for each run of panels, so these are cut for lack of others only.
  runs = given * call->row_tasks * call->pixel_tasks < workers ? runs : 1;
  call->panel_tasks = cut(runs, call->job.panels, 1, &call->panels_each);
}

ffi::Error float_conv(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                      ffi::AnyBuffer w, ffi::RemainingArgs rest,
                      ffi::Result<ffi::AnyBuffer> out, const Options& options) {
  const size_t own = options.apart ? 2 : 4, of_columns = options.apart ? 2 : 3;
  const auto p = Operands::of(x, w, rest, options.given, *out, {4, own, of_columns, 4});
  if (!p) return wrong("operands are missing");
  if (!p->out.there()) return ffi::Error::Success();
  if (options.n < 1 || !known(options.rounding) || !p->out.has_own() ||
      !p->x.has_own() || !p->w.has_own()) {
    return wrong("x must be stacks of images, w of matrices of floats");
  }
  auto call = std::make_unique<Call>();
  Job& job = call->job;
  Scene images;
  if (!scene_of(p->x.dims(), options.windows, &images)) {
    return wrong("windows do not fit the images");
  }
  const Dims lead = p->lead();
  if (!p->fit(lead)) return wrong("leading axes do not fit those of the result");
  constexpr Format kFloats = {"float32", 32, 1, 0, 0, 1.0f, nullptr, nullptr};
  job = job_of(*p, options.rounding, kFloats);
  const ffi::Error described = describe(*p, options, &images, call.get());
  if (described.failure()) return described;

  // Images that share a weight are one stack.
  int64_t stacks = count_of(lead);
  const int64_t entries = images.y.size * images.x.size * images.channels;
  if (p->share_weight(lead) &&
      p->x.entries() == stacks * images.images * entries) {
    call->scene.images *= stacks;
    stacks = 1;
  }
  job.rows = call->scene.images * images.pixels();
  find_windows(images, stacks == 1, call.get());
  const std::string name(options.path);
  call->path = path_for(job, name.c_str());
  if (call->path == nullptr || call->path->float_conv == nullptr) {
    return wrong("no instruction path " + name + " for this convolution here");
  }
  for (int64_t i = 0; i < stacks; ++i) {
    const Item first = item_of(*p, job, lead, i);
    for (int64_t f = 0; f < call->scene.features; ++f) {
      Item item = first;
      item.w += f * depth_columns(job.n) * job.k * 4;
      item.bias = item.bias == nullptr ? nullptr : item.bias + f * job.n;
      item.after = item.after == nullptr ? nullptr : item.after + 2 * f * job.n;
      item.out = static_cast<float*>(item.out) + f * job.n;
      if (job.joins) item.other = static_cast<const float*>(item.other) + f * job.n;
      call->items.push_back(item);
    }
  }
  const double work = 1.0 * stacks * call->scene.features * job.rows * job.k * job.n +
                      8.0 * job.rows * job.stride;
  plan(workers_for(pool, work < (1 << 19)), call.get());
  const Site site = {w.untyped_data(), id.run_id};
  const int64_t tasks = call->tasks();
  const int64_t workers = workers_for(pool, work < (1 << 19));
  if (!run(pool, site, workers - 1, &Call::task, call.get(), 0, tasks)) {
    return wrong("there is no memory for a product of this size");
  }
  return ffi::Error::Success();
}

}  // namespace

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_float_conv(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_float_conv, float_conv,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

}  // namespace jaxopt_compress
