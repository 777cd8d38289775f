// What `drafthorse simulate` replays: flags and a recording made into policies, a link, slots and times.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "simulate/hardware.h"
#include "simulate/replay.h"
#include "simulate_command.h"

namespace drafthorse::cli {

// All that stays the same from policy to policy.
struct SimulationSetup {
  RoutingTrace trace;
  ReplayOptions options;
  const Hardware* hardware = nullptr;  // nullptr: the recording one
  const ModelShape* shape = nullptr;   // nullptr: the recorded one
  bool as_recorded = true;             // model, slots, link, times
  std::string recorded_model;
  std::vector<std::string> notes;
};

// kUsage where a flag is no rate, time, size or depth, or does not go with another.
Result<SimulationSetup> set_up(const SimulateFlags& flags, const RoutingTrace& recorded);

// The policies to replay: each a name and its parts. kUsage for an unknown name.
Result<std::vector<std::pair<std::string, ReplayOptions>>> choose_policies(const SimulateFlags& flags,
                                                                           const SimulationSetup& setup);

}  // namespace drafthorse::cli
