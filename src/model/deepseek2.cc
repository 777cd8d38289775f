// Architecture "deepseek2": DeepSeek-V2 to V3.1. Latent attention, dense layers in front, shared experts, and routing
// with or without groups and biases.
//
// Attention always runs in the absorbed form, for one token as for a long prompt: expanding the latent state to heads
// is another order of sums, and a prompt's bits would not be decoding's.
#include <algorithm>
#include <cmath>
#include <vector>

#include "model/decoder.h"
#include "model/rope_scaling.h"

namespace drafthorse {
namespace {

using Use = WeightDeclarations::Use;

Status read_latent(const MetadataReader& reader, ModelConfig& config) {
  LatentConfig& latent = config.latent;
  ASSIGN_OR_RETURN(latent.kv_rank, reader.dimension("attention.kv_lora_rank"));
  ASSIGN_OR_RETURN(latent.q_rank, reader.dimension_or("attention.q_lora_rank", 0));
  // Small models have no state for queries, whatever the key says.
  if (reader.index().find("blk.0.attn_q.weight") != nullptr) latent.q_rank = 0;
  ASSIGN_OR_RETURN(latent.rope_dim, reader.dimension("rope.dimension_count", 2));
  latent.split_kv_b = reader.has("attention.key_length_mla");
  const char* of = latent.split_kv_b ? "_mla" : "";
  ASSIGN_OR_RETURN(const int32_t key_dim, reader.dimension(fmt::format("attention.key_length{}", of)));
  ASSIGN_OR_RETURN(latent.value_dim, reader.dimension(fmt::format("attention.value_length{}", of)));
  latent.nope_dim = key_dim - latent.rope_dim;
  if (latent.nope_dim < 1) {
    return reader.error(fmt::format("rotary dimensions {} do not fit heads of {}", latent.rope_dim, key_dim));
  }
  // In the cache all heads are one: the latent state and the rotated key, of which values are the former.
  config.n_head_kv = 1;
  config.head_dim = latent.kv_rank + latent.rope_dim;
  config.value_dim = latent.kv_rank;
  config.attention_scale = 1.0F / std::sqrt(static_cast<float>(key_dim));
  return {};
}

// DeepSeek-V2's own form of YaRN: rotations keep their magnitude, scores are scaled instead.
Status read_latent_rope(const MetadataReader& reader, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.pairs = RopePairs::kNeighbours;
  RETURN_IF_ERROR(read_rope(reader, {"none", "linear", "yarn"}, config));
  if (rope.extrapolation == 0) {
    if (rope.frequency_scale != 1) {
      return reader.error(
          "linear rotary scaling is not supported for architecture 'deepseek2' (supported: none, yarn)");
    }
    config.attention_scale *= rope.magnitude * rope.magnitude;
    return {};
  }
  // Converters have multiplied it by 0.1.
  ASSIGN_OR_RETURN(const float tenth, reader.number_or("rope.scaling.yarn_log_multiplier", 0));
  const float factor = yarn_factor(rope);
  float of_scores = rope.magnitude * yarn_magnitude(factor, tenth / 0.1F);
  if (tenth == 0) {
    of_scores = rope.magnitude * yarn_magnitude(factor);
  } else {
    rope.magnitude /= yarn_magnitude(factor);
  }
  config.attention_scale *= of_scores * of_scores;
  return {};
}

Status read_routing(const MetadataReader& reader, ModelConfig& config) {
  RoutingConfig& routing = config.routing;
  RETURN_IF_ERROR(read_deepseek_experts(reader, config));
  if (!config.is_moe()) return {};
  ASSIGN_OR_RETURN(routing.normalised, reader.flag_or("expert_weights_norm", false));
  enum : int32_t { kNotSaid = 0, kSoftmax = 1, kSigmoid = 2 };
  ASSIGN_OR_RETURN(const int32_t gating, reader.dimension_or("expert_gating_func", kNotSaid));
  if (gating > kSigmoid) {
    return reader.error(fmt::format("'{}' = {} is not supported (supported: 1, softmax, and 2, sigmoid)",
                                    reader.key("expert_gating_func"), gating));
  }
  const std::string bias = block_name(config.n_dense_lead, "exp_probs_b.bias");
  if (gating == kNotSaid && reader.index().find(bias) != nullptr) {
    return reader.error(fmt::format("'{}' is missing: without it nobody knows what '{}' is added to",
                                    reader.key("expert_gating_func"), bias));
  }
  routing.gating = gating == kSigmoid ? ExpertGating::kSigmoid : ExpertGating::kSoftmax;
  ASSIGN_OR_RETURN(routing.n_group, reader.dimension_or("expert_group_count", 1));
  ASSIGN_OR_RETURN(routing.n_group_used, reader.dimension_or("expert_group_used_count", routing.n_group));
  return {};
}

Status configure(const MetadataReader& reader, ModelConfig& config) {
  ASSIGN_OR_RETURN(const int32_t n_predicting, reader.dimension_or("nextn_predict_layers", 0));
  if (n_predicting > 0) return reader.error("layers that predict several tokens at once (MTP) are not supported");
  ASSIGN_OR_RETURN(const float temperature, reader.number_or("attention.temperature_scale", 0));
  if (temperature != 0) return reader.error("attention whose temperature depends on the position is not supported");
  RETURN_IF_ERROR(read_latent(reader, config));
  RETURN_IF_ERROR(read_latent_rope(reader, config));
  return read_routing(reader, config);
}

// kv_b [kv_rank, (nope_dim + value_dim) * n_head] -> k_b [nope_dim, kv_rank, n_head]: each head's first rows, turned.
void turn_keys(const ggml_tensor& kv_b, ggml_tensor& k_b) {
  const int64_t nope_dim = k_b.ne[0];
  const int64_t kv_rank = k_b.ne[1];
  const int64_t heads = k_b.ne[2];
  const int64_t head_rows = kv_b.ne[1] / heads;
  const ggml_to_float_t to_float = ggml_get_type_traits(kv_b.type)->to_float;
  std::vector<float> row(static_cast<size_t>(kv_rank));
  std::vector<float> turned(static_cast<size_t>(kv_rank * nope_dim));
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t j = 0; j < nope_dim; ++j) {
      const std::byte* data =
          static_cast<const std::byte*>(kv_b.data) + static_cast<size_t>(head * head_rows + j) * kv_b.nb[1];
      if (to_float == nullptr) {
        std::copy_n(reinterpret_cast<const float*>(data), kv_rank, row.data());
      } else {
        to_float(data, row.data(), kv_rank);
      }
      for (int64_t r = 0; r < kv_rank; ++r) turned[static_cast<size_t>(r * nope_dim + j)] = row[static_cast<size_t>(r)];
    }
    auto* out = static_cast<std::byte*>(k_b.data) + static_cast<size_t>(head) * k_b.nb[2];
    if (k_b.type == GGML_TYPE_F32) {
      std::copy(turned.begin(), turned.end(), reinterpret_cast<float*>(out));
    } else {
      ggml_get_type_traits(k_b.type)->from_float_ref(turned.data(), out, kv_rank * nope_dim);
    }
  }
}

