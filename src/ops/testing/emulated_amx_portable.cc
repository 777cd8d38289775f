#include "ops/simd/make_kernels.h"
#include "ops/simd/vector_portable.h"
#include "ops/testing/emulated_amx.h"
#include "ops/testing/emulated_tiles.h"

namespace drafthorse::ops::simd {
namespace {

// With weights unsigned, as tiles want them.
struct BiasedVector : PortableVector {
  static constexpr int kSignedBias = 128;
  static I dot_s8(I acc, I w, I x) {
    return ints([&](int i) {
      int32_t sum = acc.lane[i];
      for (int b = 0; b < 32; b += 8) sum += (w.lane[i] >> b & 0xFF) * static_cast<int8_t>(x.lane[i] >> b);
      return sum;
    });
  }
};

}  // namespace

void fill_emulated_amx_portable(Kernels& kernels) {
  fill_kernels<TiledVector<BiasedVector, EmulatedTiles>>(Isa::kAmx, kernels);
}

}  // namespace drafthorse::ops::simd
