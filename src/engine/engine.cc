#include "engine/engine.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <thread>

#include "base/host_memory.h"
#include "base/units.h"
#include "draft/batch_drafter.h"
#include "draft/model_drafter.h"
#include "draft/ngram_drafter.h"
#include "draft/retired_drafter.h"
#include "draft/target_kv_drafter.h"
#include "engine/calibration.h"
#include "ops/isa.h"
#include "plan/batch_optimizer.h"

namespace drafthorse {
namespace {

constexpr int32_t kDefaultContext = 4096;
// The longest run of tokens a prefill works on at once: each expert is read once for all of them.
constexpr int32_t kPrefillTokens = 2048;
// A draft model only prefills the prompt and catches up; it holds its experts, so short runs cost nothing.
constexpr int32_t kDraftPrefillTokens = 256;
// Of a batch's pass: tokens at most, unless there are more sequences, and those whose logits are made at once.
constexpr int32_t kMostBatchColumns = 4096;
constexpr int32_t kBatchLogits = 32;
// Left of a device's memory when its budget is not given: its driver and others take from it.
constexpr uint64_t kLeastDeviceReserve = 256 * kMiB;
// On a device a run's scores are kept, [context, columns, heads]: no more of them than this.
constexpr int32_t kDevicePrefillTokens = 512;
constexpr int64_t kMostScoreBytes = int64_t{256} << 20;
// And of a batch's pass: every (token, expert) pair's rows are there at once, no more of them than this.
constexpr int64_t kMostExpertRowBytes = int64_t{512} << 20;

constexpr BatchRegime kBatchRegimes[] = {
    {"auto", "spread", ReadAhead::kByUse},
    {"stream", "spread", ReadAhead::kAlways},
    {"cache", "draft-guided", ReadAhead::kNever},
    {"layered", "lru", ReadAhead::kNever},
};

// With a device, in any regime: it is asked for all of a layer's experts at once, and nothing streams through its
// slots.
constexpr std::string_view kDeviceBatchEviction = "draft-guided";

uint64_t default_vram(const DeviceInfo& device) {
  const uint64_t reserve = std::max(kLeastDeviceReserve, device.memory_free / 20);
  return device.memory_free - std::min(device.memory_free / 2, reserve);
}

Status check_device(const EngineOptions& options) {
  const std::vector<std::string> placements = placement_names();
  if (std::find(placements.begin(), placements.end(), options.device.placement) == placements.end()) {
    return usage_error(
        fmt::format("'{}' is not a placement; choose from {}", options.device.placement, fmt::join(placements, ", ")));
  }
  if (options.device.placement == "fixed" && options.draft_depth.value_or(0) >= kFixedWindow) {
    return usage_error(fmt::format("--placement fixed verifies {} tokens at once: give --draft-depth {} at most",
                                   kFixedWindow, kFixedWindow - 1));
  }
  return {};
}

Result<GgufIndex> open_checked(const std::string& path) {
  ASSIGN_OR_RETURN(GgufIndex index, GgufIndex::open(path));
  RETURN_IF_ERROR(check_vocabulary(index));
  return index;
}

Status check_batch(const EngineOptions& options) {
  const BatchOptions& batch = *options.batch;
  if (find_batch_regime(batch.regime) == nullptr) {
    return usage_error(
        fmt::format("'{}' is not a regime; choose from {}", batch.regime, fmt::join(batch_regime_names(), ", ")));
  }
  if (batch.sequences < 0 || batch.sequences > kMostSequences) {
    return usage_error(fmt::format("{} sequences at once are not between 1 and {}", batch.sequences, kMostSequences));
  }
  if (options.drafter == "resident") {
    return usage_error("--drafter resident is for one text at a time: with many, all experts are in use");
  }
  if (options.sampling.rejection) {
    return usage_error("--accept rejection is for one text at a time: here a request's text must not depend on others");
  }
  if (options.device.placement == "fixed") {
    return usage_error("--placement fixed is for one text at a time: a batch's passes have all widths");
  }
  return {};
}

Status check_options(const EngineOptions& options) {
  if (options.context && *options.context < 1) return usage_error("a context needs at least one token");
  if (options.draft_depth && (*options.draft_depth < 0 || *options.draft_depth > kMaxDraftDepth)) {
    return usage_error(
        fmt::format("a draft depth of {} is not between 0 and {}", *options.draft_depth, kMaxDraftDepth));
  }
  const std::vector<std::string> drafters = drafter_names();
  if (std::find(drafters.begin(), drafters.end(), options.drafter) == drafters.end()) {
    return usage_error(
        fmt::format("'{}' is not a drafter; choose from {}", options.drafter, fmt::join(drafters, ", ")));
  }
  if (options.draft_path.empty() && (options.drafter == "model" || options.drafter == "shared-kv")) {
    return usage_error(fmt::format("--drafter {} needs a draft model: give one with -d", options.drafter));
  }
  if (options.draft_path.empty() && options.drafter == "auto" && options.draft_depth.value_or(0) > 0) {
    return usage_error(
        fmt::format("--draft-depth {} needs a drafter: give a draft model with -d, or --drafter ngram "
                    "or resident",
                    *options.draft_depth));
  }
  if (options.calibration_positions && (options.draft_path.empty() || options.drafter != "model")) {
    return usage_error("calibration needs a draft model (-d)");
  }
  if (options.kv_type != "f16" && options.kv_type != "q8_0") {
    return usage_error(fmt::format("'{}' is not a type for keys and values; choose from {}", options.kv_type,
                                   fmt::join(kv_type_names(), ", ")));
  }
  if (options.batch) RETURN_IF_ERROR(check_batch(options));
  RETURN_IF_ERROR(check_device(options));
  if (options.io != "uring" && options.io != "pread") {
    return usage_error(fmt::format("'{}' is not a way to read: choose uring or pread", options.io));
  }
  if (!options.isa.empty()) {
    const std::optional<ops::Isa> isa = ops::isa_named(options.isa);
    if (!isa || !ops::executes(*isa)) {
      return usage_error(fmt::format("'{}' is not an instruction set of this processor; choose from {}", options.isa,
                                     fmt::join(instruction_set_names(), ", ")));
    }
  }
  return {};
}

}  // namespace

std::vector<std::string> drafter_names() { return {"auto", "model", "shared-kv", "ngram", "resident", "none"}; }

const BatchRegime* find_batch_regime(std::string_view name) {
  const auto known = std::find_if(std::begin(kBatchRegimes), std::end(kBatchRegimes),
                                  [name](const BatchRegime& one) { return one.name == name; });
  return known == std::end(kBatchRegimes) ? nullptr : known;
}

std::vector<std::string> batch_regime_names() {
  std::vector<std::string> names;
  for (const BatchRegime& regime : kBatchRegimes) names.emplace_back(regime.name);
  return names;
}

std::vector<std::string> kv_type_names() { return {"f16", "q8_0"}; }

std::vector<std::string> instruction_set_names() {
  std::vector<std::string> names;
  for (const ops::Isa isa : ops::supported_isas()) names.emplace_back(ops::name(isa));
  return names;
}

Result<std::unique_ptr<Engine>> Engine::prepare(const EngineOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  std::unique_ptr<Engine> engine(new Engine(options));
  RETURN_IF_ERROR(engine->open_device());
  ScheduleOptions schedule = options.schedule;
  if (options.batch) {
    // What is read ahead the pass itself knows: there is nobody to foretell.
    schedule.policy = "on-demand";
    schedule.predictor.clear();
    schedule.prefetch.clear();
    schedule.eviction =
        engine->device_ != nullptr ? kDeviceBatchEviction : find_batch_regime(options.batch->regime)->eviction;
  }
  ASSIGN_OR_RETURN(engine->options_.schedule, resolve(std::move(schedule)));
  RETURN_IF_ERROR(engine->read_files());
  RETURN_IF_ERROR(engine->create_models());
  RETURN_IF_ERROR(engine->plan());
  return engine;
}

Result<std::unique_ptr<Engine>> Engine::open(const EngineOptions& options, const LoadProgress& progress) {
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, prepare(options));
  RETURN_IF_ERROR(engine->load(progress));
  return engine;
}

