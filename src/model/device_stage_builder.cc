#include "model/device_stage_builder.h"

namespace drafthorse {
namespace {

// Sums in 32 bits: scores of large heads overflow 16.
void sum_in_floats(ggml_tensor* product) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // its successor is not there in older versions
  ggml_mul_mat_set_prec(product, GGML_PREC_F32);
#pragma GCC diagnostic pop
}

}  // namespace

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
  // Blocks of a quantised cache cannot be turned, and few kernels multiply strided ones.
  const auto plain = [&](ggml_tensor* x) {
    return ggml_is_quantized(x->type) ? ggml_cast(context(), x, GGML_TYPE_F32) : x;
  };
  ggml_tensor* scores =
      ggml_mul_mat(context(), plain(heads(rows.keys, config().head_dim)), ggml_permute(context(), q, 0, 2, 1, 3));
  sum_in_floats(scores);
  ggml_tensor* weights = ggml_soft_max_ext(context(), scores, mask_, config().attention_scale, 0);
  ggml_tensor* values = ggml_cont(context(), ggml_transpose(context(), plain(heads(rows.values, config().value_dim))));
  ggml_tensor* attended = ggml_mul_mat(context(), values, weights);  // [value_dim, n, n_head]
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
