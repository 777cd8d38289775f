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
  kAmx,         // and AMX-TILE, AMX-INT8, AMX-BF16; only where asked for by name
};

// All that were built into this binary and that this processor executes, slowest first. Never empty, and without kAmx:
// no processor at hand has it, so its kernels are tested through an emulation of its instructions alone
// (ops/testing/emulated_tiles.h), and nothing chooses them by itself.
std::vector<Isa> supported_isas();

// The last of supported_isas().
Isa best_isa();

// Whether this processor executes it, supported_isas() or kAmx; for the latter, asks the system for the use of tiles,
// which it grants to all threads of the process.
bool executes(Isa isa);

// "portable", "avx2", "avx-vnni", "avx512", "avx512-bf16", "amx".
std::string_view name(Isa isa);
std::optional<Isa> isa_named(std::string_view name);

}  // namespace drafthorse::ops
