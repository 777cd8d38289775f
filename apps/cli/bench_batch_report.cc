#include "bench_batch_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>

#include "base/units.h"
#include "bench_page.h"
#include "svg_plot.h"

namespace drafthorse::cli {
namespace {

std::string plural(int64_t count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

// What every figure states: model, draft, budgets, machine, how much was run, the command.
std::string provenance(const BatchBenchSummary& summary, const std::vector<std::string>& budgets) {
  const BatchBenchRun& run = *summary.rows.front().sample;
  std::string draft = "no draft";
  for (const BatchSummary& row : summary.rows) {
    const BatchBenchRun& one = *row.sample;
    if (one.drafter == "none") continue;
    draft = one.draft.empty() ? "drafter " + one.drafter : "draft " + file_name(one.draft);
    if (!one.draft.empty() && one.drafter != "auto") draft += " (" + one.drafter + ")";
  }
  std::vector<std::string> memory;
  for (const std::string& budget : budgets) {
    const auto row = std::find_if(summary.rows.begin(), summary.rows.end(),
                                  [&](const BatchSummary& one) { return one.key.budget == budget; });
    if (row != summary.rows.end())
      memory.push_back(fmt::format("{} ({})", budget, format_size(row->sample->ram_bytes)));
  }
  return escaped(fmt::format("{}, {}; budget {}; {}; {}, {} for each request, greedy. ", file_name(run.model), draft,
                             fmt::join(memory, ", "), run.machine, plural(summary.rounds, "round"),
                             plural(run.tokens, "token"))) +
         fmt::format("<code>{}</code>", escaped(run.bench));
}

std::string depth_words(const std::string& depth) { return depth == "off" ? "no draft" : depth; }

// By the order of the axis: no draft, numbers, then words.
bool drafts_less(const std::string& a, const std::string& b) {
  const auto rank = [](const std::string& depth) {
    const bool number = !depth.empty() && depth.find_first_not_of("0123456789") == std::string::npos;
    // Numbers without leading zeros are in the order of their lengths, then of their digits.
    return std::tuple(depth == "off" ? 0 : number ? 1 : 2, number ? depth.size() : 0, depth);
  };
  return rank(a) < rank(b);
}

// Tokens per second by what is drafted, a line for each number of sequences. Of the first regime.
std::string by_depth(const BatchBenchSummary& summary) {
  const std::string regime = summary.rows.front().sample->regime;
  std::vector<std::string> depths;
  for (const BatchSummary& row : summary.rows) {
    const std::string& depth = row.sample->depth;
    if (row.sample->regime == regime && std::find(depths.begin(), depths.end(), depth) == depths.end()) {
      depths.push_back(depth);
    }
  }
  if (depths.size() < 2) return "";
  std::sort(depths.begin(), depths.end(), drafts_less);
  std::string out;
  for (const std::string& budget : summary.budgets) {
    LineChart chart;
    for (const std::string& depth : depths) chart.ticks.push_back(depth_words(depth));
    chart.x_label = "tokens drafted per iteration and text";
    chart.y_label = "tokens per second";
    std::vector<std::string> chosen;
    for (const int64_t sequences : summary.sequences) {
      Line line{fmt::format("{} at once", sequences), {}};
      for (const BatchSummary& row : summary.rows) {
        if (row.key.budget != budget || row.key.sequences != sequences || row.sample->regime != regime) continue;
        const auto at = std::find(depths.begin(), depths.end(), row.sample->depth) - depths.begin();
        line.points.push_back({static_cast<double>(at), row.tokens_per_s});
        if (row.sample->depth == "auto" && row.decoding) {
          chosen.push_back(fmt::format("{:.1f} with {} at once", row.decoding->depth, sequences));
        }
      }
      std::sort(line.points.begin(), line.points.end(),
                [](const LinePoint& a, const LinePoint& b) { return a.position < b.position; });
      if (!line.points.empty()) chart.lines.push_back(std::move(line));
    }
    std::string caption = "Whole jobs, prompts included. Points are medians over rounds, whiskers the whole range. ";
    if (!chosen.empty()) caption += fmt::format("auto drafted on average {}. ", fmt::join(chosen, ", "));
    out += figure("Tokens per second by depth, " + budget, line_chart(chart), caption + provenance(summary, {budget}));
  }
  return out;
}

// Over sequences, a line for each contender, or over budgets.
std::string by_sequences(const BatchBenchSummary& summary) {
  if (summary.sequences.size() < 2) return "";
  std::string out;
  for (const std::string& budget : summary.budgets) {
    LineChart chart;
    for (const int64_t sequences : summary.sequences) chart.ticks.push_back(std::to_string(sequences));
    chart.x_label = "requests at once";
    chart.y_label = "tokens per second";
    for (const std::string& contender : summary.contenders) {
      Line line{contender, {}};
      for (size_t i = 0; i < summary.sequences.size(); ++i) {
        const BatchSummary* row = summary.find(contender, budget, summary.sequences[i]);
        if (row != nullptr) line.points.push_back({static_cast<double>(i), row->tokens_per_s});
      }
      if (!line.points.empty()) chart.lines.push_back(std::move(line));
    }
    out += figure("Tokens per second by requests at once, " + budget, line_chart(chart), provenance(summary, {budget}));
  }
  return out;
}

std::string by_budget(const BatchBenchSummary& summary) {
  if (summary.budgets.size() < 2) return "";
  std::string out;
  for (const int64_t sequences : summary.sequences) {
    LineChart chart;
    chart.ticks = summary.budgets;
    chart.x_label = "budget: share of the routed experts that fit, or size";
    chart.y_label = "tokens per second";
    for (const std::string& contender : summary.contenders) {
      Line line{contender, {}};
      for (size_t i = 0; i < summary.budgets.size(); ++i) {
        const BatchSummary* row = summary.find(contender, summary.budgets[i], sequences);
        if (row != nullptr) line.points.push_back({static_cast<double>(i), row->tokens_per_s});
      }
      if (!line.points.empty()) chart.lines.push_back(std::move(line));
    }
    out += figure(fmt::format("Tokens per second by memory, {} at once", sequences), line_chart(chart),
                  provenance(summary, summary.budgets));
  }
  return out;
}

std::string share(const std::optional<double>& value) { return value ? fmt::format("{:.0f} %", 100 * *value) : "-"; }

std::string speeds_table(const BatchBenchSummary& summary) {
  std::string out =
      "<div class=\"scroll\"><table>\n<tr><th></th><th>budget</th><th>at once</th><th>slots</th><th>tokens/s</th>"
      "<th>speed, mean</th><th>decoding, tokens/s</th><th>disk</th><th>computing</th><th>drafted</th><th>accepted</th>"
      "<th>most memory</th><th>runs</th></tr>\n";
  for (const BatchSummary& row : summary.rows) {
    const Spread& speed = row.tokens_per_s;
    const bool drafted = row.decoding && row.decoding->depth > 0;
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} of {}</td><td>{:.2f} ({:.2f}-{:.2f})</td><td>{}</td><td>{}</td>"
        "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        escaped(row.key.contender), escaped(row.key.budget), row.key.sequences, row.sample->slots, row.sample->experts,
        speed.median, speed.low, speed.high,
        row.mean_speed > 0 ? fmt::format("{:.2f}x ({:.2f}-{:.2f})", row.mean_speed, row.speed.low, row.speed.high)
                           : "-",
        row.decoding ? fmt::format("{:.2f}", row.decoding->tokens_per_s) : "-", share(row.disk_share),
        row.decoding ? share(row.decoding->computing_share) : "-",
        drafted ? fmt::format("{:.1f}", row.decoding->depth) : "-", drafted ? share(row.acceptance) : "-",
        format_size(row.peak_rss_bytes), row.runs);
  }
  return out +
         "</table></div>\n<p class=\"soft\">Tokens per second of whole jobs, prompts included: medians (range) over "
         "rounds; speed against '" +
         escaped(summary.baseline) +
         "' of the same case, geometric mean over pairs of the same round. Decoding, and what follows: of iterations "
         "that only generate, the median one. Disk: bytes read per second over what the profile streams; computing: "
         "what is not waiting for experts.</p>\n";
}

// "559 / 385", measured and predicted.
std::string both(double measured, const std::optional<double>& predicted) {
  const auto words = [](double value) { return fmt::format("{:.{}f}", value, value >= 100 ? 0 : value >= 10 ? 1 : 2); };
  return words(measured) + " / " + (predicted ? words(*predicted) : "-");
}

std::string parts_table(const BatchBenchSummary& summary) {
  std::string out = "<div class=\"scroll\"><table>\n<tr><th></th><th>budget</th><th>at once</th>";
  for (const PartName& part : kParts) out += fmt::format("<th>{}</th>", part.name);
  out += "<th>off by</th><th>GB read</th><th>tokens</th></tr>\n";
  bool any = false;
  for (const BatchSummary& row : summary.rows) {
    if (!row.decoding) continue;
    any = true;
    const IterationParts& measured = row.decoding->parts;
    out += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td>", escaped(row.key.contender), escaped(row.key.budget),
                       row.key.sequences);
    for (const PartName& part : kParts) {
      const auto predicted = row.predicted ? std::optional(1e3 * ((*row.predicted).*part.seconds)) : std::nullopt;
      out += fmt::format("<td>{}</td>", both(1e3 * (measured.*part.seconds), predicted));
    }
    out += fmt::format(
        "<td>{}</td><td>{}</td><td>{:.0f}</td></tr>\n",
        row.predicted ? fmt::format("{:+.0f} %", 100 * (row.predicted->seconds / measured.seconds - 1)) : "-",
        both(measured.bytes_read * 1e-9,
             row.predicted ? std::optional(row.predicted->bytes_read * 1e-9) : std::nullopt),
        measured.tokens);
  }
  if (!any) return "<p class=\"soft\">No iteration only generated: give more tokens with -n.</p>\n";
  return out +
         "</table></div>\n<p class=\"soft\">Milliseconds, measured / predicted: the median of each over the iterations "
         "that "
         "only generate (so that parts need not add up), and the median over rounds. The prediction is the planner's "
         "(drafthorse plan --batch), told for each iteration how many texts it had, how long they were, how many "
         "tokens were drafted and how many experts fit: the model of time is judged, not guesses of acceptance. "
         "Waiting: for experts, with nothing to compute.</p>\n";
}

