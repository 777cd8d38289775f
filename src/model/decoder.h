// What families of pre-norm decoders have in common: attention over heads of keys and values, a dense FFN or a router
// with experts, a shared expert. A family's file names what it has; what it does not declare is left out of the graph.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "model/family.h"

namespace drafthorse {

// "blk.3.attn_q.weight"
inline std::string block_name(int32_t layer, std::string_view rest) { return fmt::format("blk.{}.{}", layer, rest); }

// --- hyperparameters

// Heads of keys and values alike, all of their elements rotated unless the file says otherwise.
Status read_heads(const MetadataReader& reader, ModelConfig& config);
// n_ff_expert under a key of its own; where the file has none, a dense FFN's rows shared out among a token's experts.
Status read_expert_rows(const MetadataReader& reader, ModelConfig& config);
// leading_dense_block_count, expert_shared_count (experts side by side as one), expert_weights_scale.
Status read_deepseek_experts(const MetadataReader& reader, ModelConfig& config);

// --- tensors

enum class Presence { kNone, kOptional, kRequired };

// Embedding, last norm and head; the head may be the embedding.
void declare_ends(WeightDeclarations& tensors, const ModelConfig& config, ModelWeights& weights);
// attn_norm, attn_q, attn_k, attn_v, attn_output. `bias`: of the first three projections.
void declare_heads(WeightDeclarations& tensors, const ModelConfig& config, int32_t index, Presence bias,
                   LayerWeights& layer);
// ffn_norm and gate, up, down, or the router and where the experts lie.
void declare_feed_forward(WeightDeclarations& tensors, const ModelConfig& config, int32_t index, LayerWeights& layer);
// ffn_gate_shexp, ffn_up_shexp, ffn_down_shexp.
void declare_shared_expert(WeightDeclarations& tensors, const ModelConfig& config, int32_t index, LayerWeights& layer);

// rope_factors_short and rope_factors_long, both or none.
void declare_rope_factors(WeightDeclarations& tensors, const ModelConfig& config, ModelWeights& weights);

// --- graphs

// A whole layer: attention over heads, then build_feed_forward(). Rotations take the file's factors, if it has any; of
// two sets the one that a cache of this length asks for.
LayerStage build_decoder_layer(StageBuilder& builder, const ModelWeights& weights, const KvCache& cache, int32_t index,
                               const LayerInputs& inputs);
// From the stream after attention to the stage's results.
LayerStage build_feed_forward(StageBuilder& builder, const LayerWeights& layer, ggml_tensor* residual);

}  // namespace drafthorse
