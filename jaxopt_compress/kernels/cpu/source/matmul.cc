// The product of a batch of matrices, as XLA calls it.

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "call.h"
#include "paths.h"
#include "region.h"

namespace jaxopt_compress {
namespace {

// What a call says besides its operands, sorted by name.
struct Options {
  int64_t constant;  // of a stream: values of each unit, or 0
  Finish finish;
  std::string_view format;
  int32_t given;  // which operands are there
  int64_t group, k, n;
  std::string_view path;
  Rounding rounding;
  bool skips;  // of a stream: whether units without entries are left out
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<int64_t>{"constant"},
    Field<jaxopt_compress::Finish>{"finish"}, Field<std::string_view>{"format"},
    Field<int32_t>{"given"}, Field<int64_t>{"group"}, Field<int64_t>{"k"},
    Field<int64_t>{"n"}, Field<std::string_view>{"path"},
    Field<jaxopt_compress::Rounding>{"rounding"}, Field<bool>{"skips"});

namespace jaxopt_compress {
namespace {

// A weight of up to so many bytes stays in the second-level cache of every worker: a task
// then makes codes of some rows and multiplies them by all of the weight. Such a task
// has so many rows at least, more if it has to expand the weight for itself.
constexpr int64_t kSharedBytes = 1 << 20, kTaskRows = 32, kSpreadRows = 256;

struct Call {
  Job job;
  Tiles tiles;
  const Path* path;
  std::vector<Item> items;
  int64_t panels_each, tiles_each;  // of a task
  int64_t panel_tasks, tile_tasks;  // of an item
  bool together;   // a task is some rows and all panels; there is one round
  uint64_t alone;  // number of the call if each thread makes codes of the only tile

