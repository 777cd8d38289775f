// One pass of a model over a window of tokens: layer by layer, experts as they arrive.
//
// Ways through a layer's experts, with the same bits:
//   a window (up to the workspace's max_window tokens): all demanded at once, computed in arrival order, residents
//   first;
//     each (token, expert) pair's output is kept in a row of its own and added to its token when all are there
//   a batch that reads: one by one, what has arrived first and what was there while the next is read; outputs kept
//   likewise a longer run of tokens (prefill), and a batch with more pairs than rows (Workspace::output_rows): one by
//   one in the
//     order of their ids, each added as soon as it is computed, while the next ones are read
// A layer's experts are read once for all tokens.
//
// A model on a device computes its experts there (device_experts.h), where windows and long runs differ little.
//
// run() is for one sequence, run_batch() for many; with a device the latter wants attention on the host.
//
// The KV cache holds the window's keys and values afterwards, its length extended by them; a caller that rejects some
// truncates it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/trace.h"
#include "expert/cache.h"
#include "expert/turn_order.h"
#include "forward/device_experts.h"
#include "forward/pass_observer.h"
#include "model/model.h"
#include "model/routing.h"

namespace drafthorse {

// What one pass took and touched; for the depth policy and the statistics.
struct PassStats {
  int64_t duration_ns = 0;
  int64_t stall_ns = 0;  // of these, waiting for experts with nothing to compute
  int64_t stage_ns = 0;  // and stages up to the routers, attention included
  // For a window: how many (layer, expert) pairs its first m tokens alone would have found missing.
  std::vector<int64_t> missing_by_prefix;  // [window], index m - 1; empty for a dense model
};

// A sequence's part in a pass over several, and how many of its last tokens' logits are wanted.
struct BatchRun {
  SequenceRun run;
  int32_t logits_wanted = 0;
};

// Whether a pass reads the next layer's experts while it computes one's.
enum class ReadAhead {
  kByUse,   // those that so many tokens are likely to use
  kAlways,  // all of them
  kNever,
};

// Slots that a pass needs to read experts while it computes others: the one computed and those read ahead. More slots
// keep what will be used again.
int stream_slots(const ExpertLayout& layout);

class ForwardPass {
 public:
  // `cache` is nullptr for a dense model. All must outlive the pass; `interrupted` may be nullptr.
  ForwardPass(Model& model, ExpertCache* cache, const Clock& clock, const std::atomic<bool>* interrupted);

  // Of a MoE model on a device, before anything is run; must outlive the pass.
  void set_device_experts(DeviceExperts* experts) { device_experts_ = experts; }
  DeviceExperts* device_experts() const { return device_experts_; }    // nullptr: experts are computed on the host
  void set_trace(Trace* trace) { trace_ = trace; }                     // must outlive the pass; nullptr: none
  void set_observer(PassObserver* observer) { observer_ = observer; }  // likewise
  // Called wherever the pass looks after its own reads, at every stage boundary: so that another model's go on while
  // this one computes.
  void set_background(std::function<void()> background) { background_ = std::move(background); }

  // Runs `tokens` from position kv.length() on and extends the KV cache by them. Logits of the last `logits_wanted`
  // tokens (at most max_window) are in workspace.logits, the first wanted one in column 0.
  // progress(tokens done, tokens in all) is called between layers of long runs.
  // On error (a read that stays broken, kInterrupted) the KV cache's length is what it was.
  Status run(std::span<const int32_t> tokens, int32_t logits_wanted, const std::function<void(double)>& progress = {});

  // The runs side by side, at most workspace.columns tokens in all, each going on where its sequence's KV cache ends
  // and extending it. The logits wanted are numbered from 0 on, run by run, and computed by head(). No observer is
  // told. On error the KV caches' lengths are what they were.
  Status run_batch(std::span<const BatchRun> runs);
  // logits(0), .. logits(count - 1) become those numbered from `first` on, of the last run_batch(). count is at most
  // max_window.
  void head(int32_t first, int32_t count);
  void set_read_ahead(ReadAhead read_ahead) { read_ahead_ = read_ahead; }

  // One token, routed among the experts that are resident: an approximation that waits for nothing and leaves the
  // expert cache as it is. Its logits are in column 0, the KV cache is extended by its row. For a MoE model.
  Status run_among_residents(int32_t token);

