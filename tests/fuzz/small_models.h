// Models of a few kilobytes with every layout of tensors that the engine knows, and the architecture with most numbers:
// the GGUF target's seeds, and vocabularies for those that need one. Only the header: the payload would be zeros.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "io/testing/gguf_builder.h"

namespace drafthorse::fuzz {

struct SmallModel {
  bool bytes_in_pairs = true;  // byte-pair vocabulary; else SentencePiece
  int experts = 4;             // 0: dense
  enum { kStacked, kFused, kSeparate } layout = kStacked;
  bool biases = false;
  bool tied_head = true;
  bool rope = false;  // factors, and linear scaling
  const char* chat_template = nullptr;
};

inline Bytes small_model(const SmallModel& model) {
  constexpr int64_t kEmbd = 64;
  constexpr int64_t kFf = 96;
  constexpr uint32_t kHeads = 2;
  GgufBuilder file;
  file.set("general.architecture", "llama");
  file.set("llama.block_count", uint32_t{2});
  file.set("llama.context_length", uint32_t{256});
  file.set("llama.embedding_length", static_cast<uint32_t>(kEmbd));
  file.set("llama.feed_forward_length", static_cast<uint32_t>(kFf));
  file.set("llama.attention.head_count", kHeads);
  file.set("llama.attention.head_count_kv", uint32_t{1});
  file.set("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  if (model.experts > 0) {
    file.set("llama.expert_count", static_cast<uint32_t>(model.experts));
    file.set("llama.expert_used_count", uint32_t{2});
  }
  if (model.rope) {
    file.set("llama.rope.dimension_count", uint32_t{16});
    file.set("llama.rope.freq_base", 500000.0F);
    file.set("llama.rope.scaling.type", "linear");
    file.set("llama.rope.scaling.factor", 4.0F);
  }
  if (model.chat_template != nullptr) file.set("tokenizer.chat_template", model.chat_template);
  const TestVocabulary vocabulary = model.bytes_in_pairs ? byte_level_vocabulary() : sentencepiece_vocabulary();
  vocabulary.write(file);
  const auto n_vocab = static_cast<int64_t>(vocabulary.tokens.size());
  constexpr int64_t kHeadDim = kEmbd / kHeads;
  file.add_tensor("token_embd.weight", GGML_TYPE_Q8_0, {kEmbd, n_vocab});
  file.add_tensor("output_norm.weight", GGML_TYPE_F32, {kEmbd});
  if (!model.tied_head) file.add_tensor("output.weight", GGML_TYPE_F16, {kEmbd, n_vocab});
  if (model.rope) file.add_tensor("rope_freqs.weight", GGML_TYPE_F32, {8});
  for (int layer = 0; layer < 2; ++layer) {
    const std::string blk = fmt::format("blk.{}.", layer);
    const auto add = [&](const std::string& name, ggml_type type, const std::vector<int64_t>& ne) {
      file.add_tensor(blk + name, type, ne);
    };
    add("attn_norm.weight", GGML_TYPE_F32, {kEmbd});
    add("attn_q.weight", GGML_TYPE_Q4_0, {kEmbd, kEmbd});
    add("attn_k.weight", GGML_TYPE_BF16, {kEmbd, kHeadDim});
    add("attn_v.weight", GGML_TYPE_F16, {kEmbd, kHeadDim});
    add("attn_output.weight", GGML_TYPE_Q4_0, {kEmbd, kEmbd});
    if (model.biases) {
      add("attn_q.bias", GGML_TYPE_F32, {kEmbd});
      add("attn_k.bias", GGML_TYPE_F32, {kHeadDim});
      add("attn_v.bias", GGML_TYPE_F32, {kHeadDim});
      add("attn_output.bias", GGML_TYPE_F32, {kEmbd});
    }
    add("ffn_norm.weight", GGML_TYPE_F32, {kEmbd});
    const int64_t n = model.experts;
    if (n == 0) {
      add("ffn_gate.weight", GGML_TYPE_Q4_0, {kEmbd, kFf});
      add("ffn_up.weight", GGML_TYPE_Q4_0, {kEmbd, kFf});
      add("ffn_down.weight", GGML_TYPE_Q4_0, {kFf, kEmbd});
      continue;
    }
    add("ffn_gate_inp.weight", GGML_TYPE_F32, {kEmbd, n});
    if (model.layout == SmallModel::kStacked) {
      add("ffn_gate_exps.weight", GGML_TYPE_Q4_0, {kEmbd, kFf, n});
      add("ffn_up_exps.weight", GGML_TYPE_Q4_0, {kEmbd, kFf, n});
    } else if (model.layout == SmallModel::kFused) {
      add("ffn_gate_up_exps.weight", GGML_TYPE_Q4_0, {kEmbd, 2 * kFf, n});
    }
    if (model.layout != SmallModel::kSeparate) {
      add("ffn_down_exps.weight", GGML_TYPE_Q4_0, {kFf, kEmbd, n});
      continue;
    }
    for (int64_t e = 0; e < n; ++e) {
      add(fmt::format("ffn_gate.{}.weight", e), GGML_TYPE_Q4_0, {kEmbd, kFf});
      add(fmt::format("ffn_up.{}.weight", e), GGML_TYPE_Q4_0, {kEmbd, kFf});
      add(fmt::format("ffn_down.{}.weight", e), GGML_TYPE_Q4_0, {kFf, kEmbd});
    }
  }
  Bytes bytes = file.build();
  bytes.resize(bytes.size() - file.data_bytes());
  return bytes;
}

// Architecture deepseek2: latent attention in both forms, a dense layer and one with experts, groups and biases.
inline Bytes small_latent_model(bool split_kv_b) {
  constexpr int64_t kEmbd = 64;
  constexpr int64_t kHeads = 2;
  constexpr int64_t kRank = 32;
  constexpr int64_t kNope = 32;
  constexpr int64_t kRope = 8;
  constexpr int64_t kValue = 16;
  constexpr int64_t kExperts = 8;
  GgufBuilder file;
  const auto set = [&](const std::string& key, int64_t value) {
    file.set("deepseek2." + key, static_cast<uint32_t>(value));
  };
  file.set("general.architecture", "deepseek2");
  set("block_count", 2);
  set("context_length", 256);
  set("embedding_length", kEmbd);
  set("feed_forward_length", 96);
  set("leading_dense_block_count", 1);
  set("attention.head_count", kHeads);
  set("attention.head_count_kv", split_kv_b ? 1 : kHeads);
  set("attention.q_lora_rank", split_kv_b ? kRank : 0);
  set("attention.kv_lora_rank", kRank);
  set("attention.key_length", split_kv_b ? kRank + kRope : kNope + kRope);
  set("attention.value_length", split_kv_b ? kRank : kValue);
  if (split_kv_b) {
    set("attention.key_length_mla", kNope + kRope);
    set("attention.value_length_mla", kValue);
  }
  set("rope.dimension_count", kRope);
  set("expert_count", kExperts);
  set("expert_used_count", 2);
  set("expert_shared_count", 1);
  set("expert_feed_forward_length", 32);
  set("expert_gating_func", 2);
  set("expert_group_count", 4);
  set("expert_group_used_count", 2);
  file.set("deepseek2.expert_weights_norm", true);
  file.set("deepseek2.expert_weights_scale", 2.5F);
  file.set("deepseek2.attention.layer_norm_rms_epsilon", 1e-5F);
  file.set("deepseek2.rope.scaling.type", "yarn");
  file.set("deepseek2.rope.scaling.factor", 40.0F);
  set("rope.scaling.original_context_length", 64);
  file.set("deepseek2.rope.scaling.yarn_log_multiplier", 0.07F);
  const TestVocabulary vocabulary = byte_level_vocabulary();
  vocabulary.write(file);
  file.add_tensor("token_embd.weight", GGML_TYPE_Q8_0, {kEmbd, static_cast<int64_t>(vocabulary.tokens.size())});
  file.add_tensor("output_norm.weight", GGML_TYPE_F32, {kEmbd});
  for (int layer = 0; layer < 2; ++layer) {
    const auto add = [&](const std::string& name, ggml_type type, const std::vector<int64_t>& ne) {
      file.add_tensor(fmt::format("blk.{}.{}", layer, name), type, ne);
    };
    add("attn_norm.weight", GGML_TYPE_F32, {kEmbd});
    if (split_kv_b) {
      add("attn_q_a.weight", GGML_TYPE_Q4_0, {kEmbd, kRank});
      add("attn_q_a_norm.weight", GGML_TYPE_F32, {kRank});
      add("attn_q_b.weight", GGML_TYPE_Q4_0, {kRank, kHeads * (kNope + kRope)});
      add("attn_k_b.weight", GGML_TYPE_Q8_0, {kNope, kRank, kHeads});
      add("attn_v_b.weight", GGML_TYPE_Q8_0, {kRank, kValue, kHeads});
    } else {
      add("attn_q.weight", GGML_TYPE_Q4_0, {kEmbd, kHeads * (kNope + kRope)});
      add("attn_kv_b.weight", GGML_TYPE_Q4_0, {kRank, kHeads * (kNope + kValue)});
    }
    add("attn_kv_a_mqa.weight", GGML_TYPE_Q4_0, {kEmbd, kRank + kRope});
    add("attn_kv_a_norm.weight", GGML_TYPE_F32, {kRank});
    add("attn_output.weight", GGML_TYPE_Q4_0, {kHeads * kValue, kEmbd});
    add("ffn_norm.weight", GGML_TYPE_F32, {kEmbd});
    const auto add_ffn = [&](const std::string& suffix, int64_t rows, int64_t experts) {
      for (const char* part : {"gate", "up", "down"}) {
        const bool is_down = std::string(part) == "down";
        std::vector<int64_t> ne = {is_down ? rows : kEmbd, is_down ? kEmbd : rows};
        if (experts > 0) ne.push_back(experts);
        add(fmt::format("ffn_{}{}.weight", part, suffix), GGML_TYPE_Q4_0, ne);
      }
    };
    if (layer == 0) {
      add_ffn("", 96, 0);
      continue;
    }
    add("ffn_gate_inp.weight", GGML_TYPE_F32, {kEmbd, kExperts});
    add("exp_probs_b.bias", GGML_TYPE_F32, {kExperts});
    add_ffn("_exps", 32, kExperts);
    add_ffn("_shexp", 32, 0);
  }
  Bytes bytes = file.build();
  bytes.resize(bytes.size() - file.data_bytes());
  return bytes;
}

inline std::vector<std::pair<std::string, Bytes>> small_models() {
  return {
      {"stacked", small_model({})},
      {"fused", small_model({.layout = SmallModel::kFused, .tied_head = false})},
      {"separate", small_model({.layout = SmallModel::kSeparate, .rope = true})},
      {"dense", small_model({.experts = 0, .biases = true})},
      {"sentencepiece", small_model({.bytes_in_pairs = false, .chat_template = "chatml"})},
      {"sentencepiece-dense", small_model({.bytes_in_pairs = false, .experts = 0, .tied_head = false, .rope = true})},
      {"latent", small_latent_model(true)},
      {"latent-old", small_latent_model(false)},
  };
}

}  // namespace drafthorse::fuzz
