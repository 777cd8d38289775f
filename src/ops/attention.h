// Causal attention over the KV cache, with the same bits for any window.
//
// A token at position p sees the cache's rows 0..p, its own included, or with a sliding window the last `window` of
// them: the window's keys and values are in the cache, rounded to its type, before this runs. The keys and values of a
// KV head are read once for all tokens of a sequence and all query heads that share it, in tiles at fixed absolute
// positions (simd/attention_tile.h), and what spans of kAttentionSpan positions give is merged in their order. So a
// token's result depends on its query and on the rows it sees, and on nothing else: not on the tokens, heads and
// sequences beside it, on threads, on the instruction set, or on how it got there (prefill, decode or verification).
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ops/processor.h"

namespace drafthorse::ops {

inline constexpr int64_t kMaxHeadDim = 1024;
inline constexpr int64_t kAttentionSpan = 1024;  // positions, at multiples of it

struct AttentionShape {
  int64_t key_dim = 0;    // elements per head of queries and keys; at most kMaxHeadDim, whole blocks of kv_type
  int64_t value_dim = 0;  // elements per head of values and results; the same limits
  int64_t n_head = 0;     // query heads; query head h reads KV head h / (n_head / n_head_kv)
  int64_t n_head_kv = 0;
  ggml_type kv_type = GGML_TYPE_F16;  // of keys and values: F16, BF16 or Q8_0 (ggml's blocks)
  float scale = 1;                    // of the scores, usually 1 / sqrt(key_dim)
  float softcap = 0;                  // if positive, score = softcap * tanh(score / softcap)
  int32_t window = 0;                 // if positive, a token sees this many positions, its own included, at most
  const float* sinks = nullptr;       // [n_head] or nullptr: a score of no key, a term of the denominator alone
};

bool supports_attention(const AttentionShape& shape);

// The tokens of one sequence and where its cache lies. Values may lie within the keys' rows, as they do in MLA's
// absorbed form (key_dim 576, value_dim 512, the same pointer and strides).
struct AttentionSequence {
  const float* q = nullptr;  // token t, head h at q + t * q_token_stride + h * q_head_stride (elements)
  int64_t q_token_stride = 0;
  int64_t q_head_stride = 0;
  const std::byte* keys = nullptr;  // position p, KV head h at keys + p * key_stride + h * key_head_stride (bytes)
  size_t key_stride = 0;
  size_t key_head_stride = 0;
  const std::byte* values = nullptr;
  size_t value_stride = 0;
  size_t value_head_stride = 0;
  std::span<const int32_t> positions;  // one per token, at least 0, in any order
  float* out = nullptr;                // token t, head h at out + t * out_stride + h * value_dim (elements)
  int64_t out_stride = 0;
};

// Lists and partial results of a call, kept for the next one. Grows to what calls need, kMostBytes of partial results
// at most. One call at a time.
class AttentionWorkspace {
 public:
  static constexpr size_t kMostBytes = size_t{16} << 20;

  AttentionWorkspace();
  ~AttentionWorkspace();
  AttentionWorkspace(AttentionWorkspace&&) noexcept;
  AttentionWorkspace& operator=(AttentionWorkspace&&) noexcept;

  size_t bytes() const;  // of partial results

  struct Lists;
  Lists& lists() { return *lists_; }

 private:
  std::unique_ptr<Lists> lists_;
};

// What a workspace grows to, at most, for calls of up to `tokens` tokens of one sequence of up to `context` positions.
size_t attention_workspace_bytes(const AttentionShape& shape, int64_t tokens, int64_t context);

// Any number of sequences, any number of tokens each. The shape must be a supported one.
void attend(const Processor& processor, const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            AttentionWorkspace& workspace);

// --- graph node

// What an attention node keeps. Must outlive the graph.
struct AttentionNode {
  AttentionNode(const Processor& of, const AttentionShape& with)
      : processor(of), shape(with), workspace(std::make_unique<AttentionWorkspace>()) {}

  Processor processor;
  AttentionShape shape;
  std::unique_ptr<AttentionWorkspace> workspace;
};

// q: [key_dim, n_head, n] F32; k: [key_dim * n_head_kv, rows], v: [value_dim * n_head_kv, rows], both kv_type;
// positions: [n] I32 -> [value_dim * n_head, n] F32. cache_rows: [n] I64, the row of each token's own key; a token at
// position p sees up to p + 1 rows that end there. Neighbours with one row for position 0 are one sequence's.
// Queries are rounded to F16 where keys are, as ggml does: routers with near ties choose the same experts then.
ggml_tensor* attention(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, ggml_tensor* positions,
                       ggml_tensor* cache_rows, const AttentionNode& node);

}  // namespace drafthorse::ops
