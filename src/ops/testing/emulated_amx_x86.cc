#include <ggml.h>
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "ops/simd/kernel_tables.h"
#include "ops/simd/target.h"
#include "ops/testing/emulated_amx.h"

namespace drafthorse::ops::simd {

void fill_emulated_amx_avx512(Kernels& kernels);

std::vector<Kernels> emulated_amx_kernels() {
  std::vector<Kernels> all(1);
  fill_emulated_amx_portable(all[0]);
  if (executes(Isa::kAvx512Bf16)) fill_emulated_amx_avx512(all.emplace_back());
  return all;
}

}  // namespace drafthorse::ops::simd

DRAFTHORSE_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")

#include "ops/simd/make_kernels.h"
#include "ops/simd/vector_avx512_bf16.h"
#include "ops/testing/emulated_tiles.h"

namespace drafthorse::ops::simd {

void fill_emulated_amx_avx512(Kernels& kernels) {
  fill_kernels<TiledVector<Avx512Bf16Vector, EmulatedTiles>>(Isa::kAmx, kernels);
}

}  // namespace drafthorse::ops::simd

DRAFTHORSE_TARGET_END