// The cases that timelines show, or else the first one: without a draft, and with one.
std::vector<const BatchSummary*> shown_cases(const BatchBenchSummary& summary,
                                             const std::vector<BatchTimeline>& timelines) {
  std::vector<const BatchSummary*> out;
  for (const BatchTimeline& one : timelines) {
    const BatchSummary* row = summary.find(one.key.contender, one.key.budget, one.key.sequences);
    if (row != nullptr) out.push_back(row);
  }
  if (out.empty()) out.push_back(&summary.rows.front());
  return out;
}

std::string parts_figure(const BatchBenchSummary& summary, const std::vector<BatchTimeline>& timelines) {
  std::string out;
  for (const BatchSummary* row : shown_cases(summary, timelines)) {
    if (!row->decoding) continue;
    std::vector<BarGroup> groups;
    const auto ms = [](double s) { return Spread{1e3 * s, 1e3 * s, 1e3 * s}; };
    for (const PartName& part : kParts) {
      const double measured = row->decoding->parts.*part.seconds;
      const double predicted = row->predicted ? (*row->predicted).*part.seconds : 0;
      if (measured <= 0 && predicted <= 0) continue;
      BarGroup group{part.name, {{"measured", ms(measured), "", true}}};
      if (row->predicted) group.bars.push_back({"predicted", ms(predicted), "", false});
      groups.push_back(std::move(group));
    }
    out += figure(fmt::format("An iteration, part by part: {}, {} at once", row->key.contender, row->key.sequences),
                  bar_chart(groups, "milliseconds"), provenance(summary, {row->key.budget}));
  }
  return out;
}

