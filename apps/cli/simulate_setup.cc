#include "simulate_setup.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/units.h"
#include "output.h"
#include "suggest.h"

namespace drafthorse::cli {
namespace {

constexpr int64_t kDefaultLatencyNs = 100'000;
constexpr int kMostDepth = 64;

// A number and what stands behind it.
std::optional<std::pair<double, std::string>> number_and_unit(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value) || value < 0) return std::nullopt;
  return std::pair(value, std::string(end, text.data() + text.size()));
}

// "24G/s", "800M/s", "3.2GB/s": powers of 1000, as makers of disks and links count.
Result<double> parse_rate(const std::string& text) {
  const auto parsed = number_and_unit(text);
  double factor = 0;
  if (parsed) {
    std::string unit = parsed->second;
    if (unit.ends_with("/s")) unit.resize(unit.size() - 2);
    if (unit.ends_with("B")) unit.pop_back();
    factor = unit.empty() ? 1 : unit == "K" ? 1e3 : unit == "M" ? 1e6 : unit == "G" ? 1e9 : unit == "T" ? 1e12 : 0;
  }
  constexpr double kLeast = 1e3;
  constexpr double kMost = 1e15;
  if (factor == 0 || parsed->first * factor < kLeast || parsed->first * factor > kMost) {
    return usage_error(fmt::format("--link {}: give bytes per second, such as 24G/s or 800M/s", printable(text)));
  }
  return parsed->first * factor;
}

Result<int64_t> parse_latency(const std::string& text) {
  const auto parsed = number_and_unit(text);
  const std::string unit = parsed ? parsed->second : "";
  const double factor = unit == "ns" ? 1 : unit == "us" ? 1e3 : unit == "ms" ? 1e6 : unit == "s" ? 1e9 : 0;
  if (factor == 0 || parsed->first * factor > 1e12) {
    return usage_error(fmt::format("--latency {}: give a duration, such as 80us or 2ms", printable(text)));
  }
  return static_cast<int64_t>(parsed->first * factor);
}

double tokens_per_cycle_at_depth_1(const RoutingTrace& trace) {
  double tokens = 0;
  double windows = 0;
  for (const TracedText& text : trace.texts) {
    RecordedWindows cut(text, trace.model.n_expert_used);
    while (!cut.at_end()) {
      tokens += cut.at_depth(std::min(1, cut.room())).committed;
      ++windows;
    }
  }
  return windows > 0 ? tokens / windows : 1;
}

Status choose_shape(const SimulateFlags& flags, SimulationSetup& setup) {
  TracedModel& model = setup.trace.model;
  setup.recorded_model = model.target;
  if (!flags.scale.empty()) {
    setup.shape = find_model_shape(flags.scale);
    const int layers = static_cast<int>(std::count_if(model.layers.begin(), model.layers.end(),
                                                      [](const TracedLayer& one) { return one.experts > 0; }));
    const int experts = model.layers.back().experts;
    const int used = model.n_expert_used;
    ASSIGN_OR_RETURN(setup.trace, stretch(setup.trace, *setup.shape));
    setup.notes.push_back(fmt::format(
        "the routing is that of {} ({} layers, {} of {} experts a token), stretched to {}'s shape ({} layers, {} of "
        "{}): {}",
        printable(setup.recorded_model), layers, used, experts, setup.shape->name, setup.shape->layers,
        setup.shape->n_expert_used, setup.shape->experts,
        setup.shape->experts > experts   ? "several layers beside each other make one"
        : setup.shape->experts < experts ? "each layer repeated, experts folded together"
                                         : "each layer repeated"));
    setup.as_recorded = false;
  }
  if (!flags.expert_bytes.empty()) {
    ASSIGN_OR_RETURN(const uint64_t bytes, parse_size(flags.expert_bytes));
    constexpr uint64_t kMost = 16 * kGiB;
    if (bytes == 0 || bytes > kMost) return usage_error("--expert-bytes: an expert has between 1 byte and 16G");
    for (TracedLayer& layer : setup.trace.model.layers) {
      if (layer.experts > 0) layer.extent_bytes = {bytes};
    }
    setup.as_recorded = false;
  }
  return {};
}