void declare_latent(WeightDeclarations& tensors, const ModelConfig& config, int32_t index, LayerWeights& layer) {
  const LatentConfig& latent = config.latent;
  LatentWeights& out = layer.latent;
  const int64_t n_embd = config.n_embd;
  const int64_t heads = config.n_head;
  const int64_t n_q = int64_t{latent.nope_dim + latent.rope_dim} * heads;
  layer.attention_norm = tensors.required(block_name(index, "attn_norm.weight"), Use::kVector, n_embd);
  if (latent.q_rank == 0) {
    out.q = tensors.required(block_name(index, "attn_q.weight"), Use::kMatrix, n_embd, n_q);
  } else {
    out.q_a = tensors.required(block_name(index, "attn_q_a.weight"), Use::kMatrix, n_embd, latent.q_rank);
    out.q_a_norm = tensors.required(block_name(index, "attn_q_a_norm.weight"), Use::kVector, latent.q_rank);
    out.q_b = tensors.required(block_name(index, "attn_q_b.weight"), Use::kMatrix, latent.q_rank, n_q);
  }
  out.kv_a = tensors.required(block_name(index, "attn_kv_a_mqa.weight"), Use::kMatrix, n_embd, config.head_dim);
  out.kv_a_norm = tensors.required(block_name(index, "attn_kv_a_norm.weight"), Use::kVector, latent.kv_rank);
  if (latent.split_kv_b) {
    out.k_b = tensors.required_per_head(block_name(index, "attn_k_b.weight"), latent.nope_dim, latent.kv_rank, heads);
    out.v_b = tensors.required_per_head(block_name(index, "attn_v_b.weight"), latent.kv_rank, latent.value_dim, heads);
  } else {
    const int64_t rows = int64_t{latent.nope_dim + latent.value_dim} * heads;
    out.kv_b = tensors.required(block_name(index, "attn_kv_b.weight"), Use::kMatrix, latent.kv_rank, rows);
    out.k_b = tensors.derived(out.kv_b, latent.nope_dim, latent.kv_rank, heads, turn_keys);
  }
  layer.attention_out = tensors.required(block_name(index, "attn_output.weight"), Use::kMatrix,
                                         int64_t{latent.value_dim} * heads, n_embd);
}

