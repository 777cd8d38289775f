// Attention as a device computes it: a plain softmax over a cache's rows, what a token must not see masked out. Flash
// attention is not there in every build of every backend, and the CPU's accumulates in 16 bits.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <span>

namespace drafthorse {

// What a mask adds to scores, in 16 bits.
inline constexpr ggml_fp16_t kSeen = 0;
inline constexpr ggml_fp16_t kUnseen = 0xFC00;  // minus infinity

// Marks what a token at `position` sees, in its row of a mask that is unseen so far. window: 0 for all before it.
void mark_seen(std::span<ggml_fp16_t> row, int32_t position, int32_t window);

// queries: [head_dim, n, n_head, s], keys: [head_dim, extent, n_head_kv, s], values: [value_dim, extent, n_head_kv, s]
// of any cached type and strides, mask: [extent, n, 1, s] -> [value_dim, n, n_head, s]
ggml_tensor* masked_attention(ggml_context* context, ggml_tensor* queries, ggml_tensor* keys, ggml_tensor* values,
                              ggml_tensor* mask, float scale);

}  // namespace drafthorse