// Who computes. What only the CPU does stays there unless a device is asked for by name.
Status Engine::open_device() {
  DeviceOptions& options = options_.device;
  const bool asked_for = options.name != "auto" && options.name != kNoDevice;
  if (options_.calibration_positions && asked_for) {
    return usage_error(fmt::format("calibration is computed on the CPU alone: leave --device {} out", options.name));
  }
  if (options_.calibration_positions) options.name = kNoDevice;
  ASSIGN_OR_RETURN(options.name, resolve_device(options));
  if (options.name == kNoDevice) return {};
  ASSIGN_OR_RETURN(device_, Device::open(options.name));
  if (!options.vram_bytes) options.vram_bytes = default_vram(device_->info());
  return {};
}

Status Engine::read_files() {
  ASSIGN_OR_RETURN(target_index_, open_checked(options_.target_path));
  ASSIGN_OR_RETURN(target_config_, read_model_config(*target_index_));
  const std::string& drafter = options_.drafter;
  if (!options_.draft_path.empty() && (drafter == "ngram" || drafter == "resident" || drafter == "none")) {
    notices_.push_back(fmt::format("the draft model is not loaded: --drafter {} has no use for it", drafter));
  } else if (!options_.draft_path.empty()) {
    ASSIGN_OR_RETURN(draft_index_, open_checked(options_.draft_path));
    ASSIGN_OR_RETURN(draft_config_, read_model_config(*draft_index_));
    RETURN_IF_ERROR(check_same_vocabulary(*target_index_, *draft_index_));
  }
  RETURN_IF_ERROR(choose_drafters());
  RETURN_IF_ERROR(check_interrupted());
  ASSIGN_OR_RETURN(tokenizer_, Tokenizer::load(*target_index_));
  RETURN_IF_ERROR(check_interrupted());
  // A grammar that is none is noticed here, before anything large is read.
  RETURN_IF_ERROR(Sampler::create(*tokenizer_, options_.sampling).status());
  if (options_.calibration_positions && !target_config_.is_moe()) {
    return usage_error(fmt::format("{} has no experts: there is nothing to predict", options_.target_path));
  }
  target_index_->drop_tokenizer_arrays();
  if (draft_index_) draft_index_->drop_tokenizer_arrays();
  return {};
}

