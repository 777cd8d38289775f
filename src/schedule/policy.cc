#include "schedule/policy.h"

namespace drafthorse {

const std::vector<SchedulePolicy>& schedule_policies() {
  static const std::vector<SchedulePolicy> policies = {
      {"auto", "combined", "deadline", "draft-guided", false,
       "all predictors weighed, reads in time for each layer, kept what the window needs"},
      {"sp-moe", "cross", "cutoff", "lru", false,
       "SP-MoE: the draft's states through the target's routers, up to a cutoff layer"},
      {"sp-moe-sync", "cross", "cutoff-sync", "lru", false,
       "SP-MoE without its pipeline: drafting waits for each layer's reads"},
      {"on-demand", "none", "none", "lru-layer", false, "Mixtral-Offloading: an LRU per layer, nothing ahead of time"},
      {"adapmoe", "next-gate", "next-layer", "lru-layer", true,
       "AdapMoE: the next layer's gate, slots moved to where misses are"},
      {"moe-infinity", "trace", "ahead", "activation", false, "MoE-Infinity: what followed in the most similar past"},
      {"specter", "frequency", "top", "lru", false, "Specter-like: what most drafted tokens name"},
      {"next-use", "none", "none", "next-use", false, "nothing ahead of time, evicts what is expected last"},
  };
  return policies;
}

std::vector<std::string> schedule_policy_names() {
  std::vector<std::string> names;
  for (const SchedulePolicy& policy : schedule_policies()) names.emplace_back(policy.name);
  return names;
}

std::optional<SchedulePolicy> find_schedule_policy(std::string_view name) {
  for (const SchedulePolicy& policy : schedule_policies()) {
    if (policy.name == name) return policy;
  }
  return std::nullopt;
}

}  // namespace drafthorse
