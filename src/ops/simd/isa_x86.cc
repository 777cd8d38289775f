#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/check.h"
#include "ops/simd/kernel_tables.h"

namespace drafthorse::ops {
namespace {

// Not by __builtin_cpu_supports, to which older compilers do not know the names. Only where AVX2 is supported: the
// operating system keeps the same registers for these.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
bool has_avx_vnni() {
  constexpr unsigned kAvxVnniBit = 1U << 4;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnniBit) != 0;
}
// AMX-BF16, AMX-TILE and AMX-INT8; tiles of 16 rows of 64 bytes, six at least; and Linux lets us use them.
bool executes_amx() {
  constexpr unsigned kFeatures = 1U << 22 | 1U << 24 | 1U << 25;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kFeatures) != kFeatures) return false;
  if (__get_cpuid_count(0x1D, 1, &a, &b, &c, &d) == 0) return false;
  if ((b & 0xFFFF) < 64 || b >> 16 < 6 || (c & 0xFFFF) < 16) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::vector<Isa> supported_isas() {
  __builtin_cpu_init();
  std::vector<Isa> isas{Isa::kPortable};
  // What the operating system does not keep, these builtins do not report.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return isas;
  isas.push_back(Isa::kAvx2);
  if (has_avx_vnni()) isas.push_back(Isa::kAvxVnni);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
    isas.push_back(Isa::kAvx512);
    if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
  }
  return isas;
}

bool executes(Isa isa) {
  const std::vector<Isa> isas = supported_isas();
  if (isa == Isa::kAmx) return isas.back() == Isa::kAvx512Bf16 && executes_amx();
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

namespace simd {
namespace {

// Built at first use, where it is supported, and never changed.
Kernels filled(void (*fill)(Kernels&)) {
  Kernels kernels;
  fill(kernels);
  return kernels;
}

}  // namespace

const Kernels& kernels(Isa isa) {
  switch (isa) {
    case Isa::kPortable: {
      static const Kernels portable = filled(fill_portable_kernels);
      return portable;
    }
    case Isa::kAvx2: {
      static const Kernels avx2 = filled(fill_avx2_kernels);
      return avx2;
    }
    case Isa::kAvxVnni: {
      static const Kernels avx_vnni = filled(fill_avx_vnni_kernels);
      return avx_vnni;
    }
    case Isa::kAvx512: {
      static const Kernels avx512 = filled(fill_avx512_kernels);
      return avx512;
    }
    case Isa::kAvx512Bf16: {
      static const Kernels avx512_bf16 = filled(fill_avx512_bf16_kernels);
      return avx512_bf16;
    }
    case Isa::kAmx: {
      static const Kernels amx = filled(fill_amx_kernels);
      return amx;
    }
  }
  check_failed(__FILE__, __LINE__, "known isa");
}

}  // namespace simd
}  // namespace drafthorse::ops
