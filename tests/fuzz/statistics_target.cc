// The statistics file that `plan --like` reads, and what is worked out from it.
#include <cmath>

#include "base/check.h"
#include "cli/earlier_run.h"
#include "fuzz/target.h"
#include "plan/prediction.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  const Result<cli::EarlierRun> run = cli::parse_earlier_run(fuzz::text_of(data, size), "stats.json");
  if (!run.ok()) return 0;
  CHECK(!run->acceptance || (*run->acceptance >= 0 && *run->acceptance <= 1));
  const RoutingShape shape{4, 16, 2, run->expert_slots, run->window};
  const std::optional<double> skew = skew_from_hit_rate(shape, run->hit_rate);
  CHECK(!skew || (std::isfinite(*skew) && *skew >= 0));
  return 0;
}
