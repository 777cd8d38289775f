// The engine: models loaded within a memory budget, ready to generate. What apps see.
//
// Engine::open() reads and checks the files, plans the memory and, if the budget allows it, loads what stays
// resident. A Session (session.h) then generates. One thread uses an engine; interrupt() may be called from any
// thread or a signal handler, and EngineOptions::interrupt set from there while it still loads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/compute.h"
#include "backend/device.h"
#include "base/clock.h"
#include "base/ledger.h"
#include "base/status.h"
#include "base/trace.h"
#include "base/units.h"
#include "draft/drafter.h"
#include "engine/device_options.h"
#include "engine/schedule_link.h"
#include "expert/cache.h"
#include "forward/forward_pass.h"
#include "io/gguf_index.h"
#include "io/read_queue.h"
#include "model/model.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "plan/batch_depth.h"
#include "plan/memory_plan.h"

namespace drafthorse {

inline constexpr int32_t kMaxDraftDepth = 64;
inline constexpr int32_t kMaxAutoDepth = 64;
// The same without a draft model: memory for so many logits is taken from the experts even where nothing is drafted.
inline constexpr int32_t kMaxOwnAutoDepth = 32;
inline constexpr std::string_view kDefaultDrafter = "auto";
// The names that EngineOptions::drafter takes.
//   auto       with a draft model that and ngram, else resident and ngram: per step, by what they bring
//   model      the draft model
//   shared-kv  the draft model, reading the target's KV cache: the same model at fewer bits
//   ngram      what followed the last time the text ended as it ends now
//   resident   the target itself with the experts that are in memory
//   none
std::vector<std::string> drafter_names();

// Prompt positions at which draft and target are compared before anything is generated.
inline constexpr int32_t kScoredPositions = 24;

// Heap growth, thread stacks and library pages touched after the plan is made: booked with the process.
inline constexpr uint64_t kProcessReserve = 24 * kMiB;

using QueueFactory = std::function<Result<std::unique_ptr<ReadQueue>>(const FileSet& files)>;

// How a batch reads experts.
//   auto     ahead what the tokens of an iteration are likely to use, else on demand
//   stream   ahead, all of them
//   cache    on demand, what was used is kept
//   layered  on demand, one layer after the other, nothing is kept on purpose: to compare with
struct BatchRegime {
  std::string_view name;
  std::string_view eviction;  // eviction.h; where the CPU computes
  ReadAhead read_ahead;
};
const BatchRegime* find_batch_regime(std::string_view name);  // nullptr for an unknown name
std::vector<std::string> batch_regime_names();
std::vector<std::string> kv_type_names();

// Room for a batch (batch.h) instead of a session.
inline constexpr int32_t kMostSequences = 512;
inline constexpr int32_t kMostBatchDepth = 10;  // where no depth is asked for
struct BatchOptions {
  int32_t sequences = 0;       // at once, at most; 0: as many as memory allows, up to kMostSequences
  int32_t typical_tokens = 0;  // of a request, prompt and answer: what memory is planned by; 0: half the context
  int64_t requests = 0;        // in all, if known: no more room is made than they need
  std::string regime = "auto";
  std::optional<BatchCosts> costs{};  // a profile's: the depth is chosen by them; nullopt: by assumed ones
};

struct EngineOptions {
  std::string target_path;
  std::string draft_path;  // empty: no draft model
  std::string drafter{kDefaultDrafter};
  bool keep_draft = false;             // also where its memory would serve better for experts
  std::optional<uint64_t> ram_bytes;   // default: what the machine and its cgroups leave, less a reserve
  std::optional<int32_t> context;      // tokens; default 4096. Lowered to what the model was trained for
  std::optional<int32_t> draft_depth;  // default: chosen while running
  SamplingOptions sampling;            // of sessions that do not bring a sampler of their own
  ScheduleOptions schedule;            // which experts are read ahead and which make room
  // Routers fitted to the pair, for predictors that use them. Default: where calibration puts them, if they are there
  // and fit; "none": not to be looked for. A file that is named must fit.
  std::string fitted_path;
  // For calibration.h, which is then all the engine is for: so many positions; 0: as many as suit the draft.
  std::optional<int32_t> calibration_positions;
  std::string io = "uring";  // or pread
  int threads = 0;           // 0: one per core
  // When it becomes true, loading or generating ends with kInterrupted. Must outlive the engine. Default: its own.
  std::atomic<bool>* interrupt = nullptr;
  std::string isa;                         // instruction set of the kernels; default: the best that the processor has
  Trace* trace = nullptr;                  // told what the target does; must outlive the engine
  QueueFactory queue_factory;              // for tests: replaces `io`
  std::optional<BatchOptions> batch;       // no session may use the engine then, only a Batch
  std::string kv_type = "f16";             // of cached keys and values: f16 or q8_0
  std::optional<int> expert_slots;         // for tests: exactly so many slots for the target, whatever fits
  std::optional<int> slots_without_draft;  // for tests: and so many once the draft has been given up; default: it stays
  DeviceOptions device;                    // what computes beside the CPU
  std::optional<int> device_slots;         // for tests: at most so many slots of each kind on the device for the target
};

// The names that EngineOptions::isa takes on this machine, slowest first; it takes "amx" beside them where the
// processor has that.
std::vector<std::string> instruction_set_names();

// phase: what is being done, in words; part: 0 to 1.
using LoadProgress = std::function<void(std::string_view phase, double part)>;

// A model and all that runs it.
struct LoadedModel {
  std::unique_ptr<FileSet> files;
  std::unique_ptr<ReadQueue> queue;
  std::unique_ptr<Model> model;
  std::unique_ptr<ExpertCache> cache;  // nullptr for a dense model
  std::unique_ptr<ExpertBank> bank;    // on a device, for a MoE model, with:
  std::unique_ptr<DeviceExperts> device_experts;
  std::unique_ptr<ForwardPass> pass;

