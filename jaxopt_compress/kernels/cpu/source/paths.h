// The instruction paths, best first.
#pragma once

#include "job.h"

namespace jaxopt_compress {

// Those that were compiled and that this machine has.
struct Paths {
  const Path* all[8];
  int count;
};

const Paths& paths();

// The first path that can do the job, or the one of that name; null if none can.
const Path* path_for(const Job& job, const char* name);

}  // namespace jaxopt_compress
