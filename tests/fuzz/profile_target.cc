// The machine's profile, and predictions made with it.
#include <cmath>

#include "base/check.h"
#include "cli/profile_json.h"
#include "fuzz/target.h"
#include "plan/batch_optimizer.h"
#include "simulate/prediction.h"

namespace drafthorse::fuzz {
namespace {

ModelWork model(const std::string& type) {
  ModelWork work;
  for (int i = 0; i < 2; ++i) work.layers.push_back({{{type, 1e6}}, {{type, 3e6}}, 8});
  work.head = {type, 1e6};
  work.n_expert_used = 2;
  work.n_embd = 1024;
  work.attention_width = 1024;
  work.expert_bytes = 3'000'000;
  work.dense_bytes = 5'000'000;
  return work;
}

void predict_with(const MachineProfile& machine) {
  PredictionInput input;
  input.machine = machine;
  input.target = model(machine.kernels.front().type);
  input.draft = model(machine.kernels.back().type);
  input.slots = 6;
  // Few tokens: thousands of these a second are wanted.
  input.prompt_tokens = 4;
  input.generated_tokens = 3;
  input.prefill_tokens = 16;
  input.max_window = 3;
  input.text.acceptance = 0.8;
  const Result<Prediction> prediction = predict(input);
  CHECK(prediction.ok());
  CHECK(std::isfinite(prediction->best.tokens_per_s) && prediction->best.tokens_per_s >= 0);
  CHECK(std::isfinite(prediction->ttft_s) && !std::isnan(prediction->load_s));
}

void plan_batch_with(const MachineProfile& machine) {
  BatchPlanInput input;
  Result<ModelCost> target = model_cost(machine, model(machine.kernels.front().type), {.kv_bytes_per_key = 4096});
  Result<ModelCost> draft = model_cost(machine, model(machine.kernels.back().type), {});
  CHECK(target.ok() && draft.ok());
  input.target = std::move(target).value();
  input.draft = DraftCost{std::move(draft).value(), {}};
  input.platform.link_bytes_per_s = machine.stream_bytes_per_s;
  input.platform.link_bytes_per_s_while_computing = machine.stream_bytes_per_s_while_computing;
  input.platform.compute_slowdown_while_loading = machine.compute_slowdown_while_reading;
  input.memory = {.budget_bytes = 64 << 20,
                  .slot_bytes = 4 << 20,
                  .total_experts = 16,
                  .least_slots = 4,
                  .kv_bytes_per_token = 4096};
  input.job = {40, 40, 16};
  input.acceptance = {0.8};
  input.max_depth = 1;
  const Result<BatchPlan> plan = plan_batch(input);
  CHECK(plan.ok() && !std::isnan(plan->plain.tokens_per_s) && plan->plain.tokens_per_s >= 0);
}

}  // namespace
}  // namespace drafthorse::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  const Result<MachineProfile> profile = cli::parse_profile(fuzz::text_of(data, size), "profile.json");
  if (!profile.ok()) return 0;
  const std::string written = cli::profile_json(*profile).dump();
  const Result<MachineProfile> again = cli::parse_profile(written, "profile.json");
  CHECK(again.ok() && cli::profile_json(*again).dump() == written);
  fuzz::predict_with(*profile);
  fuzz::plan_batch_with(*profile);
  return 0;
}
