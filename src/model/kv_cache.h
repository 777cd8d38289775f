// Keys and values of one sequence, F16, a row per position and layer. In latent attention values are the first elements
// of the keys' rows and take no memory of their own.
//
// Rows at and beyond length() are garbage that the next window overwrites: truncation is forgetting, and costs
// nothing. The engine's thread owns it.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/compute.h"
#include "model/config.h"

namespace drafthorse {

// Why a model like `draft` cannot work on the KV cache of one like `target`, as a clause about the draft; empty where
// the shapes allow it. Whether the rows mean the same to both only their acceptance tells.
std::string why_not_share_kv(const ModelConfig& target, const ModelConfig& draft);

class KvCache {
 public:
  // Room for `context` positions. Memory comes with use.
  static Result<KvCache> reserve(const ModelConfig& config, int32_t context);
  KvCache() = default;
  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;

  static uint64_t bytes_needed(const ModelConfig& config, int32_t context);

  int32_t length() const { return length_; }    // positions that hold committed tokens
  int32_t context() const { return context_; }  // positions there is room for
  uint64_t bytes() const { return buffer_.bytes(); }

  int32_t tensors() const { return static_cast<int32_t>(keys_.size() + values_.size()); }  // of the same size

  ggml_tensor* keys(int32_t layer) const { return keys_[layer]; }      // [head_dim * n_head_kv, context] F16
  ggml_tensor* values(int32_t layer) const { return values_[layer]; }  // the same; there is none in latent attention

  // The window at [length, length + count) has been written.
  void extend(int32_t count);
  // The bytes of rows [first, first + count), all layers; and back to where they were: for a pass that borrows the
  // rows.
  std::vector<std::byte> copy_rows(int32_t first, int32_t count) const;
  void restore_rows(int32_t first, std::span<const std::byte> rows);

  // Forgets positions from `length` on. `length` is at most the present one.
  void truncate(int32_t length);

 private:
  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  std::unique_ptr<ggml_context, ContextDeleter> ggml_context_;
  DeviceBuffer buffer_;
  std::vector<ggml_tensor*> keys_;
  std::vector<ggml_tensor*> values_;
  int32_t length_ = 0;
  int32_t context_ = 0;
};

}  // namespace drafthorse
