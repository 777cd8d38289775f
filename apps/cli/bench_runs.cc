#include "bench_runs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/units.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

Json key_json(const char* kind, const RunKey& key) {
  return {{"schema", 1},          {"kind", kind},         {"suite", key.suite}, {"contender", key.contender},
          {"budget", key.budget}, {"prompt", key.prompt}, {"round", key.round}};
}

RunKey read_key(BenchFields& reader) {
  return {reader.text("suite"), reader.text("contender"), reader.text("budget"), reader.text("prompt"),
          reader.count("round")};
}

std::optional<BenchRun> read_run(const Json& json) {
  BenchFields r(json);
  BenchRun run;
  run.key = read_key(r);
  run.figure = r.text("figure");
  run.title = r.text("title");
  run.baseline = r.text("baseline");
  run.policy = r.text("policy");
  run.depth = r.text("depth");
  run.cutoff = r.text("cutoff");
  run.model = r.text("model");
  run.draft = r.text("draft");
  run.drafter = r.text("drafter");
  run.machine = r.text("machine");
  run.version = r.text("version");
  run.bench = r.text("bench");
  run.command = r.text("command");
  run.note = r.text("note");
  run.tokens = r.count("tokens");
  run.generated_tokens = r.count("generated_tokens");
  run.tpot_s = r.number("tpot_s");
  run.ttft_s = r.number("ttft_s");
  run.hit_rate = r.number("hit_rate");
  run.stall_s_per_token = r.number("stall_s_per_token");
  run.bytes_per_token = r.number("bytes_per_token");
  run.acceptance = r.number("acceptance");
  run.tokens_per_verification = r.number("tokens_per_verification");
  run.mean_depth = r.number("mean_depth");
  run.cutoff_layers = r.optional_number("cutoff_layers");
  run.ram_bytes = static_cast<uint64_t>(r.count("ram_bytes"));
  run.peak_rss_bytes = static_cast<uint64_t>(r.count("peak_rss_bytes"));
  run.slots = r.count("slots");
  run.experts = r.count("experts");
  run.hit_rate_by_layer = r.numbers("hit_rate_by_layer");
  run.precision_by_layer = r.numbers("precision_by_layer");
  run.recall_by_layer = r.numbers("recall_by_layer");
  run.text_hash = r.text("text_hash");
  if (!r.good() || !(run.tpot_s > 0)) return std::nullopt;
  return run;
}

std::optional<BenchTimeline> read_timeline(const Json& json) {
  BenchFields r(json);
  BenchTimeline timeline;
  timeline.key = read_key(r);
  timeline.length_ms = r.number("length_ms");
  timeline.draft = r.spans("draft");
  timeline.verify = r.spans("verify");
  timeline.stall = r.spans("stall");
  timeline.demand_reads = r.spans("demand_reads");
  timeline.ahead_reads = r.spans("ahead_reads");
  if (!r.good() || !(timeline.length_ms > 0)) return std::nullopt;
  return timeline;
}

}  // namespace

nlohmann::ordered_json to_json(const BenchRun& run) {
  Json json = key_json("run", run.key);
  json.update({{"figure", run.figure},
               {"title", run.title},
               {"baseline", run.baseline},
               {"policy", run.policy},
               {"depth", run.depth},
               {"cutoff", run.cutoff},
               {"model", run.model},
               {"draft", run.draft},
               {"drafter", run.drafter},
               {"machine", run.machine},
               {"version", run.version},
               {"bench", run.bench},
               {"command", run.command},
               {"note", run.note},
               {"tokens", run.tokens},
               {"generated_tokens", run.generated_tokens},
               {"tpot_s", run.tpot_s},
               {"ttft_s", run.ttft_s},
               {"hit_rate", run.hit_rate},
               {"stall_s_per_token", run.stall_s_per_token},
               {"bytes_per_token", run.bytes_per_token},
               {"acceptance", run.acceptance},
               {"tokens_per_verification", run.tokens_per_verification},
               {"mean_depth", run.mean_depth},
               {"cutoff_layers", run.cutoff_layers ? Json(*run.cutoff_layers) : Json()},
               {"ram_bytes", run.ram_bytes},
               {"peak_rss_bytes", run.peak_rss_bytes},
               {"slots", run.slots},
               {"experts", run.experts},
               {"hit_rate_by_layer", run.hit_rate_by_layer},
               {"precision_by_layer", run.precision_by_layer},
               {"recall_by_layer", run.recall_by_layer},
               {"text_hash", run.text_hash}});
  return json;
}

nlohmann::ordered_json to_json(const BenchTimeline& timeline) {
  Json json = key_json("timeline", timeline.key);
  json.update({{"length_ms", timeline.length_ms},
               {"draft", timeline.draft},
               {"verify", timeline.verify},
               {"stall", timeline.stall},
               {"demand_reads", timeline.demand_reads},
               {"ahead_reads", timeline.ahead_reads}});
  return json;
}