// Who drafts, by the options and the files. Of a draft model that can read the target's KV cache nothing else is asked:
// it needs less memory so, reads no prompt, and agrees no less often (README.md has figures).
Status Engine::choose_drafters() {
  const std::string& wanted = options_.drafter;
  const bool automatic = wanted == "auto";
  if (wanted == "resident" && !target_config_.is_moe()) {
    return usage_error(
        fmt::format("{} has no routed experts: --drafter resident has nothing to leave out", options_.target_path));
  }
  if (wanted == "none" || (automatic && !draft_index_ && options_.draft_depth)) return {};
  if (draft_index_) {
    const std::string reason = why_not_share_kv(target_config_, draft_config_);
    if (wanted == "shared-kv" && !reason.empty()) {
      return usage_error(
          fmt::format("{} cannot draft on the target's KV cache: {}; --drafter model gives it one of "
                      "its own",
                      options_.draft_path, reason));
    }
    drafter_names_.emplace_back(wanted == "model" || !reason.empty() ? "model" : "shared-kv");
  } else if (wanted == "resident" || (automatic && target_config_.is_moe() && !options_.batch && device_ == nullptr)) {
    drafter_names_.emplace_back("resident");
  }
  // A depth that is asked for is the model's.
  if (wanted == "ngram" || (automatic && !options_.draft_depth)) drafter_names_.emplace_back("ngram");
  return {};
}

bool Engine::drafts_with(std::string_view name) const {
  return std::find(drafter_names_.begin(), drafter_names_.end(), name) != drafter_names_.end();
}

