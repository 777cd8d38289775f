// Who fills the tables. Which of these a binary holds, CMake decides by processor (isa_x86.cc, isa_other.cc).
//
// The functions are compiled for their instruction set: call them only where that is supported. Headers included here
// are shared with the rest of the program and must come before the target is set.
#pragma once

#include "ops/activation.h"
#include "ops/simd/kernels.h"

namespace drafthorse::ops::simd {

void fill_portable_kernels(Kernels& kernels);
void fill_avx2_kernels(Kernels& kernels);
void fill_avx_vnni_kernels(Kernels& kernels);
void fill_avx512_kernels(Kernels& kernels);
void fill_avx512_bf16_kernels(Kernels& kernels);
void fill_amx_kernels(Kernels& kernels);

}  // namespace drafthorse::ops::simd
