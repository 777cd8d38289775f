#include "simulate_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cmath>

#include "base/units.h"
#include "console.h"
#include "output.h"
#include "routing_file.h"
#include "simulate/hardware.h"
#include "simulate/replay.h"
#include "suggest.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kDefaultLatencyNs = 100'000;
constexpr int kMostDepth = 64;

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const SchedulePolicy& policy : schedule_policies()) names.emplace_back(policy.name);
  return names;
}

template <typename List>
std::vector<std::string> names_of(const List& list) {
  std::vector<std::string> names;
  for (const auto& one : list) names.push_back(one.name);
  return names;
}

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

// All that stays the same from policy to policy.
struct Setup {
  RoutingTrace trace;
  ReplayOptions options;
  const Hardware* hardware = nullptr;  // nullptr: the recording one
  const ModelShape* shape = nullptr;   // nullptr: the recorded one
  bool as_recorded = true;             // model, slots, link, times
  std::string recorded_model;
  std::vector<std::string> notes;
};

struct Row {
  std::string name;
  ReplayResult result;
};

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

Status choose_shape(const SimulateFlags& flags, Setup& setup) {
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

Status choose_costs(const SimulateFlags& flags, const RoutingTrace& recorded, Setup& setup) {
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

Status choose_link(const SimulateFlags& flags, const RoutingTrace& recorded, Setup& setup) {
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

Status choose_slots(const SimulateFlags& flags, Setup& setup) {
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

Status choose_depth(const SimulateFlags& flags, Setup& setup) {
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

Result<Setup> set_up(const SimulateFlags& flags, const RoutingTrace& recorded) {
  Setup setup;
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

// The policies to replay: each a name and its parts.
Result<std::vector<std::pair<std::string, ReplayOptions>>> choose_policies(const SimulateFlags& flags,
                                                                           const Setup& setup) {
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
      const std::string near = nearest(name, policy_names());
      return usage_error(fmt::format("'{}' is no policy; choose from all, {}{}", printable(name),
                                     fmt::join(policy_names(), ", "),
                                     near.empty() ? "" : fmt::format("; did you mean {}?", near)));
    }
    begin = end + 1;
  }
  return chosen;
}

std::string depth_text(const SimulateFlags& flags) { return flags.depth.empty() ? "as recorded" : flags.depth; }

std::optional<double> paper_of(const Setup& setup, const std::string& policy) {
  if (setup.hardware == nullptr || setup.shape == nullptr) return std::nullopt;
  return paper_tpot(setup.hardware->name, setup.shape->name, policy);
}

double share_of_bound(const ReplayResult& result) {
  return result.bytes() > 0 ? static_cast<double>(result.bound_bytes) / static_cast<double>(result.bytes()) : 1;
}

std::string size_per_token(const ReplayResult& result, double bytes) {
  return format_size(static_cast<uint64_t>(result.per_token(bytes)));
}

std::string guesses_text(const WindowGuesses& guesses) {
  if (guesses.drafted == 0) return "";
  const auto part = [&](int64_t count) {
    return 100.0 * static_cast<double>(count) / static_cast<double>(guesses.drafted);
  };
  if (guesses.agreement_drawn + guesses.routing_stood_in + guesses.without_scores == 0) return "";
  return fmt::format(
      "of the drafted tokens, {:.0f} % were accepted or not by lot, {:.0f} % have the routing of another token, {:.0f} "
      "% "
      "no scores: the recording did not draft there (a deeper one knows more)",
      part(guesses.agreement_drawn), part(guesses.routing_stood_in), part(guesses.without_scores));
}

std::vector<std::string> notes_of(const Setup& setup, const std::vector<Row>& rows) {
  std::vector<std::string> notes = setup.notes;
  if (const std::string guesses = guesses_text(rows.front().result.guesses); !guesses.empty()) notes.push_back(guesses);
  std::vector<std::string> blind;
  for (const Row& row : rows) {
    if (row.result.without_scores) blind.push_back(row.name);
  }
  if (!blind.empty()) {
    notes.push_back(
        fmt::format("{}: the recording has no scores that its predictor wants, so it predicts little or "
                    "nothing",
                    fmt::join(blind, ", ")));
  }
  return notes;
}

std::string row_text(const Setup& setup, const std::string& name, const ReplayResult& r, bool bounded) {
  std::string line =
      fmt::format("{:<14} {:>9.2f} {:>7.1f} {:>9.2f} {:>11} {:>6.2f}", name, 1e3 * r.per_token(r.seconds),
                  100 * r.hit_rate(), 1e3 * r.per_token(r.stall_s), size_per_token(r, static_cast<double>(r.bytes())),
                  static_cast<double>(r.tokens) / static_cast<double>(r.cycles));
  line += bounded ? fmt::format(" {:>7.0f} {:>9.2f}", 100 * share_of_bound(r), 1e3 * r.per_token(r.bound.seconds))
                  : std::string(18, ' ');
  if (const auto paper = paper_of(setup, name)) {
    line += fmt::format(" {:>9.0f}", 1e3 * *paper);
    if (const auto hits = paper_hit_rate(setup.shape->name, name)) line += fmt::format(" {:>6.1f}", 100 * *hits);
  }
  return line + '\n';
}

std::string text_of(const SimulateFlags& flags, const Setup& setup, const RoutingTrace& recorded,
                    const std::vector<Row>& rows) {
  const TracedModel& model = setup.trace.model;
  const ComputeCost& cost = setup.options.cost;
  std::string text = fmt::format("{}{}, {} tokens in {} texts\n", printable(setup.recorded_model),
                                 model.draft.empty() ? "" : " with " + printable(model.draft),
                                 rows.front().result.tokens, recorded.texts.size());
  text += fmt::format("  memory   {} of {} experts of {} fit\n", setup.options.slots, model.total_experts(),
                      format_size(model.slot_bytes()));
  text += fmt::format("  link     {:.2f} GB/s, {} us\n", setup.options.link.bytes_per_s / 1e9,
                      setup.options.link.latency_ns / 1000);
  text += fmt::format(
      "  compute  draft {:.2f} ms a token, layer {:.2f} + {:.3f} a token, expert {:.3f} + {:.4f} a row "
      "({})\n",
      1e3 * cost.draft_token_s, 1e3 * cost.stage_s, 1e3 * cost.stage_token_s, 1e3 * cost.expert_s,
      1e3 * cost.expert_row_s,
      setup.hardware == nullptr ? "as recorded"
      : flags.stack == "paper"  ? "the paper's software"
                                : "by the memory's bandwidth");
  text += fmt::format("  depth    {}\n\n", depth_text(flags));
  const bool paper = paper_of(setup, "sp-moe").has_value();
  text += fmt::format("{:<14} {:>9} {:>7} {:>9} {:>11} {:>6} {:>7} {:>9}{}\n", "", "ms/token", "hits %", "stall ms",
                      "read/token", "tok/cy", "bound %", "bound ms", paper ? "  paper ms  hits %" : "");
  if (setup.as_recorded) text += row_text(setup, "(recorded)", recorded_result(recorded), false);
  for (const Row& row : rows) text += row_text(setup, row.name, row.result, true);
  text += "\nbound: what the best choice of what to keep would read of the same demands, and the least time with it\n";
  for (const std::string& note : notes_of(setup, rows)) text += "note: " + note + '\n';
  return text;
}

Json result_json(const ReplayResult& r) {
  return {{"tokens", r.tokens},
          {"cycles", r.cycles},
          {"drafted_tokens", r.drafted},
          {"accepted_tokens", r.accepted},
          {"tpot_s", r.per_token(r.seconds)},
          {"draft_s_per_token", r.per_token(r.draft_s)},
          {"stall_s_per_token", r.per_token(r.stall_s)},
          {"hit_rate", r.hit_rate()},
          {"hits", r.cache.hits},
          {"in_flight_hits", r.cache.in_flight_hits},
          {"misses", r.cache.misses},
          {"bytes_read_per_token", r.per_token(static_cast<double>(r.bytes()))}};
}

Json json_of(const SimulateFlags& flags, const Setup& setup, const RoutingTrace& recorded,
             const std::vector<Row>& rows) {
  const ComputeCost& cost = setup.options.cost;
  Json policies = Json::array();
  for (const Row& row : rows) {
    Json one = {{"policy", row.name}};
    one.update(result_json(row.result));
    one["bound"] = {{"misses", row.result.bound.misses},
                    {"tpot_s", row.result.per_token(row.result.bound.seconds)},
                    {"bytes_read_per_token", row.result.per_token(static_cast<double>(row.result.bound_bytes))},
                    {"share", share_of_bound(row.result)}};
    one["guessed"] = {{"drafted", row.result.guesses.drafted},
                      {"agreement", row.result.guesses.agreement_drawn},
                      {"routing", row.result.guesses.routing_stood_in},
                      {"scores", row.result.guesses.without_scores}};
    if (const auto paper = paper_of(setup, row.name)) one["paper_tpot_s"] = *paper;
    policies.push_back(std::move(one));
  }
  Json json = {{"schema", 1},
               {"trace", flags.trace},
               {"model", setup.recorded_model},
               {"draft", setup.trace.model.draft},
               {"preset", flags.preset},
               {"scale", flags.scale},
               {"depth", depth_text(flags)},
               {"expert_slots", setup.options.slots},
               {"experts", setup.trace.model.total_experts()},
               {"slot_bytes", setup.trace.model.slot_bytes()},
               {"link_bytes_per_s", setup.options.link.bytes_per_s},
               {"link_latency_s", static_cast<double>(setup.options.link.latency_ns) * 1e-9},
               {"compute",
                {{"draft_token_s", cost.draft_token_s},
                 {"stage_s", cost.stage_s},
                 {"stage_token_s", cost.stage_token_s},
                 {"expert_s", cost.expert_s},
                 {"expert_row_s", cost.expert_row_s},
                 {"head_s", cost.head_s},
                 {"head_token_s", cost.head_token_s}}},
               {"recorded", result_json(recorded_result(recorded))},
               {"policies", policies},
               {"notes", notes_of(setup, rows)}};
  json["recorded"]["policy"] = recorded.model.policy;
  return json;
}

Result<std::string> simulated(const SimulateFlags& flags) {
  ASSIGN_OR_RETURN(const RoutingTrace recorded, read_routing_file(flags.trace));
  ASSIGN_OR_RETURN(const Setup setup, set_up(flags, recorded));
  ASSIGN_OR_RETURN(const auto policies, choose_policies(flags, setup));
  std::vector<Row> rows;
  for (const auto& [name, options] : policies) {
    ASSIGN_OR_RETURN(ReplayResult result, replay(setup.trace, options));
    rows.push_back({name, std::move(result)});
  }
  return flags.json ? json_text(json_of(flags, setup, recorded, rows)) : text_of(flags, setup, recorded, rows);
}

}  // namespace

CLI::App* add_simulate_command(CLI::App& app, SimulateFlags& flags) {
  CLI::App* simulate =
      app.add_subcommand("simulate", "Replay a recorded run under other policies and on other hardware");
  simulate->add_option("FILE", flags.trace, "a recorded run: what drafthorse run --trace-routing wrote")->type_name("");
  simulate->add_option("--policy", flags.policies, "names with commas between, or all; default: as recorded")
      ->type_name("NAME,..")
      ->check(check_not_empty);
  simulate->add_option("--fast", flags.fast, "fast memory for everything, such as 24G; default: as recorded")
      ->type_name("SIZE")
      ->check(check_not_empty);
  simulate->add_option("--slots", flags.slots, "experts that fit; default: by --fast")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  simulate->add_option("--link", flags.link, "what storage delivers, such as 24G/s; default: as recorded")
      ->type_name("RATE")
      ->check(check_not_empty);
  simulate->add_option("--latency", flags.latency, "of a read; default: 100us")
      ->type_name("TIME")
      ->check(check_not_empty);
  simulate->add_option("--expert-bytes", flags.expert_bytes, "size of an expert; default: the model's")
      ->type_name("SIZE")
      ->check(check_not_empty);
  const auto milliseconds = [&](const char* flag, double& value, const char* help) {
    simulate->add_option(flag, value, help)->type_name("MS")->check(CLI::Range(0.0, 1e6));
  };
  milliseconds("--draft-ms", flags.draft_ms, "drafting a token; default: as recorded");
  milliseconds("--layer-ms", flags.layer_ms, "a layer without its experts; default: as recorded");
  milliseconds("--expert-ms", flags.expert_ms, "computing an expert; default: as recorded");
  simulate->add_option("--depth", flags.depth, "tokens drafted per step: auto, or a number; default: as recorded")
      ->type_name("auto|N")
      ->check(check_not_empty);
  simulate->add_option("--preset", flags.preset, "memory, link and speed of a machine: this, rtx3090, rtx4090 or a100")
      ->type_name("NAME")
      ->check([] {
        std::vector<std::string> names = names_of(hardware_presets());
        names.insert(names.begin(), "this");
        return one_of(names);
      }())
      ->capture_default_str();
  simulate->add_option("--scale", flags.scale, "stretch the routing to the shape of another model")
      ->type_name("MODEL")
      ->check(one_of(names_of(model_shapes())));
  simulate
      ->add_option("--stack", flags.stack,
                   "whose speed a preset computes with: native, its memory's; paper, that of SP-MoE's software")
      ->type_name("NAME")
      ->check(one_of({"native", "paper"}))
      ->capture_default_str();
  simulate->add_flag("--json", flags.json, "print JSON");
  return simulate;
}

int simulate(const SimulateFlags& flags) {
  Console console;
  if (flags.trace.empty()) {
    return fail(console, usage_error("no recorded run: give the file that `drafthorse run --trace-routing` wrote"));
  }
  const Result<std::string> text = simulated(flags);
  if (!text.ok()) return fail(console, text.status());
  const Status written = write_output(*text);
  return written.ok() ? 0 : fail(console, written);
}

}  // namespace drafthorse::cli
