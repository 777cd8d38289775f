#include "model/device_stage_builder.h"

#include "model/device_attention.h"

namespace drafthorse {

ggml_tensor* DeviceStageBuilder::linear(ggml_tensor* w, ggml_tensor* x, ggml_tensor* bias) {
  // A vector's product has one row, as a matrix's of one row.
  ggml_tensor* y = ggml_mul_mat(context(), w, x);
  return bias == nullptr ? y : ggml_add(context(), y, bias);
}

ggml_tensor* DeviceStageBuilder::heads_linear(ggml_tensor* w, ggml_tensor* x) {
  ggml_tensor* by_head = ggml_cont(context(), ggml_permute(context(), x, 0, 2, 1, 3));  // [columns, n, heads]
  ggml_tensor* y = ggml_mul_mat(context(), w, by_head);                                 // [rows, n, heads]
  return ggml_cont(context(), ggml_permute(context(), y, 0, 2, 1, 3));
}

ggml_tensor* DeviceStageBuilder::cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache,
                                                  int32_t layer, ggml_tensor* /*positions*/, ggml_tensor* kv_rows) {
  const CacheRows rows = write_cache(k, v, cache, layer, kv_rows);
  const int64_t extent = mask_->ne[0];
  const int64_t n = q->ne[2];
  const auto heads = [&](ggml_tensor* x, int64_t width) {  // [width, extent, n_head_kv]
    const size_t head_bytes = ggml_row_size(x->type, width);
    return ggml_view_3d(context(), x, width, extent, config().n_head_kv, x->nb[1], head_bytes, 0);
  };
  ggml_tensor* attended =
      masked_attention(context(), ggml_permute(context(), q, 0, 2, 1, 3), heads(rows.keys, config().head_dim),
                       heads(rows.values, config().value_dim), mask_, config().attention_scale);
  return ggml_cont_2d(context(), ggml_permute(context(), attended, 0, 2, 1, 3),
                      int64_t{config().value_dim} * config().n_head, n);
}

ggml_tensor* SplitStageBuilder::cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                                                 const KvCache& /*cache*/, int32_t /*layer*/,
                                                 ggml_tensor* /*positions*/, ggml_tensor* /*kv_rows*/) {
  const auto side_by_side = [&](ggml_tensor* x) { return ggml_cont_2d(context(), x, x->ne[0] * x->ne[1], x->ne[2]); };
  q_ = side_by_side(q);
  k_ = side_by_side(k);
  if (v != nullptr) v_ = side_by_side(v);
  return attended_;
}

ggml_tensor* DeviceStageBuilder::gated_ffn(ggml_tensor* x, ggml_tensor* gate, ggml_tensor* up, ggml_tensor* down) {
  return linear(down, ggml_swiglu_split(context(), linear(gate, x), linear(up, x)));
}

}  // namespace drafthorse