Status choose_costs(const SimulateFlags& flags, const RoutingTrace& recorded, SimulationSetup& setup) {
  ComputeCost& cost = setup.options.cost;
  const bool all_given = flags.draft_ms >= 0 && flags.layer_ms >= 0 && flags.expert_ms >= 0;
  if (flags.stack == "paper") {
    if (setup.hardware == nullptr || setup.shape == nullptr) {
      return usage_error("--stack paper needs one of its machines and models: give --preset and --scale");
    }
    const auto found = paper_cost(setup.hardware->name, *setup.shape, tokens_per_cycle_at_depth_1(recorded));
    CHECK(found.has_value());
    cost = *found;
  } else if (setup.hardware != nullptr) {
    cost = roofline(*setup.hardware, setup.trace.model);
  } else if (setup.shape != nullptr && !all_given) {
    return usage_error(
        "what another model takes to compute was not recorded: give --preset, or --draft-ms, --layer-ms and "
        "--expert-ms");
  } else {
    cost = measured_cost(recorded);
  }
  if (flags.draft_ms >= 0) cost.draft_token_s = flags.draft_ms / 1e3;
  if (flags.layer_ms >= 0) {
    cost.stage_s = flags.layer_ms / 1e3;
    cost.stage_token_s = 0;
  }
  if (flags.expert_ms >= 0) {
    cost.expert_s = flags.expert_ms / 1e3;
    cost.expert_row_s = 0;
  }
  setup.as_recorded = setup.as_recorded && flags.draft_ms < 0 && flags.layer_ms < 0 && flags.expert_ms < 0;
  return {};
}

Status choose_link(const SimulateFlags& flags, const RoutingTrace& recorded, SimulationSetup& setup) {
  LinkOptions& link = setup.options.link;
  link.latency_ns = setup.hardware != nullptr ? setup.hardware->link_latency_ns : kDefaultLatencyNs;
  if (!flags.latency.empty()) {
    ASSIGN_OR_RETURN(link.latency_ns, parse_latency(flags.latency));
  }
  if (!flags.link.empty()) {
    ASSIGN_OR_RETURN(link.bytes_per_s, parse_rate(flags.link));
    setup.as_recorded = false;
    // What loading showed is of another link.
    setup.trace.model.load_bytes_per_s = 0;
    return {};
  }
  if (setup.hardware != nullptr) {
    link.bytes_per_s = setup.hardware->link_bytes_per_s;
    setup.trace.model.load_bytes_per_s = 0;
    return {};
  }
  link.bytes_per_s = measured_link(recorded, link.latency_ns);
  if (link.bytes_per_s > 0) return {};
  if (recorded.model.load_bytes_per_s > 0) {
    link.bytes_per_s = recorded.model.load_bytes_per_s;
    setup.notes.push_back("the recorded run hardly waited for reads: the link is as fast as loading was");
    return {};
  }
  return usage_error("the recorded run never waited for reads, so it does not tell how fast they are: give --link");
}

Status choose_slots(const SimulateFlags& flags, SimulationSetup& setup) {
  const TracedModel& model = setup.trace.model;
  const int total = model.total_experts();
  const int least = std::min(ExpertCache::kLeastSlots, total);
  int& slots = setup.options.slots;
  slots = std::clamp(model.slots, least, total);
  if (flags.slots > 0) {
    if (flags.slots < least) return usage_error(fmt::format("--slots {}: at least {} are needed", flags.slots, least));
    slots = std::min(flags.slots, total);
    setup.as_recorded = setup.as_recorded && slots == model.slots;
    return {};
  }
  uint64_t fast = 0;
  if (!flags.fast.empty()) {
    ASSIGN_OR_RETURN(fast, parse_size(flags.fast));
  } else if (setup.hardware != nullptr) {
    fast = setup.hardware->memory_bytes;
  } else if (setup.shape != nullptr) {
    return usage_error("how much memory the other model has is not known: give --fast or --slots");
  } else {
    return {};
  }
  const uint64_t other = model.other_bytes + (setup.hardware != nullptr ? kGpuReserveBytes : 0);
  const uint64_t left = fast - std::min(fast, other);
  if (left / model.slot_bytes() < static_cast<uint64_t>(least)) {
    return {StatusKind::kMemory,
            fmt::format("{} of fast memory hold {} of other weights and scratch, and not {} experts of {}: give more "
                        "with --fast, or --slots",
                        format_size(fast), format_size(other), least, format_size(model.slot_bytes()))};
  }
  slots = static_cast<int>(std::min<uint64_t>(left / model.slot_bytes(), static_cast<uint64_t>(total)));
  setup.as_recorded = setup.as_recorded && slots == model.slots;
  return {};
}

