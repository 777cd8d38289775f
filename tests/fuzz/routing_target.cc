// The recorded routing that `simulate` reads, and its replay.
#include "base/check.h"
#include "cli/routing_json.h"
#include "fuzz/target.h"
#include "simulate/hardware.h"
#include "simulate/replay.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  const Result<RoutingTrace> trace = cli::parse_routing(fuzz::text_of(data, size), "routing.jsonl");
  if (!trace.ok()) return 0;
  // What a replay costs is in the experts' bytes, which the file may make as large as it likes.
  constexpr uint64_t kMost = uint64_t{1} << 24;
  if (trace->model.slot_bytes() > kMost || trace->model.total_experts() > 256) return 0;
  ReplayOptions options = recorded_options(*trace);
  options.cost = measured_cost(*trace);
  options.link.bytes_per_s = 1e9;
  const auto check = [](const Result<ReplayResult>& result) {
    if (!result.ok()) return;
    CHECK(result->bound_bytes <= result->bytes());
  };
  check(replay(*trace, options));
  options.take(*find_schedule_policy("auto"));
  if (!trace->model.draft.empty()) options.depth = ReplayDepth::kAuto;
  check(replay(*trace, options));
  for (const ModelShape& shape : model_shapes()) static_cast<void>(stretch(*trace, shape));
  return 0;
}
