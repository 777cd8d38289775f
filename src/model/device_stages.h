// The stages of a pass on a device: what model.h promises, for a model whose dense weights, KV cache and activations
// lie in the device's memory.
//
// The host embeds tokens, routes and samples. So of a layer with experts its router's logits come to the host: the one
// time per such layer that the host waits for the device, but for its own part in attention. Everything else is queued.
//
// Attention may be left to the host, for passes over many sequences whose keys and values lie there: a layer is then
// cut in two, and its columns may go in parts, one of which the host attends to while the device is busy with another.
//
// In fixed mode every pass of up to fixed_window tokens is filled up to that width, and attention looks at the whole
// cache: kernels choose their order of sums by such shapes, so that a token's result then depends on its text alone.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "backend/device.h"
#include "io/expert_layout.h"
#include "model/config.h"
#include "model/expert_bank.h"
#include "model/family.h"
#include "model/kv_cache.h"
#include "model/mirrored_attention.h"
#include "model/router_probe.h"
#include "model/stage_graph.h"
#include "model/weights.h"

namespace drafthorse {

struct DeviceStageShape {
  int32_t columns = 0;       // tokens of the longest pass
  int32_t max_window = 0;    // tokens whose logits are made at once, at most
  int32_t fixed_window = 0;  // 0: not in fixed mode
  bool host_attention = false;
};

// Where a layer's results are wanted, each for `count` columns.
struct LayerResults {
  float* router_logits = nullptr;    // [n_expert, count]
  float* ffn_input = nullptr;        // [n_embd, count]; nullptr: not wanted
  std::vector<float*> probe_logits;  // by probe: [experts of its router, count]; only those at this layer are written
};

class DeviceStages {
 public:
  // All must outlive the stages. Takes no memory yet.
  DeviceStages(Device& device, const ModelConfig& config, const Family& family, const ModelWeights& weights,
               const ExpertLayout& layout, const KvCache& kv, const DeviceStageShape& shape);
  ~DeviceStages();
  DeviceStages(const DeviceStages&) = delete;
  DeviceStages& operator=(const DeviceStages&) = delete;

  // With attention on the host: the device attends for as many sequences as `mirror` has slots. Before plan().
  void set_mirror(MirroredAttention* mirror) { mirror_ = mirror; }
  // Finds out how much memory is needed. Again after probes are set. kUsage where the device lacks an operation.
  Status plan(std::span<const RouterProbe> probes);
  uint64_t bytes() const { return memory_->bytes() + scratch_bytes_; }
  uint64_t graph_bytes() const;   // of the host's memory
  uint64_t queued_bytes() const;  // likewise: what queued writes read from, at most
  Status allocate();
  // Copies to the device what probes have in the host's memory, once it holds its numbers.
  void upload_probes();

  // A pass begins over the tokens whose embeddings, positions and rows are given; their number is the pass's count.
  void begin(const float* embedded, std::span<const int32_t> positions, std::span<const int64_t> kv_rows);
  // residual -> residual; returns when what `results` asks for is there.
  void layer(LayerId layer, const LayerResults& results);
  // The same with attention on the host, columns [first, first + count) at a time:
  //   before   residual -> rows for the host, each of as many columns; v may be nullptr. There after a wait. Queued.
  //   after    what came of them, written by then, -> residual. Queued.
  //   finish   returns when what `results` asks for is there, for all columns.
  void before_attention(LayerId layer, int32_t first, int32_t count, float* q, float* k, float* v);
  // Between the two: the mirror's columns of the pass. Queued.
  void mirrored_attention(LayerId layer);
  // What the host attended to crosses the link; `attended` must stay until something queued later is waited for.
  // Queued.
  void write_attended(int32_t first, int32_t count, const float* attended);
  void after_attention(LayerId layer, int32_t first, int32_t count);
  void finish(LayerId layer, const LayerResults& results);
  // Columns [first, first + count) -> logits, [n_vocab, count] on the host.
  void head(int32_t first, int32_t count, float* logits);
  // The same for any columns.
  void head(std::span<const int32_t> columns, float* logits);

  // --- routed experts of the layer run last. Rows are results of (token, expert) pairs, [n_embd] each, numbered by the
  // caller: count * n_expert_used of them at most.
  // Rows [first_row, ..): a token's FFN input through the expert in a slot. Queued.
  void run_experts(const ExpertBank& bank, LayerId layer, std::span<const int32_t> token_of_row,
                   std::span<const int32_t> slot_of_row, int32_t first_row);
  // The same rows, computed on the host.
  void set_expert_rows(std::span<const float> rows, int32_t first_row);
  // residual += sum over ranks of weight * row, in the order of ranks. [token * n_expert_used + rank]
  void add_experts(std::span<const int32_t> row_of_route, std::span<const float> weight_of_route);

