#include "model/host_stage_builder.h"

namespace drafthorse {

ggml_tensor* HostStageBuilder::quantized(ggml_tensor* x, ggml_type weight_type) {
  const ops::ActivationFormat format = ops::activation_format(weight_type);
  for (const Quantized& known : quantized_) {
    if (known.x == x && known.format == format) return known.result;
  }
  ggml_tensor* result = ops::quantize(context(), nodes_, x, weight_type);
  quantized_.push_back({x, format, result});
  return result;
}

ggml_tensor* HostStageBuilder::linear(ggml_tensor* w, ggml_tensor* x, ggml_tensor* bias) {
  ggml_tensor* y = ops::linear(context(), nodes_, w, quantized(x, w->type));
  return bias == nullptr ? y : ggml_add(context(), y, bias);
}

ggml_tensor* HostStageBuilder::heads_linear(ggml_tensor* w, ggml_tensor* x) {
  const int64_t heads = x->ne[1];
  const int64_t n = x->ne[2];
  ggml_tensor* flat = ggml_cont_2d(context(), x, x->ne[0], heads * n);
  return ops::heads_linear(context(), nodes_, w, quantized(flat, w->type));
}

ggml_tensor* HostStageBuilder::cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache,
                                                int32_t layer, ggml_tensor* positions, ggml_tensor* kv_rows) {
  const CacheRows rows = write_cache(k, v, cache, layer, kv_rows);
  return ops::attention(context(), q, rows.keys, rows.values, positions, kv_rows, attention_);
}

ggml_tensor* HostStageBuilder::gated_ffn(ggml_tensor* x, ggml_tensor* gate, ggml_tensor* up, ggml_tensor* down) {
  return linear(down, ops::gated_linear(context(), nodes_, gate, up, quantized(x, gate->type)));
}

}  // namespace drafthorse
