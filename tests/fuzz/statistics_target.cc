// The statistics file that `plan --like` reads.
#include "base/check.h"
#include "cli/earlier_run.h"
#include "fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  const Result<cli::EarlierRun> run = cli::parse_earlier_run(fuzz::text_of(data, size), "stats.json");
  if (!run.ok()) return 0;
  CHECK(!run->acceptance || (*run->acceptance >= 0 && *run->acceptance <= 1));
  CHECK(run->hit_rate >= 0 && run->hit_rate <= 1 && run->expert_slots >= 0 && run->window >= 1);
  return 0;
}
