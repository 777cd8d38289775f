// The kernels for AMX with its instructions emulated.
#pragma once

#include <vector>

#include "ops/simd/kernels.h"

namespace drafthorse::ops::simd {

// On vectors in plain C++, and on those that the kernels for AMX use, where this processor has them.
std::vector<Kernels> emulated_amx_kernels();

void fill_emulated_amx_portable(Kernels& kernels);

}  // namespace drafthorse::ops::simd
