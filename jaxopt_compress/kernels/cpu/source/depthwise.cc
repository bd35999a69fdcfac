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

// What a call says besides its operands.
struct Options {
  Finish finish;
  int32_t given;  // of the operands that may be missing
  std::string_view path;
  Rounding rounding;
  Geometry windows;
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<jaxopt_compress::Finish>{"finish"},
    Field<int32_t>{"given"},
    Field<std::string_view>{"path"},
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

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    const Scene& s = call.scene;
    thread_local Room room;
    if (round == 0) {
      call.path->image(call.image_job, s, call.stacks[i / s.images],
                       i % s.images, room.of(image_workspace(s)));
      return;
    }
    const int64_t image = i / call.row_tasks;
    const int64_t first = i % call.row_tasks * call.rows_each;
    call.path->depthwise(call.job, s, call.stacks[image / s.images],
                         call.items[image / s.images], image % s.images, first,
                         std::min(first + call.rows_each, s.y.out()),
                         room.of(depthwise_workspace(s, call.job.n)));
  }
};

ffi::Error depthwise(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                ffi::AnyBuffer w, ffi::RemainingArgs rest,
                ffi::Result<ffi::AnyBuffer> out, Options options) {
  if (out->element_count() == 0) return ffi::Error::Success();
  const auto operands = Operands::of(rest, options.given);
  if (!operands) return wrong("operands are missing");
  const auto [scale, zero, totals, bias, act_scale, act_zero, other] =
      *operands;
  const auto& [finish, given, path, rounding, windows] = options;
  const auto x_dims = x.dimensions(), w_dims = w.dimensions();
  const auto out_dims = out->dimensions();
  if (!known(rounding) || out_dims.size() < 4 || w_dims.size() < 4) {
    return wrong("x must be stacks of images, w of quads of taps");
  }
  auto call = std::make_unique<Call>();
  Scene& scene = call->scene;
  if (!scene_of(x_dims, windows, &scene) || scene.taps() >= 1 << 16) {
    return wrong("windows do not fit the images");
  }
  const Batch::Dims lead(out_dims.begin(), out_dims.size() - 4);
  const ffi::AnyBuffer* others[] = {&scale, &zero, &bias, &act_scale, &act_zero};
  bool fits = Batch::fits(x_dims, 4, lead) && Batch::fits(w_dims, 4, lead);
  for (const ffi::AnyBuffer* each : others) {
    if (each->element_count() == 0) continue;
    fits = fits && Batch::fits(each->dimensions(), 2, lead);
  }
  if (!fits) return wrong("leading axes do not fit those of the result");

  ffi::AnyBuffer result = *out;
  Job& job = call->job;
  job = job_of(x, scale, zero, result, rounding);
  if (!finish_of(finish, other, result, &job) || job.finishes()) {
    return wrong("only a bias and a floor follow a convolution of channels kept apart");
  }
  job.format = kFormats[0];
  const size_t at = out_dims.size() - 4, w_at = w_dims.size() - 4;
  scene.features = scene.channels;
  scene.planes = job.digits;
  scene.entry = 1;
  scene.cell = 0;
  scene.of_windows = false;
  job.k = scene.taps();
  job.n = job.stride = out_dims[at + 3];
  job.group = job.k;
  job.groups = 1;
  job.rows = scene.images * scene.pixels();
  job.panels = 1;
  job.units = ceil_div(job.k, kSteps);
  const bool sizes =
      out_dims[at] == scene.images && out_dims[at + 1] == scene.y.out() &&
      out_dims[at + 2] == scene.x.out() && job.n % scene.channels == 0 &&
      w_dims[w_at] == ceil_div(scene.y.taps, kSteps) &&
      w_dims[w_at + 1] == scene.x.taps &&
      w_dims[w_at + 2] == depth_columns(job.n) && w_dims[w_at + 3] == kSteps;
  if (!sizes) return wrong("shapes do not fit each other");
  const bool codes = job.act == Act::kCodes;
  if (!types_fit(job, act_scale) || (codes && job.zero_type != Type::kNone) ||
      type_of(w) != Type::kS8 || !are_f32(bias, act_scale, act_zero) ||
      (zero.element_count() > 0 && job.zero_type == Type::kNone)) {
    return wrong("types do not fit each other");
  }
  for (const ffi::AnyBuffer* each : others) {
    const auto d = each->dimensions();
    const int64_t columns =
        each == &act_scale || each == &act_zero ? 1 : job.n;
    const bool needed = each == &scale && !codes;
    if (each->element_count() == 0 ? needed
                                    : d[d.size() - 2] != 1 ||
                                          d[d.size() - 1] != columns) {
      return wrong("shapes of scales do not fit");
    }
  }
  if (!are_codes(act_zero)) return wrong("zero points must be int8 numbers");
  call->image_job = job;
  call->image_job.k = scene.x.size * scene.channels;
  const std::string name(path);
  call->path = path_for(job, name.c_str());
  if (call->path == nullptr) {
    return wrong("no instruction path " + name + " for this convolution here");
  }

  int64_t stacks = 1;
  for (int64_t d : lead) stacks *= d;
  thread_local Room room;
  char* memory = room.of(stacks * stack_bytes(scene));
  const auto entry = [&](const ffi::AnyBuffer& b, size_t inner, int64_t i,
                         int64_t bytes) -> const char* {
    if (b.element_count() == 0) return nullptr;
    return static_cast<const char*>(b.untyped_data()) +
           Batch::at(b.dimensions(), inner, lead, i) * bytes;
  };
  const int64_t of_stack =
      scene.images * scene.y.size * scene.x.size * scene.channels;
  const int64_t n = job.n;
  const int64_t w_bytes =
      w_dims[w_at] * w_dims[w_at + 1] * depth_columns(n) * kSteps;
  for (int64_t i = 0; i < stacks; ++i) {
    Stack stack = {};
    stack.x = entry(x, 4, i, of_stack * bytes_of(job.x_type));
    stack.act_scale = number_of(entry(act_scale, 2, i, 4), 1.0f);
    stack.act_zero = number_of(entry(act_zero, 2, i, 4), 0.0f);
    place(scene, memory + i * stack_bytes(scene), &stack);
    call->stacks.push_back(stack);
    Item item = {};
    item.w = reinterpret_cast<const uint8_t*>(entry(w, 4, i, w_bytes));
    item.scale = entry(scale, 2, i, n * bytes_of(job.scale_type));
    item.zero = entry(zero, 2, i, n * bytes_of(job.zero_type));
    item.bias = reinterpret_cast<const float*>(entry(bias, 2, i, n * 4));
    item.out = static_cast<char*>(out->untyped_data()) +
               i * job.rows * n * bytes_of(job.out_type);
    call->items.push_back(item);
  }

  const int64_t images = stacks * scene.images;
  const double work = 1.0 * stacks * job.rows * job.digits * job.k * n;
  const int64_t workers =
      work < (1 << 19) ? 1 : std::max<int64_t>(pool.num_threads(), 1);
  const int64_t runs = workers == 1 ? 1 : std::max<int64_t>(8 * workers / images, 1);
  call->rows_each = ceil_div(scene.y.out(), runs);
  call->row_tasks = ceil_div(scene.y.out(), call->rows_each);
  const Site site = {w.untyped_data(), id.run_id};
  const bool done = run(pool, site, workers - 1, &Call::task, call.get(), images,
                        images * call->row_tasks);
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
