// A model's hyperparameters, read from GGUF metadata and checked against its tensors' shapes.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "io/gguf_index.h"

namespace drafthorse {

struct ModelConfig {
  std::string architecture;
  std::string name;
  int32_t n_layer = 0;
  int32_t n_embd = 0;     // width of the residual stream
  int32_t n_head = 0;     // query heads
  int32_t n_head_kv = 0;  // key/value heads; divides n_head
  int32_t head_dim = 0;   // of queries, keys and values alike
  int32_t n_ff = 0;       // rows of a dense FFN, or of one expert
  int32_t n_expert = 0;   // routed experts per layer, 0: dense
  int32_t n_expert_used = 0;
  int32_t n_vocab = 0;
  int32_t context_trained = 0;  // tokens
  float rms_epsilon = 0;
  float attention_scale = 0;
  float expert_weights_scale = 1;
  int32_t rope_dims = 0;
  float rope_base = 0;
  float rope_frequency_scale = 1;

  bool is_moe() const { return n_expert > 0; }
};

// kFile, naming the file and what is unsupported or inconsistent. Knows which architectures there are.
Result<ModelConfig> read_model_config(const GgufIndex& index);

}  // namespace drafthorse
