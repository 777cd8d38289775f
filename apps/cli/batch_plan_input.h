// What the optimiser of a batch is told of an engine on this machine.
#pragma once

#include "base/status.h"
#include "engine/engine.h"
#include "plan/batch_optimizer.h"
#include "plan/machine_profile.h"

namespace drafthorse::cli {

// engine: prepared for a batch (EngineOptions::batch), which need not be loaded. All but the acceptance of drafts and a
// number of sequences that is asked for. Without a draft model no draft is planned for, whatever else drafts.
// kUsage where the profile lacks a weight type of the models'.
Result<BatchPlanInput> plan_input(const Engine& engine, const MachineProfile& profile, const drafthorse::BatchJob& job);

// What share of the engine's draft's tokens is taken to be accepted, before anything is known of it.
double assumed_acceptance(const Engine& engine);

}  // namespace drafthorse::cli