  // Of the last run (of a long one its last part): how many distinct experts, over all layers, windows of 1, 2, .. most
  // tokens used on average. As long as the run allows; empty for a dense model.
  std::vector<double> distinct_by_window(int32_t most) const;

  std::span<const float> logits(int32_t column) const;  // [n_vocab]
  // Of the last run (of a long one its last part), of a layer with experts: those of its token `token`, by id.
  std::span<const RoutedExpert> routed(LayerId layer, int32_t token) const;
  const PassStats& stats() const { return stats_; }
  Model& model() { return model_; }
  const Model& model() const { return model_; }

  // The first `count` tokens of the last window (run() of up to max_window tokens) became part of the text.
  void record_committed(int32_t count) { record(count, true); }
  // The last run() was a prompt, or a run_batch(): what it used is what its continuation may use.
  void record_prompt() { record(chunk_tokens_, false); }

 private:
  Status run_chunk(std::span<const int32_t> tokens, int32_t logits_wanted, const std::function<void(double)>& progress);
  void record(int32_t count, bool window);
  PassObserver* observer() const { return is_batch_ ? nullptr : observer_; }  // of the pass under way, or none
  Status run_layers(int32_t count, const std::function<void(double)>& progress);
  Status stages(LayerId layer, int32_t count);
  void look_after_reads();
  void route(LayerId layer, int32_t count);
  void note_prefixes(LayerId layer, int32_t count);
  void tell_routed(LayerId layer);
  bool is_there(ExpertKey key) const;  // in the fastest tier there is
  void abandon();

  // --- experts (pass_experts.cc)
  // Those routed to, the way that suits so many tokens.
  Status experts(LayerId layer, int32_t count);
  Status experts_by_arrival(LayerId layer, int32_t count);
  Status experts_in_order(LayerId layer, int32_t count);
  Status experts_on_device(LayerId layer, int32_t count);
  void experts_among_residents(LayerId layer);
  void clear_sum(int32_t count);  // of the experts' outputs, for the first `count` tokens
  void add_sum(int32_t count);    // to the residual
  void give_rows();
  void add_rows(LayerId layer, int32_t count);
  // Computes work_, whose rows read the tokens given, into the same rows of `output`.
  void compute(LayerId layer, std::span<const int32_t> token_of_row, float* output);
  void compute_group(LayerId layer, std::span<const ExpertId> experts);
  void compute_expert(LayerId layer, ExpertId expert, bool keeps_rows);
  std::optional<LayerId> next_moe_layer(LayerId layer) const;
  void foresee_next_layer(LayerId layer, int32_t count);
  void read_ahead(LayerId layer, std::span<const ExpertId> still);

  Model& model_;
  ExpertCache* cache_;
  DeviceExperts* device_experts_ = nullptr;
  const Clock& clock_;
  const std::atomic<bool>* interrupted_;
  Trace* trace_ = nullptr;
  PassObserver* observer_ = nullptr;
  std::function<void()> background_;
  PassStats stats_;
  int32_t chunk_tokens_ = 0;  // tokens that routes_ holds
  ReadAhead read_ahead_ = ReadAhead::kByUse;
  bool is_batch_ = false;  // the pass under way is run_batch()'s
  // What is read ahead of the experts being computed, in this order, and how much of it at once.
  std::vector<ExpertKey> ahead_;
  uint64_t ahead_bytes_ = 0;
  uint64_t slot_bytes_ = 0;  // of an expert in RAM
  int64_t stage_ns_ = 0;     // that the last layer took up to its router, as the next one will

  std::vector<std::vector<RoutedExpert>> routes_;  // by layer: [tokens * n_expert_used]
  std::vector<std::vector<int32_t>> tokens_of_;    // by expert: tokens of the present layer routed to it
  std::vector<ExpertId> union_;                    // experts with tokens, by id
  TurnOrder turn_;                                 // the same, where they are computed one by one
  std::vector<int32_t> first_row_of_;              // by expert, its first of token_of_row_
  std::vector<int32_t> token_of_row_;
  std::vector<ops::ExpertWork> work_;
  std::vector<ExpertId> used_;  // of the present layer, by token: for the observer
};

}  // namespace drafthorse
