#include "model/config.h"

#include <fmt/format.h>

#include <cmath>

#include "ops/attention.h"

namespace drafthorse {
namespace {

// Far above any model there is; keeps every product of sizes within 64 bits.
constexpr uint64_t kMaxDimension = 1 << 24;
constexpr int32_t kMostExperts = 65536;

class Reader {
 public:
  explicit Reader(const GgufIndex& index) : index_(index) {}

  const std::string& path() const { return index_.files().front().path; }
  Status error(const std::string& what) const { return file_error(fmt::format("{}: {}", path(), what)); }

  Result<int32_t> dimension(const std::string& key, uint64_t least = 1) const {
    const std::optional<uint64_t> value = index_.get_u64(key);
    if (!value) return error(fmt::format("metadata has no number '{}'; the file is damaged or not a model", key));
    if (*value < least || *value > kMaxDimension) return error(fmt::format("'{}' = {} is out of range", key, *value));
    return static_cast<int32_t>(*value);
  }
  Result<int32_t> dimension_or(const std::string& key, int32_t otherwise) const {
    if (!index_.has(key)) return otherwise;
    return dimension(key, 0);
  }
  Result<float> number_or(const std::string& key, double otherwise) const {
    if (!index_.has(key)) return static_cast<float>(otherwise);
    const std::optional<double> value = index_.get_f64(key);
    if (!value || !std::isfinite(*value)) return error(fmt::format("'{}' is not a finite number", key));
    return static_cast<float>(*value);
  }

 private:
  const GgufIndex& index_;
};

Status check_consistency(const Reader& reader, const ModelConfig& config) {
  if (config.n_head % config.n_head_kv != 0) {
    return reader.error(
        fmt::format("{} query heads do not divide over {} key/value heads", config.n_head, config.n_head_kv));
  }
  if (config.head_dim > ops::kMaxHeadDim) {
    return reader.error(
        fmt::format("heads of {} elements are wider than the {} supported", config.head_dim, ops::kMaxHeadDim));
  }
  if (config.rope_dims < 2 || config.rope_dims > config.head_dim || config.rope_dims % 2 != 0) {
    return reader.error(fmt::format("rotary dimensions {} do not fit heads of {}", config.rope_dims, config.head_dim));
  }
  if (config.n_expert > kMostExperts) {
    return reader.error(fmt::format("{} experts are more than the {} supported", config.n_expert, kMostExperts));
  }
  if (config.is_moe() && (config.n_expert_used < 1 || config.n_expert_used > config.n_expert)) {
    return reader.error(
        fmt::format("{} of {} experts per token makes no sense", config.n_expert_used, config.n_expert));
  }
  if (!(config.rms_epsilon > 0) || !(config.rope_base > 0) || !(config.rope_frequency_scale > 0)) {
    return reader.error("norm epsilon, rotary base and scale must be positive");
  }
  return {};
}

}  // namespace

Result<ModelConfig> read_model_config(const GgufIndex& index) {
  const Reader reader(index);
  ModelConfig config;
  const std::string* architecture = index.get_string("general.architecture");
  if (architecture == nullptr) return reader.error("metadata has no 'general.architecture'; not a model file");
  config.architecture = *architecture;
  if (config.architecture != "llama") {
    return reader.error(fmt::format("architecture '{}' is not supported (supported: llama)", config.architecture));
  }
  if (const std::string* name = index.get_string("general.name")) config.name = *name;
  const std::string prefix = config.architecture + ".";
  ASSIGN_OR_RETURN(config.n_layer, reader.dimension(prefix + "block_count"));
  // Before anything is sized by it.
  if (static_cast<size_t>(config.n_layer) > index.tensors().size()) {
    return reader.error(
        fmt::format("{} layers but only {} tensors; the file is damaged", config.n_layer, index.tensors().size()));
  }
  ASSIGN_OR_RETURN(config.n_embd, reader.dimension(prefix + "embedding_length"));
  ASSIGN_OR_RETURN(config.n_head, reader.dimension(prefix + "attention.head_count"));
  ASSIGN_OR_RETURN(config.n_head_kv, reader.dimension_or(prefix + "attention.head_count_kv", config.n_head));
  if (config.n_head_kv < 1) return reader.error("a model without key/value heads");
  ASSIGN_OR_RETURN(config.head_dim,
                   reader.dimension_or(prefix + "attention.key_length", config.n_embd / config.n_head));
  ASSIGN_OR_RETURN(const int32_t value_dim, reader.dimension_or(prefix + "attention.value_length", config.head_dim));
  if (config.head_dim < 1 || value_dim != config.head_dim) {
    return reader.error(
        fmt::format("keys of {} and values of {} elements are not supported", config.head_dim, value_dim));
  }
  ASSIGN_OR_RETURN(config.n_ff, reader.dimension(prefix + "feed_forward_length"));
  ASSIGN_OR_RETURN(config.n_expert, reader.dimension_or(prefix + "expert_count", 0));
  ASSIGN_OR_RETURN(config.n_expert_used, reader.dimension_or(prefix + "expert_used_count", 0));
  ASSIGN_OR_RETURN(config.context_trained, reader.dimension(prefix + "context_length"));
  ASSIGN_OR_RETURN(config.rms_epsilon, reader.number_or(prefix + "attention.layer_norm_rms_epsilon", 0));
  ASSIGN_OR_RETURN(config.attention_scale, reader.number_or(prefix + "attention.scale", 0));
  if (config.attention_scale == 0) config.attention_scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim));
  ASSIGN_OR_RETURN(config.expert_weights_scale, reader.number_or(prefix + "expert_weights_scale", 1));
  if (config.expert_weights_scale == 0) config.expert_weights_scale = 1;
  ASSIGN_OR_RETURN(config.rope_dims, reader.dimension_or(prefix + "rope.dimension_count", config.head_dim));
  ASSIGN_OR_RETURN(config.rope_base, reader.number_or(prefix + "rope.freq_base", 10000));
  const std::string* scaling = index.get_string(prefix + "rope.scaling.type");
  if (scaling != nullptr && *scaling == "linear") {
    ASSIGN_OR_RETURN(const float factor, reader.number_or(prefix + "rope.scaling.factor", 1));
    config.rope_frequency_scale = factor == 0 ? 1 : 1 / factor;
  } else if (scaling != nullptr && *scaling != "none") {
    return reader.error(fmt::format("rotary scaling '{}' is not supported (supported: none, linear)", *scaling));
  }
  const std::vector<std::string>* tokens = index.get_strings("tokenizer.ggml.tokens");
  if (tokens == nullptr) return reader.error("the file has no vocabulary");
  config.n_vocab = static_cast<int32_t>(tokens->size());
  RETURN_IF_ERROR(check_consistency(reader, config));
  return config;
}

}  // namespace drafthorse
