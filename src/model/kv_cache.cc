#include "model/kv_cache.h"

#include <fmt/format.h>

#include <cstring>

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

std::string why_not_share_kv(const ModelConfig& target, const ModelConfig& draft) {
  const auto differ = [](std::string_view what, auto of_target, auto of_draft) {
    return of_target == of_draft ? std::string()
                                 : fmt::format("it has {} {}, the target {}", of_draft, what, of_target);
  };
  for (const std::string& reason : {
           target.architecture == draft.architecture
               ? std::string()
               : fmt::format("its architecture is {}, the target's {}", draft.architecture, target.architecture),
           differ("layers", target.n_layer, draft.n_layer),
           differ("channels", target.n_embd, draft.n_embd),
           differ("attention heads", target.n_head, draft.n_head),
           differ("key/value heads", target.n_head_kv, draft.n_head_kv),
           differ("channels per head", target.head_dim, draft.head_dim),
           differ("channels per value", target.value_dim, draft.value_dim),
           differ("latent channels", target.latent.kv_rank, draft.latent.kv_rank),
           // Nothing cached, but a model with others is another model.
           differ("experts per layer", target.n_expert, draft.n_expert),
       }) {
    if (!reason.empty()) return reason;
  }
  if (!(target.rope == draft.rope)) return "it rotates keys otherwise than the target";
  return {};
}

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

std::vector<std::byte> KvCache::copy_rows(int32_t first, int32_t count) const {
  CHECK(first >= 0 && count >= 0 && first + count <= context_);
  std::vector<std::byte> rows;
  for (const auto* tensors : {&keys_, &values_}) {
    for (const ggml_tensor* tensor : *tensors) {
      const auto* begin = static_cast<const std::byte*>(tensor->data) + static_cast<size_t>(first) * tensor->nb[1];
      rows.insert(rows.end(), begin, begin + static_cast<size_t>(count) * tensor->nb[1]);
    }
  }
  return rows;
}

void KvCache::restore_rows(int32_t first, std::span<const std::byte> rows) {
  size_t row_bytes = 0;
  for (const auto* tensors : {&keys_, &values_}) {
    for (const ggml_tensor* tensor : *tensors) row_bytes += tensor->nb[1];
  }
  const size_t count = rows.size() / row_bytes;
  CHECK(count * row_bytes == rows.size() && static_cast<size_t>(first) + count <= static_cast<size_t>(context_));
  for (const auto* tensors : {&keys_, &values_}) {
    for (const ggml_tensor* tensor : *tensors) {
      const size_t bytes = count * tensor->nb[1];
      std::memcpy(static_cast<std::byte*>(tensor->data) + static_cast<size_t>(first) * tensor->nb[1], rows.data(),
                  bytes);
      rows = rows.subspan(bytes);
    }
  }
}

void KvCache::truncate(int32_t length) {
  CHECK(length >= 0 && length <= length_);
  length_ = length;
}

}  // namespace drafthorse
