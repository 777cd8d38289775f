#include "model/device_attention.h"

#include <algorithm>

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

void mark_seen(std::span<ggml_fp16_t> row, int32_t position, int32_t window) {
  const int32_t end = position + 1;
  const int32_t begin = window > 0 ? std::max(0, end - window) : 0;
  std::fill(row.begin() + begin, row.begin() + end, kSeen);
}

ggml_tensor* masked_attention(ggml_context* context, ggml_tensor* queries, ggml_tensor* keys, ggml_tensor* values,
                              ggml_tensor* mask, float scale) {
  // Blocks of a quantised cache cannot be turned, and few kernels multiply strided ones.
  const auto plain = [&](ggml_tensor* x) {
    return ggml_is_quantized(x->type) ? ggml_cast(context, x, GGML_TYPE_F32) : x;
  };
  ggml_tensor* scores = ggml_mul_mat(context, plain(keys), queries);
  sum_in_floats(scores);
  ggml_tensor* weights = ggml_soft_max_ext(context, scores, mask, scale, 0);
  ggml_tensor* turned = ggml_cont(context, ggml_transpose(context, plain(values)));
  return ggml_mul_mat(context, turned, weights);
}

}  // namespace drafthorse