Status Engine::create_models() {
  if (options_.threads <= 0) options_.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  if (options_.context && *options_.context > target_config_.context_trained) {
    notices_.push_back(fmt::format("the context is lowered to the {} tokens the model was trained for",
                                   target_config_.context_trained));
  }
  const int32_t context = std::min(options_.context.value_or(kDefaultContext), target_config_.context_trained);
  options_.context = context;
  if (options_.isa.empty()) options_.isa = ops::name(ops::best_isa());
  compute_ = std::make_unique<Compute>(options_.threads);
  if (compute_->pool().threads() < options_.threads) {
    options_.threads = compute_->pool().threads();
    note_once(fmt::format("the system allows no more than {} threads", options_.threads));
  }
  ASSIGN_OR_RETURN(target_.model, Model::create(*target_index_, target_config_, *compute_, target_shape()));
  RETURN_IF_ERROR(open_queue(target_, *target_index_));
  if (draft_index_) {
    ASSIGN_OR_RETURN(draft_.model, Model::create(*draft_index_, draft_config_, *compute_, draft_shape()));
    RETURN_IF_ERROR(open_queue(draft_, *draft_index_));
  }
  // What the host may compute of a layer it must see.
  if (device_ != nullptr && target_config_.is_moe() && !fixed_placement()) {
    RETURN_IF_ERROR(target_.model->tap_ffn_inputs());
  }
  if (options_.calibration_positions) {
    RETURN_IF_ERROR(draft_.model->tap_ffn_inputs());
    if (*options_.calibration_positions == 0) {
      options_.calibration_positions = default_calibration_positions(draft_config_.n_embd);
    }
  }
  ASSIGN_OR_RETURN(schedule_,
                   ScheduleLink::create(options_.schedule, *target_.model, draft_.model.get(), fitted_source()));
  for (const std::string& notice : {schedule_->missing_scores(), schedule_->unused_fitted()}) {
    if (!notice.empty()) notices_.push_back(notice);
  }
  return {};
}

// Where fitted routers are looked for.
FittedSource Engine::fitted_source() const {
  if (!draft_index_ || options_.batch || options_.fitted_path == "none") return {};
  FittedSource source{options_.fitted_path, !options_.fitted_path.empty(), &*target_index_, &*draft_index_};
  if (source.path.empty()) source.path = fitted_routers_path(options_.draft_path, options_.target_path);
  return source;
}

ModelOptions Engine::target_shape() const {
  const int32_t context = *options_.context;
  const int32_t window = std::min(draft_depth_limit() + 1, context);
  ModelOptions shape{.context = context,
                     .workspace = {std::max(window, std::min(context, kPrefillTokens)), window},
                     .isa = *ops::isa_named(options_.isa),
                     .kv_type = options_.kv_type == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16};
  if (device_ != nullptr) {
    shape.device = device_.get();
    shape.fixed_window = fixed_placement() ? std::min(kFixedWindow, context) : 0;
    const auto scores = static_cast<int64_t>(sizeof(float)) * target_config_.n_head * context;
    const int64_t columns = std::clamp<int64_t>(kMostScoreBytes / scores, 1, std::min(context, kDevicePrefillTokens));
    shape.workspace.columns = std::max({static_cast<int32_t>(columns), window, shape.fixed_window});
  }
  if (!options_.batch) return shape;
  const BatchOptions& batch = *options_.batch;
  shape.sequences = batch.sequences > 0 ? batch.sequences : kMostSequences;
  if (batch.requests > 0) shape.sequences = static_cast<int32_t>(std::min<int64_t>(shape.sequences, batch.requests));
  const int32_t windows = std::min(kMostBatchColumns, shape.sequences * (draft_depth_limit() + 1));
  shape.workspace = {std::max({kPrefillTokens, windows, shape.sequences}), kBatchLogits};
  if (device_ == nullptr) {
    shape.workspace.output_rows = std::min(kBatchOutputRows, windows * target_config_.n_expert_used);
    return shape;
  }
  // The texts' keys and values are the host's.
  shape.host_attention = true;
  const int64_t row = int64_t{sizeof(float)} * (2 * target_config_.n_embd + 3 * target_config_.n_ff_expert) *
                      std::max(1, target_config_.n_expert_used);
  const auto columns = static_cast<int32_t>(std::min<int64_t>(kMostExpertRowBytes / row, shape.workspace.columns));
  shape.workspace.columns = std::max({columns, shape.sequences, kBatchLogits});
  return shape;
}

ModelOptions Engine::draft_shape() const {
  const int32_t context = *options_.context;
  const bool shares_kv = drafts_with("shared-kv");
  const int32_t scored = std::min(context, kScoredPositions);
  ModelOptions shape = target_shape();
  shape.workspace = {shares_kv ? scored : std::min(context, kDraftPrefillTokens), scored};
  if (options_.batch) {
    shape.workspace = {std::max(shares_kv ? kBatchLogits : kDraftPrefillTokens, shape.sequences), kBatchLogits};
  }
  shape.kv = shares_kv ? &target_.model->kv() : nullptr;
  shape.fixed_window = 0;  // what it drafts may differ, the text does not
  return shape;
}