  // Of its experts; nullptr for a dense model.
  FastTier* fastest_tier() const {
    return device_experts != nullptr ? static_cast<FastTier*>(&device_experts->tier()) : cache.get();
  }
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> open(const EngineOptions& options, const LoadProgress& progress);

  // The first half of open(): files read and checked, memory planned exactly as open() books it, nothing loaded.
  // ledger(), memory_plan(), target() and draft() tell the rest; no session may use such an engine.
  static Result<std::unique_ptr<Engine>> prepare(const EngineOptions& options);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Samples as options().sampling says.
  std::unique_ptr<Sampler> create_sampler() const;
  ForwardPass* draft_pass() const { return draft_.pass.get(); }  // nullptr without a draft model
  const std::vector<std::string>& drafter_names_in_use() const { return drafter_names_; }
  LoadedModel& target() { return target_; }
  const LoadedModel& target() const { return target_; }
  const LoadedModel& draft() const { return draft_; }  // its model is nullptr without a draft model
  std::span<const std::unique_ptr<Drafter>> drafters() const { return drafters_; }
  ScheduleLink& schedule() const { return *schedule_; }
  // The draft's layers that calibration fits at a time; 0 where the engine was not opened for it.
  int calibration_layers() const { return calibration_layers_; }
  const Clock& clock() const { return clock_; }
  const EngineOptions& options() const { return options_; }  // with defaults filled in
  int32_t context() const { return *options_.context; }
  bool drafts_with(std::string_view name) const;  // one of drafter_names(): it is asked, or may be

  // For a batch: memory that keys and values of its sequences may take together, and what one of `tokens` tokens,
  // prompt and answer, takes of it, the draft's included.
  uint64_t batch_bytes() const { return batch_bytes_; }
  uint64_t sequence_bytes(int64_t tokens) const;
  int32_t depth_limit() const { return draft_depth_limit(); }  // tokens a draft may have, at most

