// The instruction sets our kernels are written for, and which of them this processor can execute.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace drafthorse::ops {

enum class Isa {
  kPortable,    // plain C++, for any processor
  kAvx2,        // AVX2, FMA, F16C
  kAvxVnni,     // and AVX-VNNI: 8-bit dot products in 256 bits
  kAvx512,      // AVX-512 F, BW, DQ, VL and VNNI
  kAvx512Bf16,  // and AVX512-BF16
};

// All that were built into this binary and that this processor executes, slowest first. Never empty.
std::vector<Isa> supported_isas();

// The last of supported_isas().
Isa best_isa();

// "portable", "avx2", "avx-vnni", "avx512", "avx512-bf16".
std::string_view name(Isa isa);
std::optional<Isa> isa_named(std::string_view name);

}  // namespace drafthorse::ops
