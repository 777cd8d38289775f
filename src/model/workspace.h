// The activations of one pass, in one device buffer whose size is known before anything is loaded.
//
// A pass works on up to `columns` tokens. Rows of floats per token; column t of a [width, columns] array starts at
// t * width.
#pragma once

#include <cstdint>

#include "backend/compute.h"
#include "io/expert_layout.h"
#include "model/config.h"

namespace drafthorse {

struct WorkspaceShape {
  int32_t columns = 0;      // tokens of the longest pass
  int32_t max_window = 0;   // tokens for which logits can be had at once, and whose experts may arrive in any order
  int32_t output_rows = 0;  // outputs of experts that are to be kept, if there are more than one run has
};

// Tokens that go through attention in one graph on the host. Larger windows are cut; the bits do not change.
inline constexpr int32_t kStageTokens = 256;

// Rows that one run of the experts takes at most, where a window does not need more.
inline constexpr int32_t kExpertRows = 256;
// Rows of outputs that a batch keeps at most, to compute experts in any order.
inline constexpr int32_t kBatchOutputRows = 1024;

class Workspace {
 public:
  static Result<Workspace> reserve(const ModelConfig& config, const ExpertLayout& layout, const WorkspaceShape& shape);

  uint64_t bytes() const { return buffer_.bytes(); }
  const WorkspaceShape& shape() const { return shape_; }
  const DeviceBuffer& buffer() const { return buffer_; }
  uint64_t offset_of(const void* pointer) const { return static_cast<const std::byte*>(pointer) - buffer_.data(); }

  int32_t* tokens = nullptr;       // [columns]
  int32_t* positions = nullptr;    // [columns]
  int64_t* kv_rows = nullptr;      // [columns] where each token's key and value go
  float* residual = nullptr;       // [n_embd, columns]
  std::byte* ffn_input = nullptr;  // [ffn_input_row_bytes, columns], quantised for the experts' gate and up
  size_t ffn_input_row_bytes = 0;  // room per token; a layer uses as much as its types need, from the row's start
  float* router_logits = nullptr;  // [n_expert, columns]
  float* expert_sum = nullptr;     // [n_embd, columns]
  float* expert_hidden = nullptr;  // [n_ff_expert, expert_rows]
  std::byte* expert_hidden_quantized = nullptr;  // [.., expert_rows]
  float* expert_output = nullptr;                // [n_embd, output_rows]
  int32_t expert_rows = 0;                       // of one run: at least max_window * n_expert_used
  int32_t output_rows = 0;                       // that can be kept: at least expert_rows
  float* logits = nullptr;                       // [n_vocab, max_window]

 private:
  DeviceBuffer buffer_;
  WorkspaceShape shape_;
};

}  // namespace drafthorse
