// A policy is a bundle of parts: predictor, prefetching, eviction, and how slots are shared among layers.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace drafthorse {

struct SchedulePolicy {
  std::string_view name;
  std::string_view predictor;
  std::string_view prefetch;
  std::string_view eviction;
  bool adaptive_shares = false;  // slots move to the layers that would miss most (AdapMoE)
  std::string_view summary;      // a line for people
};

// auto (ours), sp-moe, sp-moe-sync, on-demand, adapmoe, moe-infinity, specter, next-use. nullopt for an unknown name.
std::optional<SchedulePolicy> find_schedule_policy(std::string_view name);
const std::vector<SchedulePolicy>& schedule_policies();
std::vector<std::string> schedule_policy_names();
inline constexpr std::string_view kDefaultPolicy = "auto";

}  // namespace drafthorse
