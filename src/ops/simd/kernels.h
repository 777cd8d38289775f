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

// Query rows of one sequence over a span of positions: `rows` rows for each of `heads` neighbouring KV heads. Results
// of head h's row r have the index h * rows + r; `out` and `sum` are relative to `maximum`: sum = sum of e^(score -
// maximum), out = sum of e^(score - maximum) * value.
struct AttentionArguments {
  const float* const* q = nullptr;  // heads * rows rows of key_dim floats
  int64_t heads = 1;
  int64_t rows = 0;  // at most kAttentionBlock; heads * rows at most kMaxAttentionRows
  // Row r, of any head, sees positions [begin[r], end[r]). If that is empty, its results are without meaning.
  const int64_t* begin = nullptr;
  const int64_t* end = nullptr;
  // Head h's row of position p at keys + p * key_stride + h * key_head_stride bytes. None is read that lies outside of
  // all rows' positions together, and none reaches a query row that does not see it.
  const std::byte* keys = nullptr;
  size_t key_stride = 0;
  size_t key_head_stride = 0;
  int64_t key_dim = 0;
  const std::byte* values = nullptr;
  size_t value_stride = 0;
  size_t value_head_stride = 0;
  int64_t value_dim = 0;
  float scale = 1;           // of the scores
  float softcap = 0;         // if positive, score = softcap * tanh(score / softcap)
  float* out = nullptr;      // [heads * rows][out_stride]
  int64_t out_stride = 0;    // value_dim rounded up to kMaxLanes, or more
  float* maximum = nullptr;  // [heads * rows]
  float* sum = nullptr;      // [heads * rows]
};

inline constexpr int64_t kAttentionBlock = 64;
inline constexpr int64_t kMaxAttentionRows = 128;
inline constexpr int64_t kAttentionTile = 64;  // positions, at multiples of it

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
  // By type of keys and values; nullptr where there is none. Dimensions are multiples of the type's block.
  void (*attend[GGML_TYPE_COUNT])(const AttentionArguments& arguments) = {};
  // Adds what later positions gave to what earlier ones did: `count` elements, their maximum and sum.
  void (*merge_attention)(const float* later, float later_maximum, float later_sum, float* out, float& maximum,
                          float& sum, int64_t count) = nullptr;
  // Divides by the sum, in which e^*sink is one more term unless it is nullptr.
  void (*finish_attention)(float* out, float maximum, float sum, const float* sink, int64_t count) = nullptr;
};

// `isa` must be one that executes().
const Kernels& kernels(Isa isa);

}  // namespace drafthorse::ops::simd
