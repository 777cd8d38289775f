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

DRAFTHORSE_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")

#include "ops/simd/make_kernels.h"
#include "ops/simd/vector_avx512_bf16.h"

namespace drafthorse::ops::simd {

void fill_avx512_bf16_kernels(Kernels& kernels) { fill_kernels<Avx512Bf16Vector>(Isa::kAvx512Bf16, kernels); }

}  // namespace drafthorse::ops::simd

DRAFTHORSE_TARGET_END
