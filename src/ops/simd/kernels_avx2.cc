#include <ggml.h>
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ops/simd/kernel_tables.h"
#include "ops/simd/target.h"

DRAFTHORSE_TARGET("avx2,fma,f16c")

#include "ops/simd/make_kernels.h"
#include "ops/simd/vector_avx2.h"

namespace drafthorse::ops::simd {

void fill_avx2_kernels(Kernels& kernels) { fill_kernels<Avx2Vector>(Isa::kAvx2, kernels); }

}  // namespace drafthorse::ops::simd

DRAFTHORSE_TARGET_END