ModelWeights declare(WeightDeclarations& tensors, const ModelConfig& config) {
  ModelWeights weights;
  declare_ends(tensors, config, weights);
  for (int32_t i = 0; i < config.n_layer; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    declare_latent(tensors, config, i, layer);
    declare_feed_forward(tensors, config, i, layer);
    declare_shared_expert(tensors, config, i, layer);
    if (!config.has_experts(i)) continue;
    // All routers or none.
    const std::string bias = block_name(i, "exp_probs_b.bias");
    if (i == config.n_dense_lead) {
      layer.router_bias = tensors.optional(bias, Use::kVector, config.n_expert);
    } else if (weights.layers[static_cast<size_t>(config.n_dense_lead)].router_bias != nullptr) {
      layer.router_bias = tensors.required(bias, Use::kVector, config.n_expert);
    }
  }
  return weights;
}

// The stream after attention.
ggml_tensor* build_latent(StageBuilder& b, const LayerWeights& layer, const KvCache& cache, int32_t index,
                          const LayerInputs& in) {
  ggml_context* context = b.context();
  const LatentConfig& latent = b.config().latent;
  const LatentWeights& weights = layer.latent;
  const int64_t heads = b.config().n_head;
  const int64_t n = in.residual->ne[1];
  ggml_tensor* x = b.rms_norm(in.residual, layer.attention_norm);
  ggml_tensor* q = weights.q != nullptr ? b.linear(weights.q, x)
                                        : b.linear(weights.q_b, b.rms_norm(b.linear(weights.q_a, x), weights.q_a_norm));
  q = ggml_reshape_3d(context, q, latent.nope_dim + latent.rope_dim, heads, n);
  ggml_tensor* q_nope = ggml_view_3d(context, q, latent.nope_dim, heads, n, q->nb[1], q->nb[2], 0);
  ggml_tensor* q_rope = ggml_view_3d(context, q, latent.rope_dim, heads, n, q->nb[1], q->nb[2],
                                     static_cast<size_t>(latent.nope_dim) * sizeof(float));
  q_rope = b.rope(q_rope, in.positions, nullptr);
  q = ggml_concat(context, b.heads_linear(weights.k_b, q_nope), q_rope, 0);

  ggml_tensor* kv = b.linear(weights.kv_a, x);
  ggml_tensor* state = ggml_view_3d(context, kv, latent.kv_rank, 1, n, kv->nb[1], kv->nb[1], 0);
  ggml_tensor* k_rope = ggml_view_3d(context, kv, latent.rope_dim, 1, n, kv->nb[1], kv->nb[1],
                                     static_cast<size_t>(latent.kv_rank) * sizeof(float));
  ggml_tensor* k = ggml_concat(context, b.rms_norm(state, weights.kv_a_norm), b.rope(k_rope, in.positions, nullptr), 0);

  ggml_tensor* attended = b.cached_attention(q, k, nullptr, cache, index, in.positions, in.kv_rows);
  ggml_tensor* v_b = weights.v_b;
  if (v_b == nullptr) {
    const ggml_tensor* kv_b = weights.kv_b;
    const size_t head_bytes = static_cast<size_t>(latent.nope_dim + latent.value_dim) * kv_b->nb[1];
    v_b = ggml_view_3d(context, weights.kv_b, latent.kv_rank, latent.value_dim, heads, kv_b->nb[1], head_bytes,
                       static_cast<size_t>(latent.nope_dim) * kv_b->nb[1]);
  }
  ggml_tensor* values = b.heads_linear(v_b, ggml_reshape_3d(context, attended, latent.kv_rank, heads, n));
  values = ggml_reshape_2d(context, values, latent.value_dim * heads, n);
  return ggml_add(context, in.residual, b.linear(layer.attention_out, values));
}

LayerStage build_layer(StageBuilder& b, const ModelWeights& weights, const KvCache& cache, int32_t index,
                       const LayerInputs& in) {
  const LayerWeights& layer = weights.layers[index];
  return build_feed_forward(b, layer, build_latent(b, layer, cache, index, in));
}

}  // namespace

const Family kDeepseek2Family = {configure, declare, build_layer, 96};

}  // namespace drafthorse
