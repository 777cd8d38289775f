// Engine's plan of memory, on the host and on a device: everything is booked before anything is loaded.
#include <algorithm>

#include "base/host_memory.h"
#include "base/units.h"
#include "draft/batch_drafter.h"
#include "engine/calibration.h"
#include "engine/engine.h"
#include "plan/batch_optimizer.h"

namespace drafthorse {
namespace {

// Left to the rest of the machine when the budget is not given.
constexpr uint64_t kLeastMachineReserve = 512 * kMiB;

uint64_t default_budget() {
  const uint64_t available = available_memory_bytes();
  return available - std::min(available / 2, std::max(kLeastMachineReserve, available / 10));
}

}  // namespace

Status Engine::plan() {
  if (!options_.ram_bytes) options_.ram_bytes = default_budget();
  trim_heap();
  MemoryNeeds needs;
  needs.fixed.add("process and vocabulary", resident_bytes() + kProcessReserve);
  target_.model->account(needs.fixed, "");
  MemoryLedger of_draft;
  if (draft_index_) {
    draft_.model->account(of_draft, "draft ");
    const ExpertLayout& layout = draft_.model->layout();
    const uint64_t experts = ExpertCache::slot_bytes(layout) * static_cast<uint64_t>(draft_slots());
    if (experts > 0) of_draft.add("draft experts", align_up(experts, kHugePage));
  }
  if (schedule_->fitted_bytes() > 0) of_draft.add("fitted routers", schedule_->fitted_bytes());
  for (const MemoryLedger::Entry& entry : of_draft.entries()) needs.fixed.add(entry.tag, entry.bytes);
  if (drafts_with("ngram") && !options_.batch) needs.fixed.add("n-gram index", NgramDrafter::bytes(*options_.context));
  needs.fixed.add("sampling", sampler_bytes(options_.sampling, target_config_.n_vocab, draft_depth_limit()));
  const ExpertLayout& layout = target_.model->layout();
  needs.slot_bytes = ExpertCache::slot_bytes(layout);
  needs.total_experts = layout.total_experts();
  needs.least_slots = std::min(needs.total_experts, ExpertCache::kLeastSlots);
  if (device_ != nullptr) RETURN_IF_ERROR(plan_device());
  RETURN_IF_ERROR(plan_slots(needs));
  if (may_release_draft()) plan_release(needs, of_draft);
  if (options_.expert_slots) {
    plan_.slots = std::clamp(*options_.expert_slots, needs.least_slots, needs.total_experts);
    const bool may = may_release_draft() && options_.slots_without_draft;
    slots_without_draft_ = may ? std::clamp(*options_.slots_without_draft, plan_.slots, needs.total_experts) : 0;
  }
  ledger_ = std::move(needs.fixed);
  if (plan_.slots > 0) {
    ledger_.add("expert slots", align_up(needs.slot_bytes * static_cast<uint64_t>(plan_.slots), kHugePage));
  }
  return {};
}

// A draft that was asked for stays, and so does one whose run is recorded: a recording has one number of slots.
bool Engine::may_release_draft() const {
  return draft_index_ && target_config_.is_moe() && options_.drafter == "auto" && !options_.draft_depth &&
         !options_.keep_draft && !options_.batch && !options_.calibration_positions && device_ == nullptr &&
         options_.schedule.record == nullptr;
}

// What the slots would be without the draft.
void Engine::plan_release(MemoryNeeds needs, const MemoryLedger& of_draft) {
  MemoryLedger others;
  for (const MemoryLedger::Entry& entry : needs.fixed.entries()) {
    if (of_draft.bytes(entry.tag) == 0) others.add(entry.tag, entry.bytes);
  }
  needs.fixed = others;
  const Result<MemoryPlan> plan = plan_memory(needs, *options_.ram_bytes);
  CHECK(plan.ok());  // with the draft it fits
  slots_without_draft_ = plan->slots;
  ledger_without_draft_ = std::move(others);
  ledger_without_draft_.add("expert slots",
                            align_up(needs.slot_bytes * static_cast<uint64_t>(slots_without_draft_), kHugePage));
}

// Of the draft's experts in RAM: all, or on their way to the device.
int Engine::draft_slots() const {
  const int all = draft_.model->layout().total_experts();
  return device_ != nullptr ? std::min(all, ExpertCache::kLeastSlots) : all;
}

// A batch's draft with keys and values of its own: for how many texts the device has copies of them, and attends.
// Layers of experts come first, as one is computed while the next is read; of what is left then, a part. kNoMirror
// where the device cannot.
void Engine::mirror_draft() {
  constexpr uint64_t kPart = 4;  // so many experts would be given up for attention that the CPU can do
  if (!options_.batch || draft_.model == nullptr || draft_.model->shares_kv() || options_.kv_type != "f16") return;
  MemoryLedger others;
  target_.model->account_device(others, "");
  draft_.model->account_device(others, "draft ");
  uint64_t two_layers = 0;
  const ExpertLayout& layout = target_.model->layout();
  for (int32_t i = 0; i < target_config_.n_layer; ++i) {
    const LayerId layer{i};
    if (layout.n_experts(layer) == 0) continue;
    two_layers = std::max(two_layers, 2 * layout.expert_bytes(layer) * static_cast<uint64_t>(layout.n_experts(layer)));
  }
  const uint64_t taken = others.total() + two_layers + (draft_.bank != nullptr ? draft_.bank->bytes() : 0);
  if (vram_budget_bytes() <= taken) return;
  const int32_t typical = options_.batch->typical_tokens;
  // Half again as long as most: those that are longer the CPU attends to.
  const int32_t longest = typical > 0 ? typical + typical / 2 : *options_.context;
  const auto rows = static_cast<int32_t>(
      align_up(static_cast<uint64_t>(std::min(longest, *options_.context)), uint64_t{kDeviceRows}));
  const uint64_t fit = (vram_budget_bytes() - taken) / kPart / MirroredAttention::slot_bytes(draft_config_, rows);
  const auto slots = static_cast<int32_t>(std::min<uint64_t>(fit, static_cast<uint64_t>(target_shape().sequences)));
  if (slots == 0) return;
  const Status mirrored = draft_.model->set_mirror(slots, rows);
  if (!mirrored.ok()) note_once(mirrored.message() + ": the CPU attends for the draft");
}

// The device's memory: what is left buys slots, too.
Status Engine::plan_device() {
  if (draft_.model != nullptr && draft_config_.is_moe()) {
    draft_.bank = std::make_unique<ExpertBank>(*device_, draft_.model->layout());
    draft_.bank->set_slots(draft_.bank->slots_for(draft_.bank->all_bytes()));
  }
  mirror_draft();
  target_.model->account_device(device_ledger_, "");
  if (draft_.model != nullptr) draft_.model->account_device(device_ledger_, "draft ");
  if (draft_.bank != nullptr) device_ledger_.add("draft experts", draft_.bank->bytes());
  uint64_t least = 0;
  if (target_config_.is_moe()) {
    target_.bank = std::make_unique<ExpertBank>(*device_, target_.model->layout());
    for (int kind = 0; kind < target_.bank->kinds(); ++kind) {
      least += target_.bank->slot_bytes(kind) + 3 * device_->alignment();
    }
  }
  ASSIGN_OR_RETURN(const uint64_t left,
                   plan_device_memory(device_->info().name, device_ledger_, least, vram_budget_bytes()));
  if (target_.bank == nullptr) return {};
  // Each of a kind's three tensors is aligned.
  std::vector<int> slots =
      target_.bank->slots_for(left - 3 * device_->alignment() * static_cast<uint64_t>(target_.bank->kinds()));
  if (options_.device_slots) {
    for (int& of_kind : slots) of_kind = std::clamp(*options_.device_slots, 1, of_kind);
  }
  target_.bank->set_slots(slots);
  device_ledger_.add("expert slots", target_.bank->bytes());
  return {};
}

// What is left buys slots. Calibration goes first: a prompt needs few slots, and with all of the draft's layers at a
// time the texts are read once.
Status Engine::plan_calibration(MemoryNeeds& needs) {
  const MemoryLedger others = needs.fixed;
  for (int layers = draft_config_.n_layer;; layers = (layers + 1) / 2) {
    needs.fixed = others;
    needs.fixed.add("calibration",
                    calibration_bytes(target_config_, draft_config_, *options_.calibration_positions, layers));
    const Result<MemoryPlan> plan = plan_memory(needs, *options_.ram_bytes);
    if (!plan.ok() && layers > 1) continue;
    if (!plan.ok()) return plan.status();
    plan_ = *plan;
    calibration_layers_ = layers;
    return {};
  }
}

// What is left for slots, in a batch beside its sequences.
Status Engine::plan_slots(MemoryNeeds& needs) {
  if (options_.calibration_positions) return plan_calibration(needs);
  if (!options_.batch) {
    ASSIGN_OR_RETURN(plan_, plan_memory(needs, *options_.ram_bytes));
    return {};
  }
  MemoryNeeds least = needs;
  const uint64_t longest = sequence_bytes(*options_.context);
  least.fixed.add("keys and values of one text", longest);
  ASSIGN_OR_RETURN(plan_, plan_memory(least, *options_.ram_bytes));
  const BatchOptions& batch = *options_.batch;
  const int32_t typical = batch.typical_tokens > 0 ? batch.typical_tokens : *options_.context / 2;
  const int32_t tokens = std::min(typical, *options_.context);
  const BatchMemory memory = {.budget_bytes = *options_.ram_bytes,
                              .fixed_bytes = needs.fixed.total(),
                              .slot_bytes = needs.slot_bytes,
                              .total_experts = needs.total_experts,
                              .least_slots = std::max(stream_slots(target_.model->layout()), needs.least_slots),
                              .sequence_bytes = sequence_bytes(tokens)};
  const int64_t fit = std::min<int64_t>(sequences_that_fit(memory, {.prompt_tokens = tokens}, 1),
                                        target_.model->kv().shape().sequences);
  const uint64_t most = *options_.ram_bytes - needs.fixed.total() -
                        align_up(needs.slot_bytes * static_cast<uint64_t>(needs.least_slots), kHugePage);
  batch_bytes_ = std::min(most, std::max(longest, static_cast<uint64_t>(fit) * memory.sequence_bytes));
  if (needs.slot_bytes > 0) {
    const uint64_t left = align_down(*options_.ram_bytes - needs.fixed.total() - batch_bytes_, kHugePage);
    plan_.slots =
        static_cast<int>(std::min<uint64_t>(left / needs.slot_bytes, static_cast<uint64_t>(needs.total_experts)));
  }
  plan_.everything_resident = plan_.slots == needs.total_experts;
  // What experts do not need texts may.
  if (plan_.everything_resident) {
    const uint64_t all = align_up(needs.slot_bytes * static_cast<uint64_t>(needs.total_experts), kHugePage);
    const uint64_t every_text = longest * static_cast<uint64_t>(target_.model->kv().shape().sequences);
    batch_bytes_ = std::min(*options_.ram_bytes - needs.fixed.total() - all, std::max(batch_bytes_, every_text));
  }
  needs.fixed.add("keys and values of texts", batch_bytes_);
  return {};
}

uint64_t Engine::sequence_bytes(int64_t tokens) const {
  const auto of = [tokens](const Model& model) {
    return static_cast<uint64_t>(tokens) * KvCache::position_bytes(model.config(), model.kv().shape().type) +
           KvCache::sequence_overhead_bytes(model.config());
  };
  uint64_t bytes = of(*target_.model);
  if (draft_.model != nullptr && !draft_.model->shares_kv()) bytes += of(*draft_.model);
  if (drafts_with("ngram")) bytes += NgramBatchDrafter::sequence_bytes(*options_.context);
  return bytes;
}

}  // namespace drafthorse