  bool fixed() const { return shape_.fixed_window > 0; }
  Device& device() const { return device_; }
  // Until all that is queued is done.
  void wait();

 private:
  using Graph = std::unique_ptr<StageGraph>;
  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };

  size_t graph_tensors() const;
  Graph new_graph() const { return std::make_unique<StageGraph>(graph_tensors()); }
  ggml_tensor* columns(const Graph& graph, ggml_tensor* of, int64_t first, int64_t count) const;   // of a matrix
  ggml_tensor* elements(const Graph& graph, ggml_tensor* of, int64_t first, int64_t count) const;  // of a vector
  Graph build_layer(LayerId layer, int32_t count, int32_t extent);
  Graph build_before(LayerId layer, int32_t first, int32_t count);
  Graph build_after(LayerId layer, int32_t first, int32_t count);
  Graph build_mirrored(LayerId layer);
  void place_stage(const Graph& graph, const LayerStage& stage, int32_t first) const;
  Graph build_head(int32_t first, int32_t count);
  Graph build_gathered_head(int32_t count);
  ggml_tensor* logits_of(const Graph& graph, ggml_tensor* residual) const;
  Graph build_experts(const ExpertBank& bank, LayerId layer, int32_t rows, int32_t first_row);
  Graph build_add(int32_t count);
  void place(const Graph& graph, ggml_tensor* tensor, const ggml_tensor* where, uint64_t offset) const;
  Status measure(const Graph& graph);
  void allocate_graph(const Graph& graph);
  void run_once(Graph graph);
  int32_t padded(int32_t count) const;
  int32_t extent_for(int32_t positions) const;
  // A copy of the data that lives until the next wait.
  template <typename T>
  void write(ggml_tensor* tensor, std::span<const T> data, uint64_t offset = 0);

  Device& device_;
  const ModelConfig& config_;
  const Family& family_;
  const ModelWeights& weights_;
  const ExpertLayout& layout_;
  const KvCache& kv_;
  DeviceStageShape shape_;
  std::vector<RouterProbe> probes_;  // all of whose tensors are on the device
  struct Uploaded {
    const ggml_tensor* from = nullptr;
    ggml_tensor* to = nullptr;
  };
  std::vector<Uploaded> uploaded_;
  MirroredAttention* mirror_ = nullptr;

  std::unique_ptr<ggml_context, ContextDeleter> context_;
  std::optional<DeviceArena> memory_;
  ggml_tensor* positions_ = nullptr;      // [columns]
  ggml_tensor* kv_rows_ = nullptr;        // [columns]
  ggml_tensor* mask_ = nullptr;           // [context * columns], used as [extent, count]
  ggml_tensor* residual_ = nullptr;       // [n_embd, columns]
  ggml_tensor* ffn_input_ = nullptr;      // [n_embd, columns]
  ggml_tensor* router_logits_ = nullptr;  // [n_expert, columns]
  ggml_tensor* logits_ = nullptr;         // [n_vocab, max_window]
  ggml_tensor* head_columns_ = nullptr;   // [max_window]
  // With attention on the host: [.., columns]
  ggml_tensor* q_ = nullptr;
  ggml_tensor* k_ = nullptr;
  ggml_tensor* v_ = nullptr;
  ggml_tensor* attended_ = nullptr;
  ggml_tensor* expert_rows_ = nullptr;    // [n_embd, columns * n_expert_used]
  ggml_tensor* row_tokens_ = nullptr;     // [columns * n_expert_used]
  ggml_tensor* row_slots_ = nullptr;      // [columns * n_expert_used]
  ggml_tensor* route_rows_ = nullptr;     // [columns * n_expert_used]
  ggml_tensor* route_weights_ = nullptr;  // [1, columns * n_expert_used]
  std::vector<ggml_tensor*> probe_logits_;

  ggml_gallocr_t scratch_ = nullptr;
  uint64_t scratch_bytes_ = 0;

  int32_t count_ = 0;                                  // tokens of the pass
  int32_t extent_ = 0;                                 // rows of the cache that its attention looks at
  std::map<std::pair<int32_t, int32_t>, Graph> kept_;  // by (layer, count), for kept_extent_
  int32_t kept_extent_ = 0;
  std::deque<std::vector<std::byte>> written_;  // what queued writes read from
  std::vector<Graph> queued_;                   // graphs that run once
  bool idle_ = true;                            // nothing is queued
};

}  // namespace drafthorse
