// The convolution of a stack of images, channel by channel, as XLA calls it.

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
  int32_t given;  // which operands are there
  std::string_view path;
  Rounding rounding;
  Geometry windows;
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<jaxopt_compress::Finish>{"finish"},
    Field<int32_t>{"given"}, Field<std::string_view>{"path"},
    Field<jaxopt_compress::Rounding>{"rounding"},
    Field<jaxopt_compress::Geometry>{"windows"});

namespace jaxopt_compress {
namespace {

struct Call {
  Job image_job;  // whose rows are those of images
  Job job;
  Scene scene;
  const Path* path;
  std::vector<Stack> stacks;
  std::vector<Item> items;      // of each stack
  int64_t rows_each, row_tasks;  // of an image
  int64_t columns_each, column_tasks;

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    const Scene& s = call.scene;
    thread_local Room room;
    if (round < 3) {
      const int64_t strips = s.images * s.strips;
      call.path->image(call.image_job, s, call.stacks[i / strips], i % strips, round,
                       room.of(image_workspace(s)));
      return;
    }
    const int64_t column = i % call.column_tasks * call.columns_each;
    i /= call.column_tasks;
    const int64_t image = i / call.row_tasks;
    const int64_t first = i % call.row_tasks * call.rows_each;
    call.path->depthwise(call.job, s, call.stacks[image / s.images],
                         call.items[image / s.images], image % s.images, first,
                         std::min(first + call.rows_each, s.y.out()), column,
                         std::min(column + call.columns_each, call.job.n),
                         room.of(depthwise_workspace(s)));
  }
};

// Describes the products of windows, once operands fit the stack.
ffi::Error describe(const Operands& p, const Options& options, Call* call) {
  Job& job = call->job;
  Scene& scene = call->scene;
  scene.features = scene.channels;
  scene.planes = job.digits;
  scene.entry = 1;
  scene.cell = 0;
  scene.of_windows = false;
  const int64_t n = p.out.axis(3);
  set_matrix(scene.taps(), n, scene.taps(), &job);
  job.panels = 1;
  job.rows = scene.images * scene.pixels();
  const bool sizes = p.w.there() && out_fits(p, scene, n) && n % scene.channels == 0 &&
                     p.w.is({ceil_div(scene.y.taps, kSteps), scene.x.taps,
                             depth_columns(n), kSteps});
  if (!sizes) return wrong("shapes do not fit each other");
  const ffi::Error finish = set_finish(p, options.finish, &job);
  if (finish.failure()) return finish;
  if (!p.w.is(Type::kS8)) return wrong("types do not fit each other");
  const ffi::Error checked = check_operands(p, job, job.act != Act::kCodes);
  if (checked.failure()) return checked;
  if (!are_codes(p.act_zero)) return wrong("zero points must be int8 numbers");
  return ffi::Error::Success();
}

ffi::Error depthwise(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                     ffi::AnyBuffer w, ffi::RemainingArgs rest,
                     ffi::Result<ffi::AnyBuffer> out, const Options& options) {
  const auto p = Operands::of(x, w, rest, options.given, *out, {4, 4, 2, 4});
  if (!p) return wrong("operands are missing");
  if (!p->out.there()) return ffi::Error::Success();
  if (!known(options.rounding) || !p->out.has_own() || !p->x.has_own() ||
      !p->w.has_own()) {
    return wrong("x must be stacks of images, w of quads of taps");
  }
  auto call = std::make_unique<Call>();
  Job& job = call->job;
  Scene& scene = call->scene;
  if (!scene_of(p->x.dims(), options.windows, &scene) || scene.taps() >= 1 << 16) {
    return wrong("windows do not fit the images");
  }
  const Dims lead = p->lead();
  if (!p->fit(lead)) return wrong("leading axes do not fit those of the result");
  job = job_of(*p, options.rounding, kFormats[0]);
  const ffi::Error described = describe(*p, options, call.get());
  if (described.failure()) return described;
  call->image_job = image_job_of(job, scene);
  const std::string name(options.path);
  call->path = path_for(job, name.c_str());
  if (call->path == nullptr) {
    return wrong("no instruction path " + name + " for this convolution here");
  }

  const int64_t stacks = count_of(lead);
  const int64_t images = stacks * scene.images;
  const double work = 1.0 * stacks * job.rows * job.digits * job.k * job.n;
  const int64_t workers = workers_for(pool, work < (1 << 19));
  scene.strips = strips_for(scene, images, workers);
  thread_local Room room;
  char* memory = room.of(stacks * stack_bytes(scene));
  for (int64_t i = 0; i < stacks; ++i) {
    call->stacks.push_back(
        stack_of(*p, scene, lead, i, memory + i * stack_bytes(scene)));
    call->items.push_back(item_of(*p, call->job, lead, i));
  }

  const int64_t runs = std::max<int64_t>(tasks_for(workers) / images, 1);
  call->rows_each = ceil_div(scene.y.out(), runs);
  call->row_tasks = ceil_div(scene.y.out(), call->rows_each);
  const int64_t blocks = ceil_div(job.n, kDepthColumns);
  const int64_t cut = std::clamp<int64_t>(runs / call->row_tasks, 1, blocks);
  call->columns_each = ceil_div(blocks, cut) * kDepthColumns;
  call->column_tasks = ceil_div(job.n, call->columns_each);
  const Site site = {w.untyped_data(), id.run_id};
  const ImageTasks tasks(job, scene, images);
  const bool done = run(pool, site, workers - 1, &Call::task, call.get(),
                        tasks.extents, tasks.codes, tasks.sums,
                        images * call->row_tasks * call->column_tasks);
  if (!done) return wrong("there is no memory for a product of this size");
  return ffi::Error::Success();
}

}  // namespace

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_depthwise(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_depthwise, depthwise,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

}  // namespace jaxopt_compress
