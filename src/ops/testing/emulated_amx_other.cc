#include "ops/testing/emulated_amx.h"

namespace drafthorse::ops::simd {

std::vector<Kernels> emulated_amx_kernels() {
  std::vector<Kernels> all(1);
  fill_emulated_amx_portable(all[0]);
  return all;
}

}  // namespace drafthorse::ops::simd
