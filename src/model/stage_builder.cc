#include "model/stage_builder.h"

namespace drafthorse {

ggml_tensor* StageBuilder::rms_norm(ggml_tensor* x, ggml_tensor* weight, ggml_tensor* bias) {
  ggml_tensor* normed = ggml_mul(context_, ggml_rms_norm(context_, x, config_.rms_epsilon), weight);
  return bias == nullptr ? normed : ggml_add(context_, normed, bias);
}

ggml_tensor* StageBuilder::rope(ggml_tensor* x, ggml_tensor* positions, ggml_tensor* factors) {
  const RopeConfig& rope = config_.rope;
  const int mode = rope.pairs == RopePairs::kNeighbours ? GGML_ROPE_TYPE_NORMAL : GGML_ROPE_TYPE_NEOX;
  return ggml_rope_ext(context_, x, positions, factors, rope.dims, mode, rope.original_context, rope.base,
                       rope.frequency_scale, rope.extrapolation, rope.magnitude, kYarnFastRotations,
                       kYarnSlowRotations);
}

StageBuilder::CacheRows StageBuilder::write_cache(ggml_tensor* k, ggml_tensor* v, const KvCache& cache, int32_t layer,
                                                  ggml_tensor* kv_rows) {
  const auto flat = [&](ggml_tensor* x) { return ggml_reshape_2d(context_, x, x->ne[0] * x->ne[1], x->ne[2]); };
  ggml_tensor* keys = ggml_set_rows(context_, cache.keys(layer), flat(k), kv_rows);
  ggml_tensor* values = v == nullptr ? ggml_view_2d(context_, keys, config_.value_dim, keys->ne[1], keys->nb[1], 0)
                                     : ggml_set_rows(context_, cache.values(layer), flat(v), kv_rows);
  return {keys, values};
}

}  // namespace drafthorse