int32_t Engine::draft_depth_limit() const {
  if (drafter_names_.empty()) return 0;
  if (options_.batch) return options_.draft_depth.value_or(kMostBatchDepth);
  if (fixed_placement()) return options_.draft_depth.value_or(kFixedWindow - 1);
  return options_.draft_depth.value_or(draft_index_ ? kMaxAutoDepth : kMaxOwnAutoDepth);
}

Status Engine::check_interrupted() const { return *interrupted_ ? interrupted_error() : Status(); }

std::unique_ptr<Sampler> Engine::create_sampler() const {
  Result<std::unique_ptr<Sampler>> sampler = Sampler::create(*tokenizer_, options_.sampling);
  CHECK(sampler.ok());  // open() tried
  return std::move(sampler).value();
}

void Engine::note_once(const std::string& notice) {
  if (std::find(notices_.begin(), notices_.end(), notice) == notices_.end()) notices_.push_back(notice);
}

Status Engine::open_queue(LoadedModel& loaded, const GgufIndex& index) {
  std::vector<std::string> paths;
  for (const GgufIndex::ShardFile& file : index.files()) paths.push_back(file.path);
  ASSIGN_OR_RETURN(loaded.files, FileSet::open(paths));
  if (!loaded.files->direct()) note_once("the file system does not allow O_DIRECT: reads go through the page cache");
  if (options_.queue_factory) {
    ASSIGN_OR_RETURN(loaded.queue, options_.queue_factory(*loaded.files));
    return {};
  }
  Status refused;
  loaded.queue = options_.io == "uring" ? make_read_queue(*loaded.files, &refused) : make_pread_queue(*loaded.files);
  if (!refused.ok()) note_once(fmt::format("{}; reading with pread instead", refused.message()));
  return {};
}

Status Engine::create_cache(LoadedModel& loaded, int slots) {
  ExpertCache::Memory memory;
  if (device_ != nullptr) memory = [this](uint64_t bytes) { return device_->reserve_host(bytes); };
  if (loaded.model->config().is_moe()) {
    const int most_slots = &loaded == &target_ ? slots_without_draft_ : 0;
    ASSIGN_OR_RETURN(loaded.cache, ExpertCache::create(loaded.model->layout(), slots,
                                                       make_eviction_policy(options_.schedule.eviction), *loaded.files,
                                                       *loaded.queue, clock_, memory, most_slots));
  }
  loaded.pass = std::make_unique<ForwardPass>(*loaded.model, loaded.cache.get(), clock_, interrupted_);
  return {};
}

Status Engine::create_device_experts(LoadedModel& loaded, std::string_view eviction, Placement placement) {
  if (loaded.bank == nullptr) return {};
  RETURN_IF_ERROR(loaded.bank->allocate());
  std::vector<int> kinds;
  std::vector<int> slots;
  for (int32_t i = 0; i < loaded.model->config().n_layer; ++i) kinds.push_back(loaded.bank->kind_of(LayerId{i}));
  for (int kind = 0; kind < loaded.bank->kinds(); ++kind) slots.push_back(loaded.bank->slots(kind));
  DeviceSlots device_slots(loaded.model->layout(), kinds, slots, make_eviction_policy(eviction));
  loaded.device_experts = std::make_unique<DeviceExperts>(*loaded.model, *loaded.cache, *loaded.bank,
                                                          std::move(device_slots), placement, clock_, interrupted_);
  loaded.pass->set_device_experts(loaded.device_experts.get());
  return {};
}

// Tells `progress` how far a phase of loading is; false: interrupted.
std::function<bool(uint64_t, uint64_t)> Engine::part_of(const LoadProgress& progress, std::string_view phase) const {
  return [this, &progress, phase](uint64_t done, uint64_t total) {
    if (progress) progress(phase, total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total));
    return !*interrupted_;
  };
}

