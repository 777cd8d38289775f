// Attention on a device for some of the sequences whose keys and values are in the host's memory: as many as have room
// there (SpecMoEOff, arXiv 2508.21706, section 3.3: the draft's attention split between device and CPU).
//
// The host's KV cache holds everything; the device has copies of some sequences' rows, a slot of `rows` positions for
// each. So a sequence comes to the device by a copy and leaves it by being forgotten, and the split moves by itself: a
// sequence that outgrows its slot, or that ended, makes room for another. Passes that a sequence has more than one
// token in are the host's, whose rows are copied afterwards.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/device.h"
#include "base/ids.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/stage_graph.h"

namespace drafthorse {

// A pass's column: the token of a sequence, and where it is in it.
struct SequenceColumn {
  int32_t sequence = 0;
  int32_t position = 0;
};

class MirroredAttention {
 public:
  // All must outlive this. rows: a multiple of kDeviceRows. `host` is of F16. Takes no memory yet.
  MirroredAttention(Device& device, const ModelConfig& config, const KvCache& host, int32_t slots, int32_t rows);

  // Of the device's memory, for a slot: its rows, and what attention to them needs meanwhile.
  static uint64_t slot_bytes(const ModelConfig& config, int32_t rows);
  uint64_t bytes() const { return memory_.bytes(); }
  Status allocate() { return memory_.allocate("keys and values of texts"); }
  int32_t slots() const { return static_cast<int32_t>(held_.size()); }

  // A pass begins, the host's cache being as long as it was before it. Which columns the device attends to; the others
  // are the host's. Queues copies of what the device lacks.
  const std::vector<bool>& begin(std::span<const SequenceColumn> columns);
  // Any of the pass under way.
  bool any() const { return !columns_.empty(); }
  int64_t attended() const { return attended_; }  // columns, of all passes
  bool holds(int32_t sequence) const { return slot_of(sequence) >= 0; }

  // Adds to the graph: the device's columns of k, v -> the slots; of q -> attended. All are [.., columns] on the
  // device; v is nullptr where values are the keys' beginnings.
  void build(StageGraph& graph, LayerId layer, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, ggml_tensor* attended);
  // For the memory of the largest such graph.
  void pretend_all();

 private:
  struct Slot {
    int32_t sequence = -1;
    int32_t valid = 0;  // rows that are as the host's
  };
  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  int32_t slot_of(int32_t sequence) const;
  int32_t admit(int32_t sequence);
  void copy_rows(int32_t slot, int32_t end);
  void write_indices();

  Device& device_;
  const ModelConfig& config_;
  const KvCache& host_;
  const int32_t rows_;
  std::vector<Slot> held_;
  std::unique_ptr<ggml_context, ContextDeleter> context_;
  DeviceArena memory_;
  std::vector<ggml_tensor*> keys_;         // by layer: [head_dim * n_head_kv, rows * slots]
  std::vector<ggml_tensor*> values_;       // likewise, or none
  ggml_tensor* column_of_slot_ = nullptr;  // [slots] I32
  ggml_tensor* slot_of_column_ = nullptr;  // [slots] I32, of the pass's n columns that are the device's
  ggml_tensor* source_ = nullptr;          // [slots] I32: these columns
  ggml_tensor* target_ = nullptr;          // [slots] I64: the same
  ggml_tensor* row_ = nullptr;             // [slots] I64: where their keys go
  ggml_tensor* mask_ = nullptr;            // [rows * slots] F16, used as [extent, 1, 1, used]

  // Of the pass under way.
  std::vector<bool> mirrored_;      // by column
  std::vector<int32_t> columns_;    // that are the device's
  std::vector<int32_t> slots_;      // theirs
  std::vector<int32_t> positions_;  // theirs
  int32_t used_ = 0;                // slots up to the last one of them
  int32_t extent_ = 0;              // rows looked at
  int64_t attended_ = 0;
  // What queued writes read from.
  std::vector<int32_t> column_of_slot_data_;
  std::vector<int64_t> target_data_;
  std::vector<int64_t> row_data_;
  std::vector<ggml_fp16_t> mask_data_;
};

}  // namespace drafthorse
