// Keys and values of one sequence or of many, a row per position and layer. In latent attention values are the first
// elements of the keys' rows and take no memory of their own.
//
// Each sequence has a range of rows of its own, as long as the context, in address space that is only reserved: memory
// comes with the rows that are written, page by page, and goes back when a sequence is released. So what the system
// calls pages serves as the page table, and kernels see plain strides.
//
// Rows at and beyond length() are garbage that the next window overwrites: truncation is forgetting, and costs
// nothing. The engine's thread owns it.
//
// On a device it holds one sequence, and one row more, for tokens that only fill a window up. Its memory is taken by
// allocate().
#pragma once

#include <ggml.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/compute.h"
#include "backend/device.h"
#include "model/config.h"

namespace drafthorse {

// Why a model like `draft` cannot work on the KV cache of one like `target`, as a clause about the draft; empty where
// the shapes allow it. Whether the rows mean the same to both only their acceptance tells.
std::string why_not_share_kv(const ModelConfig& target, const ModelConfig& draft);

struct KvShape {
  int32_t context = 0;  // positions per sequence
  int32_t sequences = 1;
  ggml_type type = GGML_TYPE_F16;  // or Q8_0, where a head's elements are whole blocks of it
  Device* device = nullptr;        // must outlive the cache; nullptr: in the host's memory
};

// On a device attention looks at whole multiples of so many rows.
inline constexpr int32_t kDeviceRows = 256;

class KvCache {
 public:
  // kUsage where the type does not fit the heads.
  static Result<KvCache> reserve(const ModelConfig& config, const KvShape& shape);
  KvCache() = default;
  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;

  // Of one position, all layers.
  static uint64_t position_bytes(const ModelConfig& config, ggml_type type);
  // What a sequence takes beyond its rows, at most: they begin and end within pages.
  static uint64_t sequence_overhead_bytes(const ModelConfig& config);

  const KvShape& shape() const { return shape_; }
  int32_t length(int32_t sequence = 0) const { return lengths_[sequence]; }  // positions that hold committed tokens
  int32_t context() const { return shape_.context; }                         // positions there is room for, of each
  uint64_t bytes() const { return memory_ ? memory_->bytes() : buffer_.bytes(); }  // with every row written
  Device* device() const { return shape_.device; }
  // Takes a device's memory; nothing where there is none.
  Status allocate() { return memory_ ? memory_->allocate("keys and values") : Status(); }
  // On a device: rows that attention may look at, whole steps of kDeviceRows, and the one for what only fills up.
  int32_t device_rows() const { return (shape_.context + kDeviceRows - 1) / kDeviceRows * kDeviceRows; }
  int64_t spare_row() const { return device_rows(); }

  int64_t first_row(int32_t sequence) const { return int64_t{sequence} * shape_.context; }
  int32_t tensors() const { return static_cast<int32_t>(keys_.size() + values_.size()); }  // of the same size

  ggml_tensor* keys(int32_t layer) const { return keys_[layer]; }      // [head_dim * n_head_kv, context * sequences]
  ggml_tensor* values(int32_t layer) const { return values_[layer]; }  // the same; there is none in latent attention

  // The window at [length, length + count) has been written.
  void extend(int32_t count, int32_t sequence = 0);
  // Forgets positions from `length` on. `length` is at most the present one.
  void truncate(int32_t length, int32_t sequence = 0);
  // Forgets the sequence and gives its memory back, but for pages that its neighbours share.
  void release(int32_t sequence);

  // The bytes of the first sequence's rows [first, first + count), all layers; and back to where they were: for a pass
  // that borrows the rows.
  std::vector<std::byte> copy_rows(int32_t first, int32_t count) const;
  void restore_rows(int32_t first, std::span<const std::byte> rows);

 private:
  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  std::unique_ptr<ggml_context, ContextDeleter> ggml_context_;
  DeviceBuffer buffer_;
  std::optional<DeviceArena> memory_;  // instead, on a device
  std::vector<ggml_tensor*> keys_;
  std::vector<ggml_tensor*> values_;
  std::vector<int32_t> lengths_;  // by sequence
  KvShape shape_;
};

}  // namespace drafthorse
