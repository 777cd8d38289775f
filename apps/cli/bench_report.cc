#include "bench_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/units.h"
#include "bench_page.h"
#include "svg_plot.h"

namespace drafthorse::cli {
namespace {

Spread in_ms(const Spread& s) { return {1e3 * s.median, 1e3 * s.low, 1e3 * s.high}; }

// "50% (1.92 GiB, 32 of 64 experts)"
std::string budget_words(const SuiteSummary& suite, const std::string& budget) {
  std::set<int64_t> slots;
  const BenchRun* sample = nullptr;
  for (const Summary& row : suite.rows) {
    if (row.budget != budget) continue;
    sample = row.sample;
    slots.insert(row.sample->slots);
  }
  if (sample == nullptr) return budget;
  return fmt::format("{} ({}; {} of {} experts fit)", budget, format_size(sample->ram_bytes), fmt::join(slots, " or "),
                     sample->experts);
}

// What every figure states: model, draft, budget, machine, how much was run, the command.
std::string provenance(const SuiteSummary& suite, const std::vector<std::string>& budgets) {
  const BenchRun& run = *suite.rows.front().sample;
  std::string draft = "no draft";
  for (const Summary& row : suite.rows) {
    const BenchRun& one = *row.sample;
    if (one.drafter == "none") continue;
    draft = one.draft.empty() ? "drafter " + one.drafter : "draft " + file_name(one.draft);
    if (!one.draft.empty() && one.drafter != "auto") draft += " (" + one.drafter + ")";
  }
  std::vector<std::string> memory;
  for (const std::string& budget : budgets) memory.push_back(budget_words(suite, budget));
  return escaped(fmt::format("{}, {}; budget {}; {}; {} prompt{} x {} round{}, {} tokens each, greedy. ",
                             file_name(run.model), draft, fmt::join(memory, ", "), run.machine, suite.prompts.size(),
                             suite.prompts.size() == 1 ? "" : "s", suite.rounds, suite.rounds == 1 ? "" : "s",
                             run.tokens)) +
         fmt::format("<code>{}</code>", escaped(run.bench));
}

std::string speed_note(const Summary& row, const SuiteSummary& suite) {
  if (row.contender == suite.baseline) return "baseline";
  return row.mean_speed > 0 ? fmt::format("{:.2f}x", row.mean_speed) : "";
}

// Bars of time per token, a group for each budget.
std::string bars(const SuiteSummary& suite) {
  std::vector<BarGroup> groups;
  for (const std::string& budget : suite.budgets) {
    BarGroup group{budget_words(suite, budget), {}};
    for (const Summary& row : suite.rows) {
      if (row.budget != budget) continue;
      const bool ours =
          suite.figure == "ablation" ? row.contender == suite.contenders.back() : row.sample->policy == "auto";
      group.bars.push_back({row.contender, in_ms(row.tpot_s), speed_note(row, suite), ours});
    }
    groups.push_back(std::move(group));
  }
  return bar_chart(groups, "milliseconds per token");
}

// What of a sweep lies on the axis: a number, not a word.
std::optional<int> swept_number(const std::string& text) {
  if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos || text.size() > 6) return std::nullopt;
  return std::stoi(text);
}

// The place of a mean between the numbers that were tried.
double position_of(double value, const std::vector<int>& ticks) {
  for (size_t i = 0; i + 1 < ticks.size(); ++i) {
    if (value <= ticks[i + 1]) {
      return static_cast<double>(i) + std::max(0.0, value - ticks[i]) / (ticks[i + 1] - ticks[i]);
    }
  }
  return static_cast<double>(ticks.size()) - 1;
}

// What tells a row's line from the others of a sweep: its budget, and whatever else varies.
std::string line_name(const SuiteSummary& suite, const Summary& row, std::string BenchRun::*swept) {
  std::string name = row.budget;
  for (std::string BenchRun::*other : {&BenchRun::policy, &BenchRun::depth, &BenchRun::cutoff}) {
    if (other == swept) continue;
    for (const Summary& one : suite.rows) {
      if (one.sample->*other == row.sample->*other) continue;
      name += ", " +
              std::string(other == &BenchRun::depth    ? "depth "
                          : other == &BenchRun::cutoff ? "L = "
                                                       : "") +
              row.sample->*other;
      break;
    }
  }
  return name;
}

// Time per token over what is swept. "auto" is marked where its choice lies on average.
std::string sweep(const SuiteSummary& suite, std::string BenchRun::*swept, const std::string& x_label,
                  const std::string& chosen_words) {
  std::set<int> values;
  std::vector<std::string> names;
  for (const Summary& row : suite.rows) {
    if (const auto value = swept_number(row.sample->*swept)) values.insert(*value);
    const std::string name = line_name(suite, row, swept);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  const auto choice = [&](const Summary& row) {
    return swept == &BenchRun::cutoff ? row.cutoff_layers.value_or(-1) : row.mean_depth;
  };
  // The axis goes on to where a choice beyond all numbers that were tried lies.
  for (const Summary& row : suite.rows) {
    if (values.empty() || row.sample->*swept != "auto" || choice(row) <= *values.rbegin()) continue;
    values.insert(static_cast<int>(std::ceil(choice(row))));
  }
  const std::vector<int> ticks(values.begin(), values.end());
  LineChart chart;
  for (const int tick : ticks) chart.ticks.push_back(std::to_string(tick));
  chart.x_label = x_label;
  chart.y_label = "ms per token";
  for (const std::string& name : names) {
    Line line{name, {}};
    const size_t number = chart.lines.size();
    for (const Summary& row : suite.rows) {
      if (line_name(suite, row, swept) != name) continue;
      if (const auto value = swept_number(row.sample->*swept)) {
        const auto at = std::lower_bound(ticks.begin(), ticks.end(), *value) - ticks.begin();
        line.points.push_back({static_cast<double>(at), in_ms(row.tpot_s)});
        continue;
      }
      const double ms = 1e3 * row.tpot_s.median;
      if (row.sample->*swept != "auto") {
        chart.marks.push_back({std::nullopt, ms, fmt::format("{}: {:.1f} ms ({})", row.contender, ms, name), number});
        continue;
      }
      const double chosen = choice(row);
      if (chosen < 0 || ticks.empty()) continue;
      chart.marks.push_back({position_of(chosen, ticks), ms,
                             fmt::format("{} {:.1f} on average: {:.1f} ms ({})", chosen_words, chosen, ms, name),
                             number});
    }
    std::sort(line.points.begin(), line.points.end(),
              [](const LinePoint& a, const LinePoint& b) { return a.position < b.position; });
    chart.lines.push_back(std::move(line));
  }
  return line_chart(chart);
}

std::string memory_sweep(const SuiteSummary& suite) {
  LineChart chart;
  chart.ticks = suite.budgets;
  chart.x_label = "budget: share of the routed experts that fit, or size";
  chart.y_label = "ms per token";
  for (const std::string& contender : suite.contenders) {
    Line line{contender, {}};
    for (size_t i = 0; i < suite.budgets.size(); ++i) {
      const Summary* row = suite.find(contender, suite.budgets[i]);
      if (row != nullptr) line.points.push_back({static_cast<double>(i), in_ms(row->tpot_s)});
    }
    chart.lines.push_back(std::move(line));
  }
  return line_chart(chart);
}

std::string main_figure(const SuiteSummary& suite) {
  const std::string cited = provenance(suite, suite.budgets);
  const std::string whiskers = "Bars and points are medians over rounds and prompts, whiskers the whole range. ";
  if (suite.figure == "cutoff") {
    return figure("Time per token by cutoff layer",
                  sweep(suite, &BenchRun::cutoff, "layers prefetched while drafting (L)", "the formula takes"),
                  whiskers + "The dashed line is where the formula's choice lies, the ring what it gave. " + cited);
  }
  if (suite.figure == "depth") {
    return figure("Time per token by tokens drafted per step",
                  sweep(suite, &BenchRun::depth, "tokens drafted per step", "auto drafts"),
                  whiskers +
                      "The dashed line is where the depth that auto chose lies on average, the ring what it gave. "
                      "Without a draft all of the budget holds experts. " +
                      cited);
  }
  if (suite.figure == "memory") return figure("Time per token by memory", memory_sweep(suite), whiskers + cited);
  const bool ablation = suite.figure == "ablation";
  return figure(ablation ? "Time per token, one part added after the other" : "Time per token by policy", bars(suite),
                whiskers +
                    fmt::format("Beside the values: speed against '{}' of the same budget, geometric mean over "
                                "pairs of the same round and prompt. ",
                                escaped(suite.baseline)) +
                    cited);
}

// What the engine had to say about a contender: that it cannot do what its name promises, for instance.
std::string notes(const SuiteSummary& suite) {
  std::string out;
  std::set<std::string> told;
  for (const Summary& row : suite.rows) {
    if (row.sample->note.empty() || !told.insert(row.contender).second) continue;
    out += fmt::format("<p class=\"soft\">Note: {}: {}.</p>\n", escaped(row.contender), escaped(row.sample->note));
  }
  return out;
}

std::string html_table(const SuiteSummary& suite) {
  std::string out =
      "<div class=\"scroll\"><table>\n<tr><th></th><th>budget</th><th>slots</th><th>ms per token</th>"
      "<th>speed, mean</th><th>hits</th><th>stall ms</th><th>MB read</th><th>accepted</th>"
      "<th>drafted</th><th>gained</th><th>runs</th></tr>\n";
  for (const Summary& row : suite.rows) {
    const bool drafted = row.mean_depth > 0;
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.2f} ({:.2f}-{:.2f})</td><td>{}</td><td>{:.0f} %</td>"
        "<td>{:.2f}</td><td>{:.1f}</td><td>{}</td><td>{}</td><td>{:.2f}</td><td>{}</td></tr>\n",
        escaped(row.contender), escaped(row.budget), row.sample->slots, 1e3 * row.tpot_s.median, 1e3 * row.tpot_s.low,
        1e3 * row.tpot_s.high,
        row.mean_speed > 0 ? fmt::format("{:.2f}x ({:.2f}-{:.2f})", row.mean_speed, row.speed.low, row.speed.high)
                           : "-",
        100 * row.hit_rate, 1e3 * row.stall_s_per_token, row.bytes_per_token / 1e6,
        drafted ? fmt::format("{:.0f} %", 100 * row.acceptance) : "-",
        drafted ? fmt::format("{:.1f}", row.mean_depth) : "-", row.tokens_per_verification, row.runs);
  }
  return out +
         "</table></div>\n<p class=\"soft\">Medians (range) over rounds and prompts. Stall and what is read are per "
         "generated token, drafted and gained tokens per pass of the target.</p>\n" +
         notes(suite);
}

