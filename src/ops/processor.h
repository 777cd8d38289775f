// What ops run on: the threads, and the kernels of the instruction set in use. A pair of references, copied freely;
// both must outlive whoever holds it.
#pragma once

#include "base/worker_pool.h"
#include "ops/simd/kernels.h"

namespace drafthorse::ops {

struct Processor {
  WorkerPool& pool;
  const simd::Kernels& kernels;
};

}  // namespace drafthorse::ops