Result<BenchRun> with_statistics(BenchRun run, const std::string& stats_text) {
  const Json json = Json::parse(stats_text, nullptr, false);
  BenchFields r(json);
  run.generated_tokens = r.count("generated_tokens");
  const double tokens = static_cast<double>(std::max<int64_t>(1, run.generated_tokens));
  run.tpot_s = r.number("decode_s") / tokens;
  run.ttft_s = r.number("ttft_s");
  run.hit_rate = r.number("hit_rate");
  run.stall_s_per_token = r.number("stall_s") / tokens;
  run.bytes_per_token = r.number("bytes_read_per_token");
  run.acceptance = r.number("acceptance");
  run.tokens_per_verification = r.number("tokens_per_verification");
  run.mean_depth = r.number("drafted_tokens") / std::max(1.0, r.number("steps"));
  run.cutoff_layers = r.optional_number("cutoff_layers");
  run.ram_bytes = static_cast<uint64_t>(r.count("ram_budget_bytes"));
  run.peak_rss_bytes = static_cast<uint64_t>(r.count("peak_rss_bytes"));
  run.slots = r.count("expert_slots");
  run.experts = r.count("experts");
  run.text_hash = r.text("text_hash");
  for (const Json& layer : r.list("decode_layers")) {
    BenchFields l(layer);
    const double there = l.number("hits") + l.number("in_flight_hits");
    const double demanded = there + l.number("misses");
    run.hit_rate_by_layer.push_back(demanded > 0 ? there / demanded : -1);
    if (!l.good()) return file_error("the statistics of a run are not what this version of drafthorse writes");
  }
  for (const Json& layer : r.list("forecast_layers")) {
    BenchFields l(layer);
    const bool predicted = l.number("predicted") > 0;
    run.precision_by_layer.push_back(predicted ? l.number("precision") : -1);
    run.recall_by_layer.push_back(l.number("used") > 0 ? l.number("recall") : -1);
    if (!l.good()) return file_error("the statistics of a run are not what this version of drafthorse writes");
  }
  if (!r.good()) return file_error("the statistics of a run are not what this version of drafthorse writes");
  if (run.generated_tokens == 0) return file_error("a run generated nothing; try other prompts");
  return run;
}

Result<BenchFile> parse_bench_file(const std::string& text, const std::string& name) {
  BenchFile file;
  RETURN_IF_ERROR(read_bench_lines(
      text, name,
      [&](const std::string& kind, const Json& json) {
        if (std::optional<BenchRun> run = kind == "run" ? read_run(json) : std::nullopt) {
          file.runs.push_back(std::move(*run));
          return true;
        }
        std::optional<BenchTimeline> timeline = kind == "timeline" ? read_timeline(json) : std::nullopt;
        if (timeline) file.timelines.push_back(std::move(*timeline));
        return timeline.has_value();
      },
      file.last_line_cut));
  return file;
}

std::vector<std::string> differing_texts(const std::vector<BenchRun>& runs) {
  std::map<std::pair<std::string, int64_t>, const BenchRun*> first;
  std::vector<std::string> out;
  for (const BenchRun& run : runs) {
    const BenchRun& reference = *first.try_emplace({run.key.prompt, run.tokens}, &run).first->second;
    if (run.text_hash == reference.text_hash) continue;
    out.push_back(fmt::format("prompt {}: '{}' at {} wrote another text ({}) than '{}' at {} ({})", run.key.prompt,
                              run.key.contender, run.key.budget, run.text_hash, reference.key.contender,
                              reference.key.budget, reference.text_hash));
  }
  return out;
}

const Summary* SuiteSummary::find(const std::string& contender, const std::string& budget) const {
  for (const Summary& row : rows) {
    if (row.contender == contender && row.budget == budget) return &row;
  }
  return nullptr;
}

