// What `plan --like` takes from the statistics file of an earlier run. Pure.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"

namespace drafthorse::cli {

struct EarlierRun {
  double hit_rate = 0;  // 0 to 1
  int expert_slots = 0;
  double window = 1;                 // tokens of a verification, on average
  std::optional<double> acceptance;  // of draft positions that were reached, those accepted; nothing: none were
};

// kFile where `text` (read from `name`) is not what `run --stats-file` writes.
Result<EarlierRun> parse_earlier_run(const std::string& text, const std::string& name);

}  // namespace drafthorse::cli
