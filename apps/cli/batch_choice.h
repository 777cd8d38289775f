// How a batch is best run on this machine, before anything is loaded: SpecMoEOff's optimiser (plan/batch_optimizer.h)
// asked for the hyperparameters that nobody gave.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "plan/batch_optimizer.h"

namespace drafthorse::cli {

struct BatchChoice {
  bool with_draft = false;
  int64_t sequences = 0;
  std::string why;  // for people; empty: nothing that was not asked for
  BatchCosts costs;
};

// options: as they would be opened, with BatchOptions; batch->sequences 0: free to choose. The draft is up for choice
// where options.drafter is "auto" and no depth is asked for. Nothing where all is given, where the machine has not
// been profiled, and where the model does not fit: opening says why.
std::optional<BatchChoice> choose_batch(const EngineOptions& options, const drafthorse::BatchJob& job);

}  // namespace drafthorse::cli
