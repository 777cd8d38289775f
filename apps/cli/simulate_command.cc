#include "simulate_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/units.h"
#include "console.h"
#include "output.h"
#include "routing_file.h"
#include "simulate_setup.h"
#include "suggest.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

template <typename List>
std::vector<std::string> names_of(const List& list) {
  std::vector<std::string> names;
  for (const auto& one : list) names.push_back(one.name);
  return names;
}

struct Row {
  std::string name;
  ReplayResult result;
};

std::string depth_text(const SimulateFlags& flags) { return flags.depth.empty() ? "as recorded" : flags.depth; }

std::optional<double> paper_of(const SimulationSetup& setup, const std::string& policy) {
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

std::vector<std::string> notes_of(const SimulationSetup& setup, const std::vector<Row>& rows) {
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

std::string row_text(const SimulationSetup& setup, const std::string& name, const ReplayResult& r, bool bounded) {
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

std::string text_of(const SimulateFlags& flags, const SimulationSetup& setup, const RoutingTrace& recorded,
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

Json json_of(const SimulateFlags& flags, const SimulationSetup& setup, const RoutingTrace& recorded,
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
  ASSIGN_OR_RETURN(const SimulationSetup setup, set_up(flags, recorded));
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
