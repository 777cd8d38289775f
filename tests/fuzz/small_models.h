// Models of a few kilobytes with every layout of tensors that the engine knows: the GGUF target's seeds, and
// vocabularies for those that need one. Only the header: the payload would be zeros.
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

inline std::vector<std::pair<std::string, Bytes>> small_models() {
  return {
      {"stacked", small_model({})},
      {"fused", small_model({.layout = SmallModel::kFused, .tied_head = false})},
      {"separate", small_model({.layout = SmallModel::kSeparate, .rope = true})},
      {"dense", small_model({.experts = 0, .biases = true})},
      {"sentencepiece", small_model({.bytes_in_pairs = false, .chat_template = "chatml"})},
      {"sentencepiece-dense", small_model({.bytes_in_pairs = false, .experts = 0, .tied_head = false, .rope = true})},
  };
}

}  // namespace drafthorse::fuzz