Status Engine::load_draft(const LoadProgress& progress) {
  RETURN_IF_ERROR(draft_.model->load(*draft_.files, *draft_.queue, part_of(progress, "loading the draft")));
  RETURN_IF_ERROR(create_cache(draft_, draft_slots()));
  if (draft_.cache == nullptr) return {};
  const auto experts = part_of(progress, "loading the draft's experts");
  const auto count = [&](int done, int total) {
    return experts(static_cast<uint64_t>(done), static_cast<uint64_t>(total));
  };
  RETURN_IF_ERROR(create_device_experts(draft_, kDefaultEviction, Placement::kFixed));
  RETURN_IF_ERROR(draft_.device_experts != nullptr ? draft_.device_experts->fill(count)
                                                   : draft_.cache->fill_and_wait(count));
  draft_.cache->reset_stats();
  return {};
}

Status Engine::load(const LoadProgress& progress) {
  RETURN_IF_ERROR(check_interrupted());
  if (draft_index_) RETURN_IF_ERROR(load_draft(progress));
  const int64_t start = clock_.now_ns();
  RETURN_IF_ERROR(target_.model->load(*target_.files, *target_.queue, part_of(progress, "loading the target")));
  const double load_s = seconds(clock_.now_ns() - start);
  RETURN_IF_ERROR(create_cache(target_, plan_.slots));
  RETURN_IF_ERROR(create_device_experts(target_, options_.schedule.eviction,
                                        fixed_placement() ? Placement::kFixed : Placement::kAuto));
  if (target_.device_experts != nullptr) {
    // Empty slots would stay empty where the CPU computes sooner than the link copies.
    const auto part = part_of(progress, "loading experts to the device");
    RETURN_IF_ERROR(target_.device_experts->fill(
        [&](int done, int total) { return part(static_cast<uint64_t>(done), static_cast<uint64_t>(total)); }));
    RETURN_IF_ERROR(target_.device_experts->measure());
    target_.cache->reset_stats();
  }
  if (target_.cache != nullptr) target_.cache->set_trace(options_.trace);
  if (target_.device_experts != nullptr) target_.device_experts->set_trace(options_.trace);
  target_.pass->set_trace(options_.trace);
  if (!options_.batch) create_drafters();
  RETURN_IF_ERROR(schedule_->load());
  if (device_ != nullptr && draft_.model != nullptr) draft_.model->device_stages()->upload_probes();
  // Until more is known: what loading has shown.
  const double rate = load_s > 0 ? static_cast<double>(target_.model->dense_bytes()) / load_s : 0;
  schedule_->start(target_, draft_.model != nullptr ? &draft_ : nullptr, rate, clock_);
  return {};
}

void Engine::release_draft() {
  CHECK(can_release_draft());
  for (std::unique_ptr<Drafter>& drafter : drafters_) {
    if (drafter->name() == "model" || drafter->name() == "shared-kv") {
      drafter = std::make_unique<RetiredDrafter>(std::string(drafter->name()));
    }
  }
  schedule_->release_draft();
  // Each of these uses those behind it.
  draft_.pass.reset();
  draft_.cache.reset();
  draft_.model.reset();
  draft_.queue.reset();
  draft_.files.reset();
  trim_heap();
  ledger_ = ledger_without_draft_;
  plan_.slots = slots_without_draft_;
  plan_.everything_resident = plan_.slots == target_.model->layout().total_experts();
  // Misses fill them: whatever else could be read is used less.
  target_.cache->grow(plan_.slots);
}

void Engine::create_drafters() {
  const int32_t n_vocab = target_config_.n_vocab;
  for (const std::string& name : drafter_names_) {
    if (name == "model") {
      drafters_.push_back(std::make_unique<ModelDrafter>(*draft_.pass, n_vocab));
    } else if (name == "shared-kv") {
      drafters_.push_back(std::make_unique<TargetKvDrafter>(TargetKvDrafter::Kind::kSharedKv, *draft_.pass, n_vocab));
    } else if (name == "ngram") {
      drafters_.push_back(std::make_unique<NgramDrafter>(*options_.context));
    } else if (options_.drafter != "auto" || plan_.slots < target_.model->layout().total_experts()) {
      // With every expert in memory the target would draft at the price of its own tokens.
      drafters_.push_back(std::make_unique<TargetKvDrafter>(TargetKvDrafter::Kind::kResident, *target_.pass, n_vocab));
    }
  }
}

}  // namespace drafthorse
