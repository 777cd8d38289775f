// A model's hyperparameters, read from GGUF metadata and checked against its tensors' shapes.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "io/gguf_index.h"

namespace drafthorse {

// Which two elements of a head a rotation turns together.
enum class RopePairs {
  kNeighbours,  // 2i and 2i + 1
  kHalves,      // i and i + dims / 2
};

// Of YaRN (arXiv:2309.00071): rotations per original context between which frequencies go from unscaled to scaled.
inline constexpr float kYarnFastRotations = 32;
inline constexpr float kYarnSlowRotations = 1;

// Rotary position embedding, with ggml's names for what scales it.
struct RopeConfig {
  RopePairs pairs = RopePairs::kNeighbours;
  int32_t dims = 0;  // elements of a head that are rotated, the first ones
  float base = 0;
  float frequency_scale = 1;
  float extrapolation = 0;       // YaRN's share of unscaled frequencies; 0: no YaRN
  float magnitude = 1;           // of what is rotated; YaRN's own comes on top
  int32_t original_context = 0;  // tokens before scaling

  bool operator==(const RopeConfig&) const = default;
};

enum class ExpertGating { kSoftmax, kSigmoid };

// How a token's experts are chosen and weighted (routing.h).
struct RoutingConfig {
  ExpertGating gating = ExpertGating::kSoftmax;
  bool normalised = true;  // the weights of a token's experts sum to 1, before the scale
  float scale = 1;
  int32_t n_group = 1;  // experts side by side form a group; only the best groups' are chosen from
  int32_t n_group_used = 1;
};

// Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads come from one
// narrow latent state. Computed in the absorbed form: the cache holds the latent state and one rotated key, and queries
// are brought into the latent space.
struct LatentConfig {
  int32_t q_rank = 0;  // width of the state that queries pass through; 0: none
  int32_t kv_rank = 0;
  int32_t nope_dim = 0;    // elements of a head's queries and keys that are not rotated
  int32_t rope_dim = 0;    // and those that are; the key's are shared by all heads
  int32_t value_dim = 0;   // elements of a head's values
  bool split_kv_b = true;  // the file has attn_k_b and attn_v_b; otherwise attn_kv_b, as in files before 2025
};

struct ModelConfig {
  std::string architecture;
  std::string name;
  int32_t n_layer = 0;
  int32_t n_embd = 0;        // width of the residual stream
  int32_t n_head = 0;        // query heads
  int32_t n_head_kv = 0;     // key/value heads in the cache; divides n_head
  int32_t head_dim = 0;      // of queries and keys, as they meet in attention
  int32_t value_dim = 0;     // of values, likewise
  LatentConfig latent;       // kv_rank 0: plain attention
  int32_t n_ff = 0;          // rows of a dense FFN
  int32_t n_ff_expert = 0;   // rows of a routed expert
  int32_t n_ff_shared = 0;   // rows of the shared expert, 0: none
  int32_t n_dense_lead = 0;  // layers in front that have a dense FFN although others have experts
  int32_t n_expert = 0;      // routed experts per layer, 0: dense
  int32_t n_expert_used = 0;
  RoutingConfig routing;
  int32_t n_vocab = 0;
  int32_t context_trained = 0;  // tokens
  float rms_epsilon = 0;
  float attention_scale = 0;
  int32_t attention_window = 0;  // positions a token sees, its own included; 0: all
  RopeConfig rope;

  bool is_moe() const { return n_expert > 0; }
  bool has_experts(int32_t layer) const { return is_moe() && layer >= n_dense_lead; }
  bool is_latent() const { return latent.kv_rank > 0; }
};

// kFile, naming the file and what is unsupported or inconsistent. Knows which architectures there are.
Result<ModelConfig> read_model_config(const GgufIndex& index);

}  // namespace drafthorse