  const Device* device() const { return device_.get(); }  // nullptr: the CPU computes everything
  bool fixed_placement() const { return device_ != nullptr && options_.device.placement == "fixed"; }
  // Of the device's memory.
  const MemoryLedger& device_ledger() const { return device_ledger_; }
  uint64_t vram_budget_bytes() const { return *options_.device.vram_bytes; }

  const MemoryLedger& ledger() const { return ledger_; }
  const MemoryPlan& memory_plan() const { return plan_; }
  uint64_t ram_budget_bytes() const { return *options_.ram_bytes; }
  // Without the tokenizer's arrays. draft_index() only with a draft model.
  const GgufIndex& target_index() const { return *target_index_; }
  const GgufIndex& draft_index() const { return *draft_index_; }
  // Things a user should hear once: fallbacks taken, limits lowered.
  const std::vector<std::string>& notices() const { return notices_; }

  // Whether the draft model may be given up for more expert slots: it is `auto` that chose it and its depth, for one
  // text at a time, on the CPU, and nothing is recorded.
  bool can_release_draft() const { return slots_without_draft_ > plan_.slots && draft_.model != nullptr; }
  bool draft_released() const { return draft_index_ && draft_.model == nullptr; }
  // Slots the target would then have; 0 where it may not be.
  int slots_without_draft() const { return slots_without_draft_; }
  // Frees all that the draft model holds and makes slots of it; ledger() and memory_plan() say so. Its drafter stays in
  // its place and drafts nothing any more. Between two steps of a session. Only where can_release_draft().
  void release_draft();

  void interrupt() { *interrupted_ = true; }
  void clear_interrupt() { *interrupted_ = false; }
  bool interrupted() const { return *interrupted_; }

 private:
  explicit Engine(const EngineOptions& options)
      : options_(options), interrupted_(options.interrupt != nullptr ? options.interrupt : &own_interrupt_) {}
  Status check_interrupted() const;
  int32_t draft_depth_limit() const;
  Status read_files();
  Status choose_drafters();
  void create_drafters();
  Status open_device();
  Status create_models();
  FittedSource fitted_source() const;
  Status plan_calibration(MemoryNeeds& needs);
  ModelOptions target_shape() const;
  ModelOptions draft_shape() const;
  Status plan();
  Status plan_slots(MemoryNeeds& needs);
  Status plan_device();
  void mirror_draft();
  bool may_release_draft() const;
  void plan_release(MemoryNeeds needs, const MemoryLedger& of_draft);
  Status load(const LoadProgress& progress);
  Status open_queue(LoadedModel& loaded, const GgufIndex& index);
  Status create_cache(LoadedModel& loaded, int slots);
  Status create_device_experts(LoadedModel& loaded, std::string_view eviction, Placement placement);
  Status load_draft(const LoadProgress& progress);
  std::function<bool(uint64_t, uint64_t)> part_of(const LoadProgress& progress, std::string_view phase) const;
  int draft_slots() const;
  void note_once(const std::string& notice);

  EngineOptions options_;
  SteadyClock clock_;
  std::atomic<bool> own_interrupt_ = false;
  std::atomic<bool>* interrupted_;
  std::optional<GgufIndex> target_index_;
  std::optional<GgufIndex> draft_index_;
  ModelConfig target_config_;
  ModelConfig draft_config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Compute> compute_;
  std::unique_ptr<Device> device_;  // nullptr: none
  LoadedModel target_;
  LoadedModel draft_;
  std::vector<std::string> drafter_names_;  // those to use
  std::vector<std::unique_ptr<Drafter>> drafters_;
  std::unique_ptr<ScheduleLink> schedule_;
  MemoryLedger ledger_;
  MemoryLedger device_ledger_;
  MemoryPlan plan_;
  MemoryLedger ledger_without_draft_;
  int slots_without_draft_ = 0;
  int calibration_layers_ = 0;
  uint64_t batch_bytes_ = 0;
  std::vector<std::string> notices_;
};

}  // namespace drafthorse
