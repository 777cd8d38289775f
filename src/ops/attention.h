// Causal attention of a window over the KV cache, with the same bits for any window.
//
// Row i of the window sees the cache's rows 0..positions[i], its own included: the window's keys and values are in
// the cache, rounded to its type, before this runs. Keys are taken in tiles at fixed absolute positions with an
// online softmax per query row, so a token's result does not depend on what else is in the window, on how many
// threads share the work, or on how it got there (prefill, decode or verification).
#pragma once

#include <ggml.h>

#include <cstdint>

#include "base/worker_pool.h"

namespace drafthorse::ops {

struct AttentionShape {
  int64_t head_dim = 0;  // elements per head, of keys and values alike; at most kMaxHeadDim
  int64_t n_head = 0;    // query heads; query head h reads KV head h / (n_head / n_head_kv)
  int64_t n_head_kv = 0;
  float scale = 1;  // of the scores, usually 1 / sqrt(head_dim)
};

// What an attention node keeps. Must outlive the graph.
struct AttentionNode {
  WorkerPool* pool = nullptr;
  AttentionShape shape;
};
inline constexpr int64_t kMaxHeadDim = 1024;

// One query head of one token over `n_keys` cache rows (at least 1).
//   query: [head_dim]; keys, values: F16, row p at base + p * row_stride (elements); out: [head_dim]
void attend(const float* query, const ggml_fp16_t* keys, const ggml_fp16_t* values, int64_t row_stride, int64_t n_keys,
            int64_t head_dim, float scale, float* out);

// Graph node. q: [head_dim, n_head, n] F32; k, v: [head_dim * n_head_kv, context] F16; positions: [n] I32
// -> [head_dim * n_head, n] F32.
ggml_tensor* attention(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, ggml_tensor* positions,
                       const AttentionNode& node);

}  // namespace drafthorse::ops
