#include "model/kv_cache.h"

#include "base/units.h"

namespace drafthorse {
namespace {

constexpr uint64_t kRowAlignment = 64;

uint64_t tensor_bytes(const ModelConfig& config, int32_t context) {
  return align_up(
      ggml_row_size(GGML_TYPE_F16, int64_t{config.head_dim} * config.n_head_kv) * static_cast<uint64_t>(context),
      kRowAlignment);
}

int tensors_per_layer(const ModelConfig& config) { return config.is_latent() ? 1 : 2; }

}  // namespace

uint64_t KvCache::bytes_needed(const ModelConfig& config, int32_t context) {
  const auto tensors = static_cast<uint64_t>(config.n_layer * tensors_per_layer(config));
  return align_up(tensors * tensor_bytes(config, context), kHugePage);
}

Result<KvCache> KvCache::reserve(const ModelConfig& config, int32_t context) {
  CHECK(config.is_latent() || config.value_dim == config.head_dim);
  KvCache cache;
  cache.context_ = context;
  const auto layers = static_cast<size_t>(config.n_layer);
  cache.ggml_context_.reset(ggml_init({ggml_tensor_overhead() * (2 * layers + 1), nullptr, true}));
  ASSIGN_OR_RETURN(cache.buffer_, DeviceBuffer::reserve(bytes_needed(config, context)));
  uint64_t offset = 0;
  for (size_t layer = 0; layer < layers; ++layer) {
    for (auto* tensors : {&cache.keys_, &cache.values_}) {
      if (tensors == &cache.values_ && config.is_latent()) continue;
      ggml_tensor* tensor = ggml_new_tensor_2d(cache.ggml_context_.get(), GGML_TYPE_F16,
                                               int64_t{config.head_dim} * config.n_head_kv, context);
      cache.buffer_.place(tensor, offset);
      tensors->push_back(tensor);
      offset += tensor_bytes(config, context);
    }
  }
  return cache;
}

void KvCache::extend(int32_t count) {
  CHECK(count >= 0 && length_ + count <= context_);
  length_ += count;
}

void KvCache::truncate(int32_t length) {
  CHECK(length >= 0 && length <= length_);
  length_ = length;
}

}  // namespace drafthorse
