// median_parts(), summarise() and table() of bench_batch_runs.h.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "base/units.h"
#include "bench_batch_runs.h"

namespace drafthorse::cli {

IterationParts median_parts(const std::vector<IterationParts>& all) {
  const auto of = [&](double IterationParts::*member) {
    std::vector<double> values;
    for (const IterationParts& one : all) values.push_back(one.*member);
    return median(std::move(values));
  };
  IterationParts out;
  for (const auto member :
       {&IterationParts::seconds, &IterationParts::draft_s, &IterationParts::attention_s, &IterationParts::experts_s,
        &IterationParts::stall_s, &IterationParts::head_s, &IterationParts::bytes_read, &IterationParts::tokens}) {
    out.*member = of(member);
  }
  return out;
}

namespace {

template <typename T>
void add_once(std::vector<T>& list, const T& one) {
  if (std::find(list.begin(), list.end(), one) == list.end()) list.push_back(one);
}

BatchBenchRun::Decoding median_decoding(const std::vector<BatchBenchRun::Decoding>& all) {
  using Decoding = BatchBenchRun::Decoding;
  Decoding out;
  for (const auto member : {&Decoding::tokens_per_s, &Decoding::depth, &Decoding::acceptance, &Decoding::kv_length,
                            &Decoding::computing_share}) {
    std::vector<double> values;
    for (const Decoding& one : all) values.push_back(one.*member);
    out.*member = median(std::move(values));
  }
  std::vector<IterationParts> parts;
  for (const Decoding& one : all) {
    out.iterations += one.iterations;
    parts.push_back(one.parts);
  }
  out.parts = median_parts(parts);
  return out;
}

BatchSummary summarise_one(const std::vector<const BatchBenchRun*>& runs,
                           const std::vector<const BatchBenchRun*>& baseline) {
  std::map<int64_t, double> base;  // by round
  for (const BatchBenchRun* run : baseline) base[run->key.round] = run->tokens_per_s;
  BatchSummary out;
  out.key = runs.front()->key;
  out.sample = runs.front();
  out.runs = runs.size();
  std::vector<double> speeds, ratios, acceptances, shares;
  std::vector<BatchBenchRun::Decoding> decoding;
  std::vector<IterationParts> predicted;
  for (const BatchBenchRun* run : runs) {
    speeds.push_back(run->tokens_per_s);
    acceptances.push_back(run->acceptance);
    if (const auto pair = base.find(run->key.round); pair != base.end()) {
      ratios.push_back(run->tokens_per_s / pair->second);
    }
    if (const std::optional<double> share = disk_share(*run)) shares.push_back(*share);
    if (run->decoding) decoding.push_back(*run->decoding);
    if (run->predicted) predicted.push_back(*run->predicted);
    out.peak_rss_bytes = std::max(out.peak_rss_bytes, run->peak_rss_bytes);
  }
  out.tokens_per_s = spread(speeds);
  out.speed = spread(ratios);
  if (!ratios.empty()) out.mean_speed = geometric_mean(ratios);
  out.acceptance = median(acceptances);
  if (!shares.empty()) out.disk_share = median(shares);
  if (!decoding.empty()) out.decoding = median_decoding(decoding);
  if (!predicted.empty()) out.predicted = median_parts(predicted);
  return out;
}

std::string in_ms(double s) { return fmt::format("{:.{}f}", 1e3 * s, s >= 0.1 ? 0 : s >= 0.01 ? 1 : 2); }
std::string percent(double share) { return fmt::format("{:.0f}", 100 * share); }

}  // namespace

const BatchSummary* BatchBenchSummary::find(const std::string& contender, const std::string& budget,
                                            int64_t at_once) const {
  for (const BatchSummary& row : rows) {
    if (row.key.contender == contender && row.key.budget == budget && row.key.sequences == at_once) return &row;
  }
  return nullptr;
}

BatchBenchSummary summarise(const std::vector<BatchBenchRun>& runs) {
  BatchBenchSummary out;
  std::map<std::tuple<std::string, int64_t, std::string>, std::vector<const BatchBenchRun*>> groups;
  for (const BatchBenchRun& run : runs) {
    if (out.baseline.empty()) out.baseline = run.baseline;
    add_once(out.budgets, run.key.budget);
    add_once(out.sequences, run.key.sequences);
    add_once(out.contenders, run.key.contender);
    out.rounds = std::max(out.rounds, run.key.round);
    groups[{run.key.budget, run.key.sequences, run.key.contender}].push_back(&run);
  }
  for (const std::string& budget : out.budgets) {
    for (const int64_t sequences : out.sequences) {
      for (const std::string& contender : out.contenders) {
        const auto group = groups.find({budget, sequences, contender});
        if (group == groups.end()) continue;
        out.rows.push_back(summarise_one(group->second, groups[{budget, sequences, out.baseline}]));
      }
    }
  }
  return out;
}

std::string table(const BatchBenchSummary& summary) {
  constexpr size_t kName = 22;
  const auto line = [&](const std::string& name, const auto&... cells) {
    return fmt::format("  {:<{}}", name.substr(0, kName), kName) +
           fmt::format(" {:>19} {:>6} {:>8} {:>7} {:>7} {:>5} {:>5} {:>5} {:>4}\n", cells...);
  };
  std::string out = fmt::format(
      "tokens per second: median (range) over {} round{}; speed against '{}' of the same case\n"
      "of iterations that only generate: milliseconds, predicted, off by %; disk: of the profiled rate\n",
      summary.rounds, summary.rounds == 1 ? "" : "s", summary.baseline);
  const BatchRunKey* last = nullptr;
  for (const BatchSummary& row : summary.rows) {
    if (last == nullptr || last->budget != row.key.budget || last->sequences != row.key.sequences) {
      out +=
          fmt::format("\n{} ({}), {} at once\n", row.key.budget, format_size(row.sample->ram_bytes), row.key.sequences);
      out += line("", "tokens/s", "speed", "decoding", "iter, ms", "predict", "off %", "disk%", "comp%", "ok %");
    }
    last = &row.key;
    const Spread& speed = row.tokens_per_s;
    const int digits = speed.high >= 100 ? 0 : 1;
    const bool drafted = row.decoding ? row.decoding->depth > 0 : row.acceptance > 0;
    out += line(row.key.contender,
                fmt::format("{:.{}f} ({:.{}f}-{:.{}f})", speed.median, digits, speed.low, digits, speed.high, digits),
                row.mean_speed > 0 ? fmt::format("{:.2f}x", row.mean_speed) : "-",
                row.decoding ? fmt::format("{:.1f}", row.decoding->tokens_per_s) : "-",
                row.decoding ? in_ms(row.decoding->parts.seconds) : "-",
                row.predicted ? in_ms(row.predicted->seconds) : "-",
                row.predicted && row.decoding
                    ? fmt::format("{:+.0f}", 100 * (row.predicted->seconds / row.decoding->parts.seconds - 1))
                    : "-",
                row.disk_share ? percent(*row.disk_share) : "-",
                row.decoding ? percent(row.decoding->computing_share) : "-", drafted ? percent(row.acceptance) : "-");
  }
  return out;
}

}  // namespace drafthorse::cli
