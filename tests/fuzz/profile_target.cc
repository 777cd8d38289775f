// The machine's profile, and predictions made with it.
#include <cmath>

#include "base/check.h"
#include "cli/profile_json.h"
#include "fuzz/target.h"
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
  return 0;
}