namespace {

void add_once(std::vector<std::string>& words, const std::string& word) {
  if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
}

Summary summarise_one(const std::vector<const BenchRun*>& runs, const std::vector<const BenchRun*>& baseline) {
  std::map<std::pair<std::string, int64_t>, double> base;
  for (const BenchRun* run : baseline) base[{run->key.prompt, run->key.round}] = run->tpot_s;
  Summary out;
  out.contender = runs.front()->key.contender;
  out.budget = runs.front()->key.budget;
  out.sample = runs.front();
  out.runs = runs.size();
  const auto all = [&](double BenchRun::*member) {
    std::vector<double> values;
    for (const BenchRun* run : runs) values.push_back(run->*member);
    return values;
  };
  std::vector<double> ratios;
  std::vector<double> cutoffs;
  for (const BenchRun* run : runs) {
    const auto pair = base.find({run->key.prompt, run->key.round});
    if (pair != base.end()) ratios.push_back(pair->second / run->tpot_s);
    if (run->cutoff_layers) cutoffs.push_back(*run->cutoff_layers);
  }
  out.tpot_s = spread(all(&BenchRun::tpot_s));
  out.speed = spread(ratios);
  if (!ratios.empty()) out.mean_speed = geometric_mean(ratios);
  if (!cutoffs.empty()) out.cutoff_layers = median(cutoffs);
  out.hit_rate = median(all(&BenchRun::hit_rate));
  out.stall_s_per_token = median(all(&BenchRun::stall_s_per_token));
  out.bytes_per_token = median(all(&BenchRun::bytes_per_token));
  out.acceptance = median(all(&BenchRun::acceptance));
  out.tokens_per_verification = median(all(&BenchRun::tokens_per_verification));
  out.mean_depth = median(all(&BenchRun::mean_depth));
  return out;
}

}  // namespace

std::vector<SuiteSummary> summarise(const std::vector<BenchRun>& runs) {
  std::vector<SuiteSummary> out;
  std::map<std::tuple<std::string, std::string, std::string>, std::vector<const BenchRun*>> groups;
  for (const BenchRun& run : runs) {
    auto suite = std::find_if(out.begin(), out.end(), [&](const auto& one) { return one.suite == run.key.suite; });
    if (suite == out.end()) {
      SuiteSummary fresh;
      fresh.suite = run.key.suite;
      fresh.title = run.title;
      fresh.figure = run.figure;
      fresh.baseline = run.baseline;
      suite = out.insert(out.end(), std::move(fresh));
    }
    add_once(suite->budgets, run.key.budget);
    add_once(suite->contenders, run.key.contender);
    add_once(suite->prompts, run.key.prompt);
    suite->rounds = std::max(suite->rounds, run.key.round);
    groups[{run.key.suite, run.key.budget, run.key.contender}].push_back(&run);
  }
  for (SuiteSummary& suite : out) {
    for (const std::string& budget : suite.budgets) {
      for (const std::string& contender : suite.contenders) {
        const auto group = groups.find({suite.suite, budget, contender});
        if (group == groups.end()) continue;
        suite.rows.push_back(summarise_one(group->second, groups[{suite.suite, budget, suite.baseline}]));
      }
    }
  }
  return out;
}

namespace {

// As many digits as tell something.
std::string short_number(double value) { return fmt::format("{:.{}f}", value, value >= 100 ? 0 : 1); }

std::string ms_words(const Spread& s) {
  const int digits = 1e3 * s.high >= 100 ? 0 : 1;
  return fmt::format("{:.{}f} ({:.{}f}-{:.{}f})", 1e3 * s.median, digits, 1e3 * s.low, digits, 1e3 * s.high, digits);
}

}  // namespace

std::string table(const SuiteSummary& suite) {
  const auto plural = [](size_t count, const char* what) {
    return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
  };
  constexpr size_t kNameAndBudget = 35;
  size_t budget_width = 6;
  for (const std::string& budget : suite.budgets) budget_width = std::max(budget_width, budget.size());
  const size_t name_width = kNameAndBudget - std::min<size_t>(budget_width, 16);
  const auto line = [&](const std::string& name, const std::string& budget, const auto&... cells) {
    return fmt::format("{:<{}} {:>{}}", name.substr(0, name_width), name_width, budget, budget_width) +
           fmt::format(" {:>18} {:>17} {:>5} {:>6} {:>6} {:>5}\n", cells...);
  };
  std::string out = fmt::format("{}: median (range) over {} of {}; speed against '{}' of the same budget\n\n",
                                suite.title, plural(static_cast<size_t>(suite.rounds), "round"),
                                plural(suite.prompts.size(), "prompt"), suite.baseline);
  out += line("", "budget", "ms per token", "speed", "hits", "stall", "read", "draft");
  out += line("", "", "", "", "%", "ms", "MB", "ok, %");
  std::string last_budget = suite.rows.empty() ? "" : suite.rows.front().budget;
  for (const Summary& row : suite.rows) {
    if (row.budget != last_budget) out += '\n';
    last_budget = row.budget;
    const std::string speed =
        row.mean_speed > 0 ? fmt::format("{:.2f}x ({:.2f}-{:.2f})", row.speed.median, row.speed.low, row.speed.high)
                           : "-";
    const std::string accepted = row.mean_depth > 0 ? fmt::format("{:.0f}", 100 * row.acceptance) : "-";
    out += line(row.contender, row.budget, ms_words(row.tpot_s), speed, fmt::format("{:.0f}", 100 * row.hit_rate),
                short_number(1e3 * row.stall_s_per_token), short_number(row.bytes_per_token / 1e6), accepted);
  }
  return out;
}

}  // namespace drafthorse::cli