// Shares by layer, averaged over the runs of each contender under one budget.
std::string layers_figure(const SuiteSummary& suite, const std::vector<BenchRun>& runs, const std::string& budget,
                          std::vector<double> BenchRun::*member, const std::string& title, const std::string& what) {
  HeatMap map;
  map.column_label = "layer";
  size_t columns = 0;
  bool any = false;
  for (const std::string& contender : suite.contenders) {
    std::vector<double> sums;
    std::vector<int> counts;
    for (const BenchRun& run : runs) {
      if (run.key.suite != suite.suite || run.key.contender != contender || run.key.budget != budget) continue;
      const std::vector<double>& layers = run.*member;
      sums.resize(std::max(sums.size(), layers.size()));
      counts.resize(sums.size());
      for (size_t i = 0; i < layers.size(); ++i) {
        if (layers[i] < 0) continue;
        sums[i] += layers[i];
        counts[i] += 1;
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = counts[i] > 0 ? sums[i] / counts[i] : -1;
    if (std::all_of(sums.begin(), sums.end(), [](double value) { return value < 0; })) continue;
    any = true;
    columns = std::max(columns, sums.size());
    map.rows.push_back(contender);
    map.cells.push_back(std::move(sums));
  }
  if (!any) return "";
  for (size_t i = 0; i < columns; ++i) map.columns.push_back(std::to_string(i));
  return figure(title, heat_map(map), escaped(what) + " " + provenance(suite, {budget}));
}

std::string layers_figures(const SuiteSummary& suite, const std::vector<BenchRun>& runs) {
  const std::string& budget = suite.budgets.front();
  return layers_figure(suite, runs, budget, &BenchRun::hit_rate_by_layer, "Hit rate by layer, in %",
                       "Experts that were in memory or on their way when a layer asked for them.") +
         layers_figure(suite, runs, budget, &BenchRun::recall_by_layer, "Experts foreseen by layer, in %",
                       "Of the experts that were used, those that had been predicted (recall).") +
         layers_figure(suite, runs, budget, &BenchRun::precision_by_layer, "Predictions that came true by layer, in %",
                       "Of the experts that had been predicted, those that were used (precision).");
}

std::string timeline_figure(const SuiteSummary& suite, const std::vector<BenchTimeline>& timelines) {
  std::vector<LaneGroup> groups;
  double length = 0;
  std::string budget;
  for (const BenchTimeline& one : timelines) {
    if (one.key.suite != suite.suite) continue;
    budget = one.key.budget;
    length = std::max(length, one.length_ms);
    groups.push_back({one.key.contender,
                      {{"drafting", "s2", one.draft},
                       {"verifying", "s0", one.verify},
                       {"of it stalled", "s1", one.stall},
                       {"disk: demanded", "s3", one.demand_reads},
                       {"disk: ahead, filling", "s4", one.ahead_reads}}});
  }
  if (groups.empty()) return "";
  return figure("What happens when", lanes_chart(groups, length),
                "A stretch from the middle of decoding, from the traces of runs of their own (not counted above). "
                "Stalled: the processor waits for experts with nothing to compute. " +
                    provenance(suite, {budget}));
}

}  // namespace

std::string html_report(const BenchFile& file) {
  std::string body = "<h1>drafthorse bench</h1>\n";
  if (file.runs.empty()) {
    body += "<p>No run has ended yet.</p>\n";
  } else {
    const BenchRun& run = file.runs.front();
    body += fmt::format("<p class=\"soft\">{} ({} runs); {}; drafthorse {}</p>\n", escaped(file_name(run.model)),
                        file.runs.size(), escaped(run.machine), escaped(run.version));
    body +=
        "<p class=\"soft\">A percentage as a budget says what share of the model's routed experts fits into memory "
        "besides everything else, the draft included. Contenders run one after the other within a round, so that "
        "what the machine does meanwhile hits all alike. Experts are read directly from the disk (O_DIRECT) where the "
        "file system allows it: cached pages of the file do not help.</p>\n";
  }
  body += different_texts_warning(differing_texts(file.runs));
  for (const SuiteSummary& suite : summarise(file.runs)) {
    std::string title = suite.title;
    title.front() = static_cast<char>(std::toupper(static_cast<unsigned char>(title.front())));
    body += fmt::format("<h2>{}</h2>\n", escaped(title)) + main_figure(suite) + html_table(suite) +
            layers_figures(suite, file.runs) + timeline_figure(suite, file.timelines);
  }
  if (!file.runs.empty()) {
    body += fmt::format("<h2>How to make one of these runs again</h2>\n<p><code>{}</code></p>\n",
                        escaped(file.runs.front().command));
  }
  return html_page("drafthorse bench", body);
}

}  // namespace drafthorse::cli
