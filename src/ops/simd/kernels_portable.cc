#include "ops/simd/kernel_tables.h"
#include "ops/simd/make_kernels.h"
#include "ops/simd/vector_portable.h"

namespace drafthorse::ops::simd {

void fill_portable_kernels(Kernels& kernels) { fill_kernels<PortableVector>(Isa::kPortable, kernels); }

}  // namespace drafthorse::ops::simd
