#include "model/kv_cache.h"

#include <fmt/format.h>

#include "base/units.h"

namespace drafthorse {
namespace {

uint64_t row_bytes(const ModelConfig& config, ggml_type type) {
  return ggml_row_size(type, int64_t{config.head_dim} * config.n_head_kv);
}

uint64_t tensor_bytes(const ModelConfig& config, const KvShape& shape) {
  return align_up(
      row_bytes(config, shape.type) * static_cast<uint64_t>(shape.context) * static_cast<uint64_t>(shape.sequences),
      kSmallPage);
}

int cached_tensors(const ModelConfig& config) { return config.n_layer * (config.is_latent() ? 1 : 2); }

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

uint64_t KvCache::position_bytes(const ModelConfig& config, ggml_type type) {
  return row_bytes(config, type) * static_cast<uint64_t>(cached_tensors(config));
}

uint64_t KvCache::sequence_overhead_bytes(const ModelConfig& config) {
  return 2 * kSmallPage * static_cast<uint64_t>(cached_tensors(config));
}

Result<KvCache> KvCache::reserve(const ModelConfig& config, const KvShape& shape) {
  CHECK(config.is_latent() || config.value_dim == config.head_dim);
  CHECK(shape.context > 0 && shape.sequences > 0);
  if (config.head_dim % ggml_blck_size(shape.type) != 0) {
    return usage_error(fmt::format("keys of {} elements per head cannot be cached as {}: choose f16", config.head_dim,
                                   ggml_type_name(shape.type)));
  }
  KvCache cache;
  cache.shape_ = shape;
  cache.lengths_.resize(static_cast<size_t>(shape.sequences));
  const auto layers = static_cast<size_t>(config.n_layer);
  cache.ggml_context_.reset(ggml_init({ggml_tensor_overhead() * (2 * layers + 1), nullptr, true}));
  const uint64_t bytes = tensor_bytes(config, shape) * static_cast<uint64_t>(cached_tensors(config));
  if (shape.device != nullptr) {
    CHECK(shape.sequences == 1);
    cache.memory_.emplace(*shape.device);
  } else {
    // One sequence's rows are touched front to back and stay; those of many come and go.
    ASSIGN_OR_RETURN(cache.buffer_, DeviceBuffer::reserve(bytes, shape.sequences == 1 ? Pages::kHuge : Pages::kSmall));
  }
  uint64_t offset = 0;
  for (size_t layer = 0; layer < layers; ++layer) {
    for (auto* tensors : {&cache.keys_, &cache.values_}) {
      if (tensors == &cache.values_ && config.is_latent()) continue;
      ggml_tensor* tensor =
          ggml_new_tensor_2d(cache.ggml_context_.get(), shape.type, int64_t{config.head_dim} * config.n_head_kv,
                             cache.memory_ ? cache.spare_row() + 1 : int64_t{shape.context} * shape.sequences);
      tensors->push_back(tensor);
      if (cache.memory_) {
        cache.memory_->add(tensor);
        continue;
      }
      cache.buffer_.place(tensor, offset);
      offset += tensor_bytes(config, shape);
    }
  }
  return cache;
}

void KvCache::extend(int32_t count, int32_t sequence) {
  CHECK(count >= 0 && lengths_[sequence] + count <= shape_.context);
  lengths_[sequence] += count;
}

void KvCache::truncate(int32_t length, int32_t sequence) {
  CHECK(length >= 0 && length <= lengths_[sequence]);
  lengths_[sequence] = length;
}

void KvCache::release(int32_t sequence) {
  lengths_[sequence] = 0;
  if (memory_) return;
  for (const auto* tensors : {&keys_, &values_}) {
    for (const ggml_tensor* tensor : *tensors) {
      const auto start = static_cast<uint64_t>(static_cast<const std::byte*>(tensor->data) - buffer_.data());
      buffer_.give_back(start + static_cast<uint64_t>(first_row(sequence)) * tensor->nb[1],
                        static_cast<uint64_t>(shape_.context) * tensor->nb[1]);
    }
  }
}

std::vector<std::byte> KvCache::copy_rows(int32_t first, int32_t count) const {
  CHECK(first >= 0 && count >= 0 && first + count <= shape_.context);
  if (shape_.device != nullptr) shape_.device->wait();
  std::vector<std::byte> rows;
  for (const auto* tensors : {&keys_, &values_}) {
    for (const ggml_tensor* tensor : *tensors) {
      const size_t bytes = static_cast<size_t>(count) * tensor->nb[1];
      rows.resize(rows.size() + bytes);
      ggml_backend_tensor_get(tensor, rows.data() + rows.size() - bytes, static_cast<size_t>(first) * tensor->nb[1],
                              bytes);
    }
  }
  return rows;
}

void KvCache::restore_rows(int32_t first, std::span<const std::byte> rows) {
  size_t row_bytes = 0;
  for (const auto* tensors : {&keys_, &values_}) {
    for (const ggml_tensor* tensor : *tensors) row_bytes += tensor->nb[1];
  }
  if (shape_.device != nullptr) shape_.device->wait();
  const size_t count = rows.size() / row_bytes;
  CHECK(count * row_bytes == rows.size() && static_cast<size_t>(first) + count <= static_cast<size_t>(shape_.context));
  for (const auto* tensors : {&keys_, &values_}) {
    for (ggml_tensor* tensor : *tensors) {
      const size_t bytes = count * tensor->nb[1];
      ggml_backend_tensor_set(tensor, rows.data(), static_cast<size_t>(first) * tensor->nb[1], bytes);
      rows = rows.subspan(bytes);
    }
  }
}

}  // namespace drafthorse
