#include "base/check.h"
#include "ops/simd/kernel_tables.h"

namespace drafthorse::ops {

std::vector<Isa> supported_isas() { return {Isa::kPortable}; }

bool executes(Isa isa) { return isa == Isa::kPortable; }

namespace simd {
namespace {

// Built at first use, where it is supported, and never changed.
Kernels filled(void (*fill)(Kernels&)) {
  Kernels kernels;
  fill(kernels);
  return kernels;
}

}  // namespace

const Kernels& kernels(Isa isa) {
  CHECK(isa == Isa::kPortable);
  static const Kernels portable = filled(fill_portable_kernels);
  return portable;
}

}  // namespace simd
}  // namespace drafthorse::ops