std::string timeline_figure(const BatchBenchSummary& summary, const std::vector<BatchTimeline>& timelines) {
  std::vector<LaneGroup> groups;
  double length = 0;
  std::string budget;
  for (const BatchTimeline& one : timelines) {
    budget = one.key.budget;
    length = std::max(length, one.length_ms);
    const auto busy = [&](const TimeSpans& spans) {
      double sum = 0;
      for (const auto& span : spans) sum += span.second;
      return fmt::format("{:.0f} %", 100 * sum / one.length_ms);
    };
    const auto lane = [&](const char* label, const char* css_class, const TimeSpans& spans) {
      return Lane{fmt::format("{}, {}", label, busy(spans)), css_class, spans};
    };
    LaneGroup group{fmt::format("{}, {} at once: {}", one.key.contender, one.key.sequences,
                                plural(static_cast<int64_t>(one.begins_ms.size()), "iteration")),
                    {lane("disk: reading", "s3", one.reads)}};
    if (!one.draft.empty()) group.lanes.push_back(lane("draft", "s2", one.draft));
    group.lanes.push_back(lane("attention, dense", "s0", one.attention));
    group.lanes.push_back(lane("experts", "s4", one.experts));
    group.lanes.push_back(lane("waiting for experts", "s1", one.stall));
    group.lanes.push_back(lane("head, choices", "s5", one.head));
    groups.push_back(std::move(group));
  }
  if (groups.empty()) return "";
  return figure("What happens when", lanes_chart(groups, length),
                "Iterations that only generate, from the middle of runs of their own with a trace (not counted above); "
                "beside each lane its share of the stretch. Below the disk: the processor, one thing at a time. " +
                    provenance(summary, {budget}));
}

}  // namespace

std::string html_report(const BatchBenchFile& file) {
  std::string body = "<h1>drafthorse bench --batch</h1>\n";
  if (file.runs.empty()) return html_page("drafthorse bench --batch", body + "<p>No run has ended yet.</p>\n");
  const BatchBenchSummary summary = summarise(file.runs);
  const BatchBenchRun& run = file.runs.front();
  body += fmt::format("<p class=\"soft\">{} ({} runs); {}; drafthorse {}</p>\n", escaped(file_name(run.model)),
                      file.runs.size(), escaped(run.machine), escaped(run.version));
  body +=
      "<p class=\"soft\">Many requests at once, prompts in turn, every answer of the same length. A percentage as a "
      "budget says what share of the model's routed experts fits besides everything else, the draft and the most texts "
      "included. Contenders run one after the other within a round, so that what the machine does meanwhile hits all "
      "alike.</p>\n";
  body += different_texts_warning(differing_texts(file.runs));
  body +=
      "<h2>Throughput</h2>\n" + by_depth(summary) + by_sequences(summary) + by_budget(summary) + speeds_table(summary);
  body += "<h2>Predicted against measured</h2>\n" + parts_table(summary) + parts_figure(summary, file.timelines);
  if (!file.timelines.empty()) body += "<h2>Timelines</h2>\n" + timeline_figure(summary, file.timelines);
  body += fmt::format("<h2>How to make one of these runs again</h2>\n<p><code>{}</code></p>\n", escaped(run.command));
  return html_page("drafthorse bench --batch", body);
}

}  // namespace drafthorse::cli
