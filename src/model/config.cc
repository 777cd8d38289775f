#include "model/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "model/family.h"
#include "model/metadata_reader.h"
#include "ops/attention.h"

namespace drafthorse {
namespace {

constexpr int32_t kMostExperts = 65536;

Status check_consistency(const MetadataReader& reader, const ModelConfig& config) {
  if (config.n_head % config.n_head_kv != 0) {
    return reader.error(
        fmt::format("{} query heads do not divide over {} key/value heads", config.n_head, config.n_head_kv));
  }
  if (config.head_dim < 1 || config.value_dim < 1) return reader.error("heads without elements");
  if (config.head_dim > ops::kMaxHeadDim || config.value_dim > ops::kMaxHeadDim) {
    return reader.error(fmt::format("heads of {} elements are wider than the {} supported",
                                    std::max(config.head_dim, config.value_dim), ops::kMaxHeadDim));
  }
  if (config.rope.dims < 2 || config.rope.dims > config.head_dim || config.rope.dims % 2 != 0) {
    return reader.error(fmt::format("rotary dimensions {} do not fit heads of {}", config.rope.dims, config.head_dim));
  }
  if (config.n_expert > kMostExperts) {
    return reader.error(fmt::format("{} experts are more than the {} supported", config.n_expert, kMostExperts));
  }
  if (config.is_moe() && (config.n_expert_used < 1 || config.n_expert_used > config.n_expert)) {
    return reader.error(
        fmt::format("{} of {} experts per token makes no sense", config.n_expert_used, config.n_expert));
  }
  if (config.is_moe() && config.n_ff_expert < 1) return reader.error("experts without rows");
  if (!config.has_experts(0) && config.n_ff < 1) {
    return reader.error(fmt::format("metadata has no number '{}'", reader.key("feed_forward_length")));
  }
  const RoutingConfig& routing = config.routing;
  if (config.is_moe() && routing.n_group > 1) {
    const int32_t per_group = config.n_expert / routing.n_group;
    if (config.n_expert % routing.n_group != 0 || per_group < 2 || routing.n_group_used < 1 ||
        routing.n_group_used > routing.n_group || per_group * routing.n_group_used < config.n_expert_used) {
      return reader.error(fmt::format("{} of {} groups of experts make no sense for {} of {} experts",
                                      routing.n_group_used, routing.n_group, config.n_expert_used, config.n_expert));
    }
  }
  if (!(config.rms_epsilon > 0)) return reader.error("norm epsilon must be positive");
  if (!(config.attention_scale > 0) || !std::isfinite(config.attention_scale))
    return reader.error("the scale of attention must be positive");
  return {};
}

// What stands in every file under the same keys; families read the rest.
Status read_common(const MetadataReader& reader, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.n_layer, reader.dimension("block_count"));
  // Before anything is sized by it.
  const size_t n_tensors = reader.index().tensors().size();
  if (static_cast<size_t>(config.n_layer) > n_tensors) {
    return reader.error(fmt::format("{} layers but only {} tensors; the file is damaged", config.n_layer, n_tensors));
  }
  ASSIGN_OR_RETURN(config.n_embd, reader.dimension("embedding_length"));
  ASSIGN_OR_RETURN(config.n_head, reader.dimension("attention.head_count"));
  ASSIGN_OR_RETURN(config.n_head_kv, reader.dimension_or("attention.head_count_kv", config.n_head));
  if (config.n_head_kv < 1) return reader.error("a model without key/value heads");
  ASSIGN_OR_RETURN(config.n_ff, reader.dimension_or("feed_forward_length", 0));
  ASSIGN_OR_RETURN(config.n_expert, reader.dimension_or("expert_count", 0));
  ASSIGN_OR_RETURN(config.n_expert_used, reader.dimension_or("expert_used_count", 0));
  ASSIGN_OR_RETURN(config.context_trained, reader.dimension("context_length"));
  ASSIGN_OR_RETURN(config.rms_epsilon, reader.number_or("attention.layer_norm_rms_epsilon", 0));
  const std::vector<std::string>* tokens = reader.index().get_strings("tokenizer.ggml.tokens");
  if (tokens == nullptr) return reader.error("the file has no vocabulary");
  config.n_vocab = static_cast<int32_t>(tokens->size());
  return {};
}

}  // namespace

Result<ModelConfig> read_model_config(const GgufIndex& index) {
  ModelConfig config;
  const MetadataReader reader(index, config.architecture);
  const std::string* architecture = index.get_string("general.architecture");
  if (architecture == nullptr) return reader.error("metadata has no 'general.architecture'; not a model file");
  config.architecture = *architecture;
  const Family* family = find_family(config.architecture);
  if (family == nullptr) {
    return reader.error(fmt::format("architecture '{}' is not supported (supported: {})", config.architecture,
                                    fmt::join(supported_architectures(), ", ")));
  }
  if (const std::string* name = index.get_string("general.name")) config.name = *name;
  RETURN_IF_ERROR(read_common(reader, config));
  RETURN_IF_ERROR(family->configure(reader, config));
  RETURN_IF_ERROR(check_consistency(reader, config));
  return config;
}

}  // namespace drafthorse
