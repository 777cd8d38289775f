// A model on the device: dense weights, KV cache, activations, and the stages of a pass.
//
// create() reserves and plans, so that memory is known before anything is read; load() reads the dense weights. The
// routed experts are the expert store's business: layout() says where they are, and whoever runs a pass computes them
// between attention() and the next layer. One thread uses a Model.
//
// On a device (ModelOptions::device) dense weights, KV cache and activations lie there, and load() takes its memory.
// What the stages below leave in the workspace is what the host needs: router logits, probes and logits. Experts are
// then DeviceStages' to compute, and to add to the residual there.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "backend/compute.h"
#include "base/ledger.h"
#include "io/expert_layout.h"
#include "io/gguf_index.h"
#include "model/config.h"
#include "model/device_stages.h"
#include "model/family.h"
#include "model/host_attention.h"
#include "model/kv_cache.h"
#include "model/router_probe.h"
#include "model/routing.h"
#include "model/stage_graph.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "ops/attention.h"
#include "ops/expert_ffn.h"
#include "ops/linear.h"

namespace drafthorse {

struct ModelOptions {
  int32_t context = 0;  // positions of a sequence in the KV cache
  WorkspaceShape workspace;
  ops::Isa isa = ops::best_isa();
  KvCache* kv = nullptr;  // another model's, to read and write instead of one of its own; must outlive the model
  int32_t sequences = 1;  // in the KV cache
  ggml_type kv_type = GGML_TYPE_F16;  // of keys and values
  Device* device = nullptr;           // computes all stages; must outlive the model; nullptr: the host
  // On a device: the KV cache is in the host's memory, which attends. Without it there is one sequence.
  bool host_attention = false;
  int32_t fixed_window = 0;  // on a device, see device_stages.h
};

// Neighbouring tokens of one sequence in a pass.
struct SequenceRun {
  std::span<const int32_t> tokens;
  int32_t sequence = 0;
};

class Model {
 public:
  static Result<std::unique_ptr<Model>> create(const GgufIndex& index, const ModelConfig& config, Compute& compute,
                                               const ModelOptions& options);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  Status load(const FileSet& files, ReadQueue& queue, const std::function<bool(uint64_t, uint64_t)>& progress);

  // Adds this model's parts, each tag after `prefix`: those in the host's memory, and those in the device's.
  void account(MemoryLedger& ledger, const std::string& prefix) const;
  void account_device(MemoryLedger& ledger, const std::string& prefix) const;

  // Probes every window from now on (not longer runs). Call before account() and before anything is run.
  Status set_probes(std::vector<RouterProbe> probes);
  const std::vector<RouterProbe>& probes() const { return probes_; }
  // Of the last pass over a window: [experts of the probe's router].
  std::span<const float> probe_logits(size_t probe, int32_t column) const;
  // nullptr in a layer without experts.
  ggml_tensor* router(LayerId layer) const { return weights_.layers[index(layer)].router; }
  NormWeights ffn_norm(LayerId layer) const {
    return {weights_.layers[index(layer)].ffn_norm, weights_.layers[index(layer)].ffn_norm_bias};
  }

  // With attention on the host: the device attends for as many sequences of up to `rows` positions as it has slots.
  // Before account_device(). kUsage where the device cannot.
  Status set_mirror(int32_t slots, int32_t rows);
  const MirroredAttention* mirror() const { return mirror_.get(); }  // nullptr: there is none

  // Keeps every layer's FFN input until the next layer's stage, of all runs: for calibration.h. Before account(), as
  // probes.
  Status tap_ffn_inputs();
  // Of the stage run last, column `column` of the pass's part: [n_embd].
  std::span<const float> ffn_input(int32_t column) const;

  const ModelConfig& config() const { return config_; }
  const ExpertLayout& layout() const { return layout_; }
  uint64_t dense_bytes() const { return dense_.bytes(); }
  KvCache& kv() { return options_.kv != nullptr ? *options_.kv : own_kv_; }
  const KvCache& kv() const { return options_.kv != nullptr ? *options_.kv : own_kv_; }
  bool shares_kv() const { return options_.kv != nullptr; }
  Workspace& workspace() { return workspace_; }
  const Workspace& workspace() const { return workspace_; }
  WorkerPool& pool() { return compute_.pool(); }
  const ops::Processor& processor() const { return nodes_.processor(); }
  DeviceStages* device_stages() const { return device_stages_.get(); }  // nullptr: computed on the host
  // Tokens that one call of attention() takes, at most.
  int32_t stage_tokens() const { return device_stages_ ? options_.workspace.columns : kStageTokens; }

