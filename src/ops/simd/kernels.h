// What one instruction set offers, as plain function pointers. The functions are templates over a vector type, compiled
// once per instruction set.
//
// All of them give the same bits: sums of whole numbers are exact, and sums of floats have one order, written down in
// linear_tile.h and attention_tile.h.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "ops/isa.h"

namespace drafthorse::ops::simd {

// `rows` weight rows, at most `lanes`, times `tokens` activation rows, at most kTokenBlock:
// out[t * lanes + r] = row r . x[t]. Reads whole rows only.
struct TileArguments {
  const std::byte* weights = nullptr;
  size_t row_bytes = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  const std::byte* const* x = nullptr;  // tokens rows, laid out as ops/activation.h says
  int64_t tokens = 0;
  float* out = nullptr;
  const std::byte* next = nullptr;  // rows that will be read after these, for the prefetcher; may be nullptr
};
using TileKernel = void (*)(const TileArguments& arguments);

inline constexpr int64_t kTokenBlock = 64;
inline constexpr int64_t kMaxLanes = 16;

struct Kernels {
  Isa isa = Isa::kPortable;
  int64_t lanes = 0;  // weight rows per tile
  // By weight type; nullptr where ggml's dot product is used instead.
  TileKernel tile[GGML_TYPE_COUNT] = {};
  // x: `columns` floats -> one activation row, laid out as ops/activation.h says for weights of the type.
  void (*quantize_q8_0)(const float* x, std::byte* out, int64_t columns) = nullptr;
  void (*quantize_q8_k)(const float* x, std::byte* out, int64_t columns) = nullptr;
  void (*round_to_f16)(const float* x, float* out, int64_t count) = nullptr;
  void (*round_to_bf16)(const float* x, float* out, int64_t count) = nullptr;
  // y[i] = silu(gate[i]) * up[i]
  void (*gate)(const float* gate, const float* up, float* y, int64_t count) = nullptr;
  // Multiplies as fast as one core can, to measure others by; returns how many multiplications that were. sink: any
  // number, which depends on the result.
  int64_t (*peak_of_bytes)(int64_t rounds, int32_t* sink) = nullptr;
  int64_t (*peak_of_floats)(int64_t rounds, float* sink) = nullptr;
  // Reads `bytes`, a multiple of 1024, and returns a number that depends on all of them.
  int32_t (*read_memory)(const std::byte* memory, size_t bytes) = nullptr;
};

// `isa` must be one that executes().
const Kernels& kernels(Isa isa);

}  // namespace drafthorse::ops::simd
