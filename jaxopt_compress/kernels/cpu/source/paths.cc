#include "paths.h"

#include <cstring>

namespace jaxopt_compress {

const Paths& paths() {
  static const Paths found = [] {
    const Path* compiled[] = {
#if defined(__x86_64__)
#if defined(__linux__)
        &kAmx,
#endif
        &kAvx512Vbmi2, &kAvx512Vnni, &kAvxVnni, &kAvx2,
#endif
#if defined(__aarch64__)
        &kNeonDot,
#endif
        &kPortable};
    Paths here = {{}, 0};
    for (const Path* path : compiled) {
      if (path->here()) here.all[here.count++] = path;
    }
    return here;
  }();
  return found;
}

const Path* path_for(const Job& job, const char* name) {
  const Path* best = nullptr;
  bool known = name[0] == 0;
  for (int i = 0; i < paths().count; ++i) {
    const Path* path = paths().all[i];
    const bool named = std::strcmp(name, path->name) == 0;
    known = known || named;
    if (path->tiles(job).size == 0) continue;
    if (named) return path;
    if (best == nullptr) best = path;
  }
  return known ? best : nullptr;
}

}  // namespace jaxopt_compress