Status choose_depth(const SimulateFlags& flags, SimulationSetup& setup) {
  const TracedModel& model = setup.trace.model;
  if (flags.depth.empty()) return {};
  if (flags.depth == "auto") {
    setup.options.depth = ReplayDepth::kAuto;
  } else {
    int depth = 0;
    const auto end = flags.depth.data() + flags.depth.size();
    const auto parsed = std::from_chars(flags.depth.data(), end, depth);
    if (parsed.ec != std::errc() || parsed.ptr != end || depth < 0 || depth > kMostDepth) {
      return usage_error(
          fmt::format("--depth {}: give auto or a number from 0 to {}", printable(flags.depth), kMostDepth));
    }
    setup.options.depth = ReplayDepth::kFixed;
    setup.options.fixed_depth = depth;
  }
  const bool none = setup.options.depth == ReplayDepth::kFixed && setup.options.fixed_depth == 0;
  if (model.draft.empty() && !none)
    return usage_error("the recorded run had no draft model: it can only be replayed at depth 0");
  return {};
}

}  // namespace

Result<SimulationSetup> set_up(const SimulateFlags& flags, const RoutingTrace& recorded) {
  SimulationSetup setup;
  setup.trace = recorded;
  if (flags.preset != "this") {
    setup.hardware = find_hardware(flags.preset);
    setup.as_recorded = false;
  }
  RETURN_IF_ERROR(choose_shape(flags, setup));
  RETURN_IF_ERROR(choose_costs(flags, recorded, setup));
  RETURN_IF_ERROR(choose_link(flags, recorded, setup));
  RETURN_IF_ERROR(choose_slots(flags, setup));
  RETURN_IF_ERROR(choose_depth(flags, setup));
  setup.options.batched_reads = recorded.model.batched_reads;
  return setup;
}

Result<std::vector<std::pair<std::string, ReplayOptions>>> choose_policies(const SimulateFlags& flags,
                                                                           const SimulationSetup& setup) {
  std::vector<std::pair<std::string, ReplayOptions>> chosen;
  const auto add = [&](std::string_view name) {
    const std::optional<SchedulePolicy> policy = find_schedule_policy(name);
    if (!policy) return false;
    chosen.emplace_back(name, setup.options).second.take(*policy);
    return true;
  };
  if (flags.policies.empty()) {
    ReplayOptions& options = chosen.emplace_back(printable(setup.trace.model.policy), setup.options).second;
    const ReplayOptions recorded = recorded_options(setup.trace);
    options.predictor = recorded.predictor;
    options.prefetch = recorded.prefetch;
    options.eviction = recorded.eviction;
    options.adaptive_shares = recorded.adaptive_shares;
    return chosen;
  }
  if (flags.policies == "all") {
    for (const SchedulePolicy& policy : schedule_policies()) add(policy.name);
    return chosen;
  }
  for (size_t begin = 0; begin <= flags.policies.size();) {
    const size_t end = std::min(flags.policies.find(',', begin), flags.policies.size());
    const std::string name = flags.policies.substr(begin, end - begin);
    if (!add(name)) {
      const std::string near = nearest(name, schedule_policy_names());
      return usage_error(fmt::format("'{}' is no policy; choose from all, {}{}", printable(name),
                                     fmt::join(schedule_policy_names(), ", "),
                                     near.empty() ? "" : fmt::format("; did you mean {}?", near)));
    }
    begin = end + 1;
  }
  return chosen;
}

}  // namespace drafthorse::cli
