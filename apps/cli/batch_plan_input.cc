#include "batch_plan_input.h"

#include <algorithm>

#include "engine/work.h"
#include "simulate/typical_text.h"

namespace drafthorse::cli {
namespace {

constexpr double kChoice_s = 2e-5;  // of one token from its logits, greedily; sampler_bench

double kv_bytes(const Model& model) {
  return static_cast<double>(KvCache::position_bytes(model.config(), model.kv().shape().type));
}

BatchMemory memory_of(const Engine& engine, const drafthorse::BatchJob& job) {
  const Model& target = *engine.target().model;
  BatchMemory memory;
  memory.budget_bytes = engine.ram_budget_bytes();
  memory.fixed_bytes = engine.ledger().total() - engine.ledger().bytes("expert slots") - engine.batch_bytes();
  memory.slot_bytes = ExpertCache::slot_bytes(target.layout());
  memory.total_experts = target.layout().total_experts();
  memory.sequence_bytes = engine.sequence_bytes(job.prompt_tokens + job.output_tokens);
  if (memory.slot_bytes == 0) return memory;
  memory.stream_slots = stream_slots(target.layout());
  memory.least_slots = std::max(memory.stream_slots, ExpertCache::kLeastSlots);
  return memory;
}

bool same_shape(const ModelConfig& a, const ModelConfig& b) {
  return a.n_layer == b.n_layer && a.n_embd == b.n_embd && a.n_expert == b.n_expert && a.n_ff == b.n_ff &&
         a.n_ff_expert == b.n_ff_expert;
}

}  // namespace

double assumed_acceptance(const Engine& engine) {
  CHECK(engine.draft().model != nullptr);
  const bool itself = same_shape(engine.target().model->config(), engine.draft().model->config());
  return itself ? kSameModelAcceptance : kOtherModelAcceptance;
}

Result<BatchPlanInput> plan_input(const Engine& engine, const MachineProfile& profile,
                                  const drafthorse::BatchJob& job) {
  const Model& target = *engine.target().model;
  BatchPlanInput input;
  ASSIGN_OR_RETURN(input.target, model_cost(profile, model_work(engine.target_index(), target),
                                            {.skew = kSkewOfMany, .kv_bytes_per_key = kv_bytes(target)}));
  if (engine.draft().model != nullptr) {
    const Model& draft = *engine.draft().model;
    ASSIGN_OR_RETURN(ModelCost cost, model_cost(profile, model_work(engine.draft_index(), draft),
                                                {.skew = kSkewOfMany, .kv_bytes_per_key = kv_bytes(draft)}));
    input.draft = DraftCost{std::move(cost), {}};
  }
  input.platform.link_bytes_per_s = profile.stream_bytes_per_s;
  input.platform.link_bytes_per_s_while_computing = profile.stream_bytes_per_s_while_computing;
  input.platform.compute_slowdown_while_loading = profile.compute_slowdown_while_reading;
  input.memory = memory_of(engine, job);
  input.job = job;
  input.max_depth = kMostBatchDepth;
  input.depth = engine.options().draft_depth;
  if (input.depth) input.max_depth = *input.depth;
  const int64_t most = target.kv().shape().sequences;
  input.job.requests = job.requests > 0 ? std::min(job.requests, most) : most;
  input.other_s_per_token = kChoice_s;
  return input;
}

}  // namespace drafthorse::cli
