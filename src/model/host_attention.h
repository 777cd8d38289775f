// Attention on the host for a model whose other stages are on a device: keys and values lie in the host's memory, so
// that many sequences have room (SpecMoEOff, arXiv 2508.21706, section 3.2), and only queries, new keys and values, and
// what comes of them cross the link.
#pragma once

#include <ggml-alloc.h>

#include <cstdint>
#include <memory>

#include "backend/compute.h"
#include "backend/device.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/stage_graph.h"
#include "model/workspace.h"
#include "ops/attention.h"
#include "ops/linear.h"

namespace drafthorse {

class HostAttention {
 public:
  // For passes of up to workspace.shape().columns tokens. All must outlive this.
  static Result<std::unique_ptr<HostAttention>> create(const ModelConfig& config, Compute& compute,
                                                       const ops::NodeContext& nodes,
                                                       const ops::AttentionNode& attention, const KvCache& kv,
                                                       const Workspace& workspace);
  // Before anything is run: rows that cross the link lie where `device` copies them fastest.
  Status allocate(const Device& device);
  ~HostAttention();
  HostAttention(const HostAttention&) = delete;
  HostAttention& operator=(const HostAttention&) = delete;

  uint64_t bytes() const { return rows_.bytes() + scratch_bytes_ + attention_bytes_; }

  // Rows of floats by column.
  float* q(int32_t column) const { return at(q_, q_width_, column); }                        // [head_dim * n_head]
  float* k(int32_t column) const { return at(k_, k_width_, column); }                        // [head_dim * n_head_kv]
  float* v(int32_t column) const { return at(v_, v_width_, column); }                        // likewise, or none
  const float* attended(int32_t column) const { return at(attended_, out_width_, column); }  // [value_dim * n_head]
  bool has_values() const { return v_width_ > 0; }

  // Columns [first, first + count): k, v -> the cache's rows; q -> attended.
  void attend(LayerId layer, int32_t first, int32_t count);
  // k, v -> the cache's rows, and no more.
  void write(LayerId layer, int32_t first, int32_t count);

 private:
  using Graph = std::unique_ptr<StageGraph>;
  HostAttention(const ModelConfig& config, Compute& compute, const ops::NodeContext& nodes,
                const ops::AttentionNode& attention, const KvCache& kv, const Workspace& workspace);
  float* at(uint64_t part, int64_t width, int32_t column) const {
    return reinterpret_cast<float*>(rows_.data() + part) + width * column;
  }
  Graph build(LayerId layer, int32_t first, int32_t count, bool attends);
  void run(LayerId layer, int32_t first, int32_t count, bool attends);

  const ModelConfig& config_;
  Compute& compute_;
  const ops::NodeContext& nodes_;
  const ops::AttentionNode& attention_;
  const KvCache& kv_;
  const Workspace& workspace_;
  int64_t q_width_, k_width_, v_width_, out_width_;  // floats per column
  uint64_t q_ = 0, k_ = 0, v_ = 0, attended_ = 0;    // where in rows_
  DeviceBuffer rows_;
  ggml_gallocr_t scratch_ = nullptr;
  uint64_t scratch_bytes_ = 0;
  uint64_t attention_bytes_ = 0;
};

}  // namespace drafthorse
