#include "ops/isa.h"

#include <array>
#include <utility>

#include "base/check.h"

namespace drafthorse::ops {
namespace {

constexpr std::array<std::pair<Isa, std::string_view>, 6> kNames{{
    {Isa::kPortable, "portable"},
    {Isa::kAvx2, "avx2"},
    {Isa::kAvxVnni, "avx-vnni"},
    {Isa::kAvx512, "avx512"},
    {Isa::kAvx512Bf16, "avx512-bf16"},
    {Isa::kAmx, "amx"},
}};

}  // namespace

Isa best_isa() { return supported_isas().back(); }

std::string_view name(Isa isa) {
  for (const auto& [one, text] : kNames) {
    if (one == isa) return text;
  }
  check_failed(__FILE__, __LINE__, "known isa");
}

std::optional<Isa> isa_named(std::string_view name) {
  for (const auto& [one, text] : kNames) {
    if (text == name) return one;
  }
  return std::nullopt;
}

}  // namespace drafthorse::ops
