#include "model/stage_builder.h"

namespace drafthorse {

ggml_tensor* StageBuilder::rms_norm(ggml_tensor* x, ggml_tensor* weight, ggml_tensor* bias) {
  ggml_tensor* normed = ggml_mul(context_, ggml_rms_norm(context_, x, config_.rms_epsilon), weight);
  return bias == nullptr ? normed : ggml_add(context_, normed, bias);
}

ggml_tensor* StageBuilder::quantized(ggml_tensor* x, ggml_type weight_type) {
  const ops::ActivationFormat format = ops::activation_format(weight_type);
  for (const Quantized& known : quantized_) {
    if (known.x == x && known.format == format) return known.result;
  }
  ggml_tensor* result = ops::quantize(context_, nodes_, x, weight_type);
  quantized_.push_back({x, format, result});
  return result;
}

ggml_tensor* StageBuilder::linear(ggml_tensor* w, ggml_tensor* x, ggml_tensor* bias) {
  ggml_tensor* y = ops::linear(context_, nodes_, w, quantized(x, w->type));
  return bias == nullptr ? y : ggml_add(context_, y, bias);
}

ggml_tensor* StageBuilder::heads_linear(ggml_tensor* w, ggml_tensor* x) {
  const int64_t heads = x->ne[1];
  const int64_t n = x->ne[2];
  ggml_tensor* flat = ggml_cont_2d(context_, x, x->ne[0], heads * n);
  return ops::heads_linear(context_, nodes_, w, quantized(flat, w->type));
}

ggml_tensor* StageBuilder::rope(ggml_tensor* x, ggml_tensor* positions, ggml_tensor* factors) {
  const RopeConfig& rope = config_.rope;
  const int mode = rope.pairs == RopePairs::kNeighbours ? GGML_ROPE_TYPE_NORMAL : GGML_ROPE_TYPE_NEOX;
  return ggml_rope_ext(context_, x, positions, factors, rope.dims, mode, rope.original_context, rope.base,
                       rope.frequency_scale, rope.extrapolation, rope.magnitude, kYarnFastRotations,
                       kYarnSlowRotations);
}

ggml_tensor* StageBuilder::cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache,
                                            int32_t layer, ggml_tensor* positions, ggml_tensor* kv_rows) {
  const auto flat = [&](ggml_tensor* x) { return ggml_reshape_2d(context_, x, x->ne[0] * x->ne[1], x->ne[2]); };
  ggml_tensor* keys = ggml_set_rows(context_, cache.keys(layer), flat(k), kv_rows);
  ggml_tensor* values = v == nullptr ? ggml_view_2d(context_, keys, config_.value_dim, keys->ne[1], keys->nb[1], 0)
                                     : ggml_set_rows(context_, cache.values(layer), flat(v), kv_rows);
  return ops::attention(context_, q, keys, values, positions, kv_rows, attention_);
}

ggml_tensor* StageBuilder::gated_ffn(ggml_tensor* x, ggml_tensor* gate, ggml_tensor* up, ggml_tensor* down) {
  return linear(down, ops::gated_linear(context_, nodes_, gate, up, quantized(x, gate->type)));
}

}  // namespace drafthorse
