// Random-weight GGUF files of any architecture that is computed: seconds to write, small enough for a test, and loaded
// by libllama wherever libllama knows the layout.
//
// A weight depends on the seed and on what it is in the model (layer, role, expert), never on how it is stored: the
// same seed written with separate experts, fused gate and up, in shards or with a tied head shares all weights that
// the files have in common, bit for bit if the types are the same. So a layout libllama does not read (fused gate and
// up, one tensor per expert) is tested against the same weights in the standard layout.
//
// Weights have a standard deviation of about 1/sqrt(fan-in); query, key and router are a little larger, so that
// attention is not flat and routing has margins. Norm weights vary around 1. Logits have a deviation of about 1.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"
#include "ggml.h"

namespace drafthorse {

// Latent attention, for architecture deepseek2.
struct TinyLatent {
  int32_t q_rank = 0;  // 0: queries directly
  int32_t kv_rank = 64;
  int32_t nope_dim = 32;
  int32_t rope_dim = 16;
  int32_t value_dim = 32;
  bool split_kv_b = true;  // attn_k_b and attn_v_b; otherwise the same weights as attn_kv_b
};

struct TinyRouting {
  int32_t gating = 0;       // expert_gating_func; 0: no key
  bool normalised = false;  // expert_weights_norm
  float scale = 1;          // expert_weights_scale
  int32_t n_group = 0;      // expert_group_count; 0: no key
  int32_t n_group_used = 0;
  bool bias = false;  // exp_probs_b
};

struct TinyRope {
  const char* type = nullptr;  // rope.scaling.type; nullptr: no key
  float factor = 1;
  int32_t original_context = 0;  // 0: no key
  float attn_factor = 1;
  float yarn_log_multiplier = 0;
  bool factors = false;  // rope_factors_long and rope_factors_short
};

struct TinyModelOptions {
  std::string architecture = "llama";
  int32_t n_layer = 3;
  int32_t n_embd = 256;
  int32_t n_head = 4;
  int32_t n_head_kv = 2;
  int32_t head_dim = 64;
  int32_t n_ff = 512;    // of a dense FFN; per expert, when there are experts, unless n_ff_expert says otherwise
  int32_t n_expert = 8;  // 0: dense
  int32_t n_expert_used = 2;
  int32_t n_ff_expert = 0;   // 0: n_ff
  int32_t n_ff_shared = 0;   // rows of a shared expert; deepseek: a multiple of n_ff_expert
  int32_t n_dense_lead = 0;  // deepseek, deepseek2
  int32_t window = 0;        // phimoe: attention.sliding_window; 0: no key
  TinyLatent latent = {};
  TinyRouting routing = {};
  TinyRope rope = {};
  int32_t n_ctx_train = 2048;
  float rope_freq_base = 10000.0F;

  ggml_type type = GGML_TYPE_F32;                     // of every matrix but the router, which is F32 like the norms
  std::optional<ggml_type> down_type = std::nullopt;  // of ffn_down, where it differs
  bool mixed_types = false;  // as quantised files are: attn_v and ffn_down of every other layer and the head are Q6_K

  bool fused_gate_up = false;     // blk.N.ffn_gate_up_exps: gate's rows, then up's; only with experts
  bool separate_experts = false;  // blk.N.ffn_gate.E.weight and so on, as in old Mixtral files; only with experts
  bool tied_head = true;          // no output.weight
  bool rope_freqs = false;        // rope_freqs.weight, as in Llama 3
  bool qkv_bias = false;          // qwen2, qwen2moe and phimoe always have them
  int32_t n_tokens = 0;           // only the vocabulary's first ones, and no merges; 0: all
  int32_t n_padding = 0;          // tokens "[PAD n]" after the vocabulary's own, as files padded to a round number have

  std::string chat_template = {};  // tokenizer.chat_template; empty: none

  int32_t n_shards = 1;
  uint32_t seed = 1;

  // A GGUF file whose vocabulary (tokens, merges, special tokens) is copied; it decides the number of tokens.
  std::string vocab_path = DRAFTHORSE_TINY_VOCABULARY;
};

// Writes the model and returns the path to load: `path` itself, or for several shards the first one's. Shards of
// DIR/NAME.gguf are DIR/NAME-00001-of-0000N.gguf and so on; the first holds all metadata.
// Usage error where the options contradict each other or a type's block does not divide a row; file error where
// reading the vocabulary or writing fails.
Result<std::string> write_tiny_model(const std::string& path, const TinyModelOptions& options);

// Where shard `shard` (from 0) of `n_shards` of DIR/NAME.gguf lies.
std::string tiny_model_shard_path(const std::string& path, int32_t shard, int32_t n_shards);

}  // namespace drafthorse