  // The only item, with codes of its rows in memory of this thread.
  const Item& own(char* workspace) const {
    thread_local Room room;
    thread_local Item item;
    thread_local uint64_t made = 0;
    if (made != alone) {
      item = items[0];
      const Layout layout(job, tiles);
      layout.place(room.of(layout.bytes()), &item);
      path->prepare(job, tiles, item, 0, workspace);
      made = alone;
    }
    return item;
  }

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    thread_local Room room;
    char* workspace = room.of(call.path->workspace(call.job, call.tiles));
    if (call.together) {
      const Item& item = call.items[i / call.tile_tasks];
      const int64_t first = i % call.tile_tasks * call.tiles_each;
      const int64_t last = std::min(first + call.tiles_each, call.tiles.count);
      for (int64_t tile = first; tile < last; ++tile) {
        call.path->prepare(call.job, call.tiles, item, tile, workspace);
      }
      call.path->multiply(call.job, call.tiles, item, 0, call.job.panels, first, last,
                          workspace);
      return;
    }
    if (round == 0) {
      const Item& item = call.items[i / call.tiles.count];
      call.path->prepare(call.job, call.tiles, item, i % call.tiles.count,
                         workspace);
      return;
    }
    const int64_t of_item = call.panel_tasks * call.tile_tasks;
    const Item& item = call.alone ? call.own(workspace) : call.items[i / of_item];
    const int64_t panel =
        i % of_item / call.tile_tasks * call.panels_each;
    const int64_t first = i % call.tile_tasks * call.tiles_each;
    call.path->multiply(
        call.job, call.tiles, item, panel,
        std::min(call.panels_each, call.job.panels - panel), first,
        std::min(first + call.tiles_each, call.tiles.count), workspace);
  }
};

// How many panels a task has, if `wanted` tasks are wanted. Every task reads its rows
// and its panels; all together they are to read as little as possible.
int64_t panels_of_task(const Job& job, const Tiles& t, int64_t wanted, int64_t weight) {
  int64_t best = job.panels, least = 0, most_tasks = 0;
  for (int64_t cuts = std::min(wanted, job.panels); cuts > 0; --cuts) {
    const int64_t each = job.panels / cuts, panels = ceil_div(job.panels, each);
    const int64_t tiles = std::min(ceil_div(wanted, panels), t.count);
    const int64_t tasks = std::min(wanted, panels * tiles);
    const int64_t reads = panels * t.count * t.codes() + tiles * weight;
    if (tasks > most_tasks || (tasks == most_tasks && reads < least)) {
      best = each;
      least = reads;
      most_tasks = tasks;
    }
  }
  return best;
}

// A weight is panels [..., panels, units, bytes]; or streams [..., bytes] without zeros,
// with the offsets [..., panels + 1] of their runs.
constexpr Own kDense = {2, 3, 2, 2}, kSparse = {2, 1, 2, 2};

// Whether the runs of a stream lie one after the other inside it, each as long as the
// kernels assume without checking.
bool runs_fit(const Job& job, const Item& item) {
  const int64_t room = job.stream - job.format.bytes;
  const int64_t words = (job.units + 63) / 64 * 8;
  const int64_t masks = job.units * 16;
  const int64_t values = job.units * job.constant * job.format.bytes / 128;
  const int64_t least = job.skips ? words : masks + values;
  bool fit = item.offsets[0] == 0;
  for (int64_t p = 0; p < job.panels; ++p) {
    const int64_t begin = item.offsets[p], end = item.offsets[p + 1];
    fit = fit && begin >= 0 && (end - begin) * 64 >= least && end * 64 <= room;
  }
  return fit;
}

// Describes the product, once its format is known and operands fit the stack.
ffi::Error describe(const Operands& p, const Part* offsets, const Options& options,
                    Job* job) {
  set_matrix(options.k, options.n, options.group, job);
  const int64_t m = p.out.axis(0);
  bool sizes = p.x.there() && p.x.is({m, job->k}) && p.w.there() &&
               p.out.is({m, job->n});
  if (offsets == nullptr) {
    sizes = sizes && p.w.is({job->panels, job->units, job->format.bytes});
  } else {
    job->sparse = true;
    job->skips = options.skips;
    job->constant = options.constant;
    job->stream = p.w.axis(0);
    const Dims streams = p.w.dims(), at = offsets->dims();
    sizes = sizes && offsets->there() && offsets->is({job->panels + 1}) &&
            at.size() == streams.size() &&
            std::equal(at.begin(), at.end() - 1, streams.begin()) &&
            job->stream >= job->format.bytes && job->constant >= 0 &&
            job->constant <= 128;
  }
  if (!sizes) return wrong("shapes do not fit each other");
  const ffi::Error finish = set_finish(p, options.finish, job);
  if (finish.failure()) return finish;
  // Floats whose zeros are left out are their own numbers.
  const bool floats = job->sparse && job->in_floats();
  const bool bare = !p.scale.there() && !p.zero.there() && !p.totals.there();
  if (!p.w.is(Type::kU8) || (floats && !(bare && job->groups == 1))) {
    return wrong("types do not fit each other");
  }
  return check_operands(p, *job, !floats && job->act != Act::kCodes);
}

// Says what each product reads and writes, and where its codes go if threads share them.
ffi::Error fill(const Operands& p, const Part* offsets, Dims lead, int64_t products,
                Call* call) {
  const Job& job = call->job;
  const Layout layout(job, call->tiles);
  thread_local Room room;
  char* memory = call->alone ? nullptr : room.of(products * layout.bytes());
  call->items.reserve(products);
  for (int64_t i = 0; i < products; ++i) {
    Item item = item_of(p, job, lead, i);
    if (job.sparse) {
      item.offsets = reinterpret_cast<const int32_t*>(offsets->at(lead, i));
      if (!runs_fit(job, item)) return wrong("offsets do not fit the stream");
    }
    if (!call->alone) layout.place(memory + i * layout.bytes(), &item);
    call->items.push_back(item);
  }
  return ffi::Error::Success();
}

// Bytes of the weight of a product.
int64_t weight_bytes(const Job& job) {
  return job.sparse ? job.stream : job.panels * job.units * job.format.bytes;
}

// How many threads products are worth.
int64_t workers_of(const ffi::ThreadPool& pool, const Job& job, int64_t products) {
  const int64_t work = products * job.rows * job.digits * job.k * job.n;
  const bool small = work < (1 << 21) && products * weight_bytes(job) < (1 << 17);
  return workers_for(pool, small);
}

// Cuts each product into tasks of some panels and some tiles.
void plan(int64_t workers, int64_t products, Call* call) {
  const Job& job = call->job;
  const int64_t weight = weight_bytes(job);
  const int64_t runs = std::max<int64_t>(tasks_for(workers) / products, 1);
  const bool spread = job.sparse || job.format.bits < 8;
  const int64_t task_rows = spread ? kSpreadRows : kTaskRows;
  call->together =
      !call->alone && weight <= kSharedBytes && job.rows >= task_rows * runs;
  call->panels_each =
      call->together ? job.panels : panels_of_task(job, call->tiles, runs, weight);
  call->panel_tasks = ceil_div(job.panels, call->panels_each);
  call->tiles_each = ceil_div(call->tiles.count, ceil_div(runs, call->panel_tasks));
  call->tile_tasks = ceil_div(call->tiles.count, call->tiles_each);
}

ffi::Error product(ffi::ThreadPool pool, ffi::RunId id, const Operands& p,
                   const Part* offsets, const Options& options) {
  if (!p.out.there()) return ffi::Error::Success();
  const Format* format = offsets == nullptr ? format_of(kFormats, options.format)
                                            : format_of(kSparseFormats, options.format);
  if (format == nullptr) return wrong("no format " + std::string(options.format));
  if (options.k < 1 || options.n < 1 || options.group < 1 || !known(options.rounding)) {
    return wrong("sizes must be positive");
  }
  if (!p.out.has_own() || !p.x.has_own() || !p.w.has_own()) {
    return wrong("x and w must be stacks of matrices");
  }
  const Dims lead = p.lead();
  if (!p.fit(lead)) return wrong("leading axes do not fit those of the result");

  auto call = std::make_unique<Call>();
  Job& job = call->job;
  job = job_of(p, options.rounding, *format);
  const ffi::Error described = describe(p, offsets, options, &job);
  if (described.failure()) return described;

  // A matrix that all products share is multiplied by all rows at once.
  const int64_t m = p.out.axis(0), stack = count_of(lead);
  const bool merged =
      p.share_weight(lead) &&
      p.x.entries() == stack * m * job.k;
  const int64_t products = merged ? 1 : stack;
  job.rows = merged ? stack * m : m;
  const std::string name(options.path);
  call->path = path_for(job, name.c_str());
  if (call->path == nullptr) {
    return wrong("no instruction path " + name + " for this product here");
  }
  call->tiles = call->path->tiles(job);

  const int64_t workers = workers_of(pool, job, products);
  const bool alone = workers > 1 && products == 1 && call->tiles.count == 1;
  static std::atomic<uint64_t> calls{0};
  call->alone = alone ? ++calls : 0;
  const ffi::Error filled = fill(p, offsets, lead, products, call.get());
  if (filled.failure()) return filled;
  plan(workers, products, call.get());
  const Site site = {p.w.data(), id.run_id};
  const bool done =
      run(pool, site, workers - 1, &Call::task, call.get(),
          call->together || alone ? 0 : products * call->tiles.count,
          products * call->panel_tasks * call->tile_tasks);
  if (!done) return wrong("there is no memory for a product of this size");
  return ffi::Error::Success();
}

ffi::Error matmul(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                  ffi::AnyBuffer w, ffi::RemainingArgs rest,
                  ffi::Result<ffi::AnyBuffer> out, const Options& options) {
  const auto p = Operands::of(x, w, rest, options.given, *out, kDense);
  if (!p) return wrong("operands are missing");
  return product(pool, id, *p, nullptr, options);
}

ffi::Error sparse_matmul(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                         ffi::AnyBuffer stream, ffi::AnyBuffer offsets,
                         ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out,
                         const Options& options) {
  const auto p = Operands::of(x, stream, rest, options.given, *out, kSparse);
  if (!p) return wrong("operands are missing");
  if (stream.element_type() != ffi::U8 || offsets.element_type() != ffi::S32) {
    return wrong("a stream is of bytes, its offsets are int32");
  }
  const Part runs(offsets, 1);
  return product(pool, id, *p, &runs, options);
}

}  // namespace

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_sparse_matmul(
    XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_sparse_matmul, sparse_matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_matmul(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_matmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

}  // namespace jaxopt_compress

// Which operands and attributes calls have: `_INTERFACE` in `native.py`.
JAXOPT_COMPRESS_SHOWN int jaxopt_compress_interface() { return 3; }

// Names of the instruction paths that this machine has, best first.
JAXOPT_COMPRESS_SHOWN const char* jaxopt_compress_paths() {
  static const std::string names = [] {
    std::string all;
    for (int i = 0; i < jaxopt_compress::paths().count; ++i) {
      all += (i ? " " : "");
      all += jaxopt_compress::paths().all[i]->name;
    }
    return all;
  }();
  return names.c_str();
}