  // --- the stages of a pass over `count` tokens, which are columns [0, count) of the workspace

  // The runs' tokens, side by side, -> workspace.residual. Each run goes on where its sequence's KV cache ends; runs of
  // one sequence follow each other.
  void embed(std::span<const SequenceRun> runs);

  // One layer up to its routed experts: residual -> residual, ffn_input, router_logits; writes the KV cache.
  // Columns [first, first + count), count at most stage_tokens(). On a device the residual and the FFN input stay
  // there.
  void attention(LayerId layer, int32_t first, int32_t count);

  // One token's router logits [n_expert] -> its experts, n_expert_used of them, in the order of their ids.
  void route(LayerId layer, std::span<const float> logits, std::span<RoutedExpert> out) const;
  // The numbers that route() ranks experts by, best first: logits, unless the family has a bias or groups.
  void ranking_scores(LayerId layer, std::span<const float> logits, std::vector<float>& out) const;

  // Computes `batch` (pointers into the workspace and to expert weights).
  void run_experts(const ops::ExpertBatch& batch) { ops::run_experts(batch, nodes_.processor()); }

  // Columns [first, first + count) of residual -> workspace.logits columns [0, count); count at most max_window.
  void head(int32_t first, int32_t count);
  // From now on head() counts these columns alone, which are in ascending order: column i is columns[i]. Until the next
  // embed().
  void keep_columns(std::span<const int32_t> columns);

  bool is_moe_layer(LayerId layer) const { return !layout_.layers[index(layer)].experts.empty(); }

 private:
  using Graph = StageGraph;
  Model(const ModelConfig& config, Compute& compute, const ModelOptions& options);
  std::unique_ptr<Graph> new_graph() const;
  std::unique_ptr<Graph> build_embed(int32_t count);
  std::unique_ptr<Graph> build_attention(LayerId layer, int32_t first, int32_t count);
  std::unique_ptr<Graph> build_head(int32_t first, int32_t count);
  void measure_scratch();
  size_t graph_tensors() const;  // of any graph, at most
  int32_t kept_window() const;   // graphs of windows up to this size are kept
  std::span<const float> router_bias(LayerId layer) const;
  void run(Graph& graph);
  void leave_on_host(WeightDeclarations& declarations);
  void attention_on_device(LayerId layer);
  void attend_in_turns(LayerId layer);
  void attend_on_both(LayerId layer);
  ggml_tensor* column_view(Graph& graph, ggml_type type, const void* base, int64_t width, int32_t first,
                           int32_t count) const;

  ModelConfig config_;
  Compute& compute_;
  ModelOptions options_;
  ops::NodeContext nodes_;
  ops::AttentionNode attention_;
  const Family* family_ = nullptr;
  ModelWeights weights_;
  DenseWeights dense_;
  ExpertLayout layout_;
  KvCache own_kv_;
  Workspace workspace_;
  std::vector<RouterProbe> probes_;
  std::vector<uint64_t> probe_offsets_;  // of each probe's logits, [experts, max_window]
  DeviceBuffer probe_logits_;
  DeviceBuffer tapped_;  // [n_embd, columns] where FFN inputs are asked for
  uint64_t scratch_bytes_ = 0;
  ggml_gallocr_t scratch_ = nullptr;
  std::map<std::pair<int32_t, int32_t>, std::unique_ptr<Graph>> attention_graphs_;  // by (layer, count), first = 0
  std::unique_ptr<HostAttention> host_attention_;
  std::unique_ptr<MirroredAttention> mirror_;
  std::unique_ptr<DeviceStages>
      device_stages_;                  // instead of all those graphs but the embedding's; is done before they go
  std::vector<bool> mirrored_;         // by column of the pass: the device attends
  int32_t columns_ = 0;                // of the pass
  std::vector<int32_t> kept_columns_;  // on a device; empty: all
};

}  // namespace drafthorse
