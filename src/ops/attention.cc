#include "ops/attention.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "base/check.h"

namespace drafthorse::ops {
namespace {

constexpr int64_t kLeastWork = 262144;  // multiplications worth handing to another thread
constexpr int64_t kTile = 64;           // keys per tile, at positions that are multiples of it

void attention_node(ggml_tensor* destination, int, int, void* userdata) {
  const auto& node = *static_cast<const AttentionNode*>(userdata);
  const ggml_tensor* q = destination->src[0];
  const ggml_tensor* k = destination->src[1];
  const ggml_tensor* v = destination->src[2];
  const auto* positions = static_cast<const int32_t*>(destination->src[3]->data);
  const int64_t head_dim = node.shape.head_dim;
  const int64_t n = q->ne[2];
  const int64_t group = node.shape.n_head / node.shape.n_head_kv;
  const auto row_stride = static_cast<int64_t>(k->nb[1] / sizeof(ggml_fp16_t));
  // One (head, token) pair costs two passes over the keys; short texts are not worth handing out.
  const int64_t grain = std::max<int64_t>(1, kLeastWork / (2 * head_dim * (positions[n - 1] + 1)));
  // Heads outside, tokens inside: neighbouring pairs read the same keys.
  node.pool->run(node.shape.n_head * n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / n;
      const int64_t token = item % n;
      const auto* query =
          reinterpret_cast<const float*>(static_cast<const std::byte*>(q->data) + head * q->nb[1] + token * q->nb[2]);
      const int64_t kv_offset = head / group * head_dim;
      attend(query, static_cast<const ggml_fp16_t*>(k->data) + kv_offset,
             static_cast<const ggml_fp16_t*>(v->data) + kv_offset, row_stride, positions[token] + 1, head_dim,
             node.shape.scale, static_cast<float*>(destination->data) + token * destination->ne[0] + head * head_dim);
    }
  });
}

}  // namespace

void attend(const float* query, const ggml_fp16_t* keys, const ggml_fp16_t* values, int64_t row_stride, int64_t n_keys,
            int64_t head_dim, float scale, float* out) {
  const ggml_vec_dot_t vec_dot = ggml_get_type_traits_cpu(GGML_TYPE_F16)->vec_dot;
  std::array<ggml_fp16_t, kMaxHeadDim> query_f16;
  ggml_cpu_fp32_to_fp16(query, query_f16.data(), head_dim);
  std::array<float, kTile> scores;
  std::array<float, kMaxHeadDim> value;
  std::fill_n(out, head_dim, 0.0F);
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0;
  for (int64_t tile = 0; tile < n_keys; tile += kTile) {
    const int64_t count = std::min(kTile, n_keys - tile);
    float tile_maximum = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < count; ++i) {
      float score = 0;
      vec_dot(static_cast<int>(head_dim), &score, 0, keys + (tile + i) * row_stride, 0, query_f16.data(), 0, 1);
      scores[i] = score * scale;
      tile_maximum = std::max(tile_maximum, scores[i]);
    }
    if (tile_maximum > maximum) {
      const float shrink = std::exp(maximum - tile_maximum);  // 0 for the first tile
      sum *= shrink;
      for (int64_t d = 0; d < head_dim; ++d) out[d] *= shrink;
      maximum = tile_maximum;
    }
    for (int64_t i = 0; i < count; ++i) {
      const float weight = std::exp(scores[i] - maximum);
      sum += weight;
      ggml_cpu_fp16_to_fp32(values + (tile + i) * row_stride, value.data(), head_dim);
      for (int64_t d = 0; d < head_dim; ++d) out[d] += weight * value[d];
    }
  }
  const float inverse = 1.0F / sum;
  for (int64_t d = 0; d < head_dim; ++d) out[d] *= inverse;
}

ggml_tensor* attention(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, ggml_tensor* positions,
                       const AttentionNode& node) {
  const AttentionShape& shape = node.shape;
  CHECK(shape.head_dim <= kMaxHeadDim && shape.n_head % shape.n_head_kv == 0);
  CHECK(q->ne[0] == shape.head_dim && q->ne[1] == shape.n_head && q->type == GGML_TYPE_F32);
  CHECK(k->ne[0] == shape.head_dim * shape.n_head_kv && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16);
  CHECK(v->ne[0] == k->ne[0] && v->nb[1] == k->nb[1]);
  ggml_tensor* args[] = {q, k, v, positions};
  return ggml_custom_4d(context, GGML_TYPE_F32, shape.head_dim * shape.n_head, q->ne[2], 1, 1, args, 4, attention_node,
                        1, const_cast<AttentionNode*>(&node));
}

}  // namespace drafthorse::ops
