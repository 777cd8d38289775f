#include "batch_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/host_memory.h"
#include "base/units.h"
#include "device_report.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kSampleNs = 100'000'000;

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }
double ratio(int64_t part, int64_t whole) { return ratio(static_cast<double>(part), static_cast<double>(whole)); }

double decode_tokens_per_s(const JobReport& report) {
  return ratio(static_cast<double>(report.stats.sum.generated_tokens), report.stats.busy_s);
}
double end_to_end_tokens_per_s(const JobReport& report) {
  return ratio(static_cast<double>(report.stats.sum.generated_tokens), report.seconds);
}
double acceptance(const JobReport& report) {
  return ratio(report.stats.sum.accepted_tokens, report.stats.sum.drafted_tokens);
}
DeviceLayerStats device_stats(const JobReport& report) {
  const DeviceExperts* experts = report.engine.target().device_experts.get();
  return experts != nullptr ? total_of(experts->stats()) : DeviceLayerStats();
}
// Of the time in iterations: computing, not waiting for experts.
double computing_share(const JobReport& report) {
  const BatchIteration& sum = report.stats.sum;
  return ratio(sum.draft_s + sum.attention_s + sum.experts_s + sum.head_s, report.stats.busy_s);
}

}  // namespace

void SpeedMeter::note(int64_t now_ns, int64_t tokens) {
  // Iterations may be many: the newest sample moves until it is some way off the one before.
  if (samples_.size() > 2 && now_ns - samples_[samples_.size() - 2].ns < kSampleNs) samples_.pop_back();
  samples_.push_back({now_ns, tokens});
  // One from before the window's beginning is kept, so that it is always covered.
  while (samples_.size() > 2 && now_ns - samples_[1].ns >= kWindowNs) samples_.pop_front();
}

double SpeedMeter::tokens_per_s() const {
  if (samples_.size() < 2) return 0;
  const Sample& first = samples_.front();
  const Sample& last = samples_.back();
  return ratio(static_cast<double>(last.tokens - first.tokens), static_cast<double>(last.ns - first.ns) * 1e-9);
}

double time_left(const JobCounts& counts, int64_t generating, double tokens_per_s) {
  if (counts.answered == 0 || tokens_per_s <= 0) return -1;
  const double part = ratio(counts.generated_tokens, counts.answered_most_tokens);
  const double to_come =
      part * static_cast<double>(counts.most_tokens - counts.answered_most_tokens) - static_cast<double>(generating);
  return std::max(0.0, to_come) / tokens_per_s;
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02} min", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h", whole / 3600, whole / 60 % 60);
}

std::string progress_text(const JobCounts& counts, const BatchStats& stats, const BatchIteration& last, int64_t active,
                          double tokens_per_s) {
  std::string text = fmt::format("{} of {}", counts.done, counts.requests);
  if (tokens_per_s > 0) text += fmt::format(", {:.{}f} tokens/s", tokens_per_s, tokens_per_s < 10 ? 1 : 0);
  const double left = time_left(counts, stats.sum.generated_tokens - counts.generated_tokens, tokens_per_s);
  if (left >= 0) text += fmt::format(", {} left", format_duration(left));
  text += fmt::format(", {} active", active);
  if (stats.sum.drafted_tokens > 0) text += fmt::format(", depth {}", last.depth);
  return text;
}

void print_counts(Console& console, const JobCounts& counts) {
  std::string requests = fmt::format("{} of {} requests done", counts.done, counts.requests);
  if (counts.earlier > 0) requests += fmt::format(", {} of them before", counts.earlier);
  if (counts.failed > 0) requests += fmt::format(", {} failed (their status_code is not 200)", counts.failed);
  console.line(requests);
}

void print_summary(Console& console, const JobReport& report) {
  const BatchStats& stats = report.stats;
  const BatchIteration& sum = stats.sum;
  print_counts(console, report.counts);
  if (stats.iterations == 0) return;
  const std::string took =
      report.seconds < 60 ? fmt::format("{:.2f} s", report.seconds) : format_duration(report.seconds);
  console.line(fmt::format("{} tokens in {}: {:.2f} tokens/s, {:.2f} end to end; prompts {} tokens",
                           sum.generated_tokens, took, decode_tokens_per_s(report), end_to_end_tokens_per_s(report),
                           sum.prompt_tokens));
  console.line(fmt::format("{} iterations, {:.1f} sequences in each, {} at most", stats.iterations,
                           ratio(sum.generating, stats.iterations), stats.most_sequences));
  if (sum.drafted_tokens > 0) {
    console.line(fmt::format("draft: {:.0f} % of {} drafted tokens accepted, {:.2f} tokens per sequence and iteration",
                             100 * acceptance(report), sum.drafted_tokens,
                             ratio(sum.generated_tokens, static_cast<int64_t>(sum.generating))));
  }
  if (report.engine.target().cache != nullptr) {
    console.line(fmt::format("experts: {} of {} fit; {} read, {:.2f} GB/s; {:.0f} % of the time spent waiting for them",
                             report.engine.memory_plan().slots, report.engine.target().model->layout().total_experts(),
                             format_size(sum.bytes_read),
                             ratio(static_cast<double>(sum.bytes_read), stats.busy_s) * 1e-9,
                             100 * ratio(sum.stall_s, stats.busy_s)));
  }
  if (report.engine.device() != nullptr) {
    console.line(device_summary(report.engine, device_stats(report), sum.generated_tokens));
  }
  console.line(fmt::format("memory: {} at most, of a budget of {}", format_size(peak_resident_bytes()),
                           format_size(report.engine.ram_budget_bytes())));
}

void print_stats(Console& console, const JobReport& report) {
  console.line("\nmemory budget");
  for (const MemoryLedger::Entry& entry : report.engine.ledger().entries()) {
    console.line(fmt::format("  {:<28} {:>12}", entry.tag, format_size(entry.bytes)));
  }
  console.line(fmt::format("  {:<28} {:>12}", "in all", format_size(report.engine.ledger().total())));
  if (const std::string device = device_memory_text(report.engine); !device.empty()) {
    console.line(device.substr(0, device.size() - 1));
  }
  const BatchStats& stats = report.stats;
  const BatchIteration& sum = stats.sum;
  console.line(fmt::format(
      "\niterations: {:.2f} s = draft {:.2f} + target {:.2f} (up to routers {:.2f}, experts {:.2f}, waiting {:.2f}) + "
      "head {:.2f}, and the rest",
      stats.busy_s, sum.draft_s, sum.pass_s, sum.attention_s, sum.experts_s, sum.stall_s, sum.head_s));
  console.line(
      fmt::format("computing {:.0f} % of the time, {:.2f} of {} threads at work on average; {:.1f} tokens "
                  "verified per iteration, {:.1f} of prompts",
                  100 * computing_share(report), ratio(report.processor_seconds, stats.busy_s),
                  report.engine.target().model->pool().threads(), ratio(sum.window_tokens, stats.iterations),
                  ratio(sum.prompt_tokens, stats.iterations)));
  if (!report.explanation.empty()) console.line(report.explanation);
}

std::string iteration_line(const BatchIteration& one, int64_t number, double seconds) {
  const Json json = {{"iteration", number},
                     {"s", seconds},
                     {"depth", one.depth},
                     {"generating", one.generating},
                     {"window_tokens", one.window_tokens},
                     {"prompt_tokens", one.prompt_tokens},
                     {"cached_positions", one.cached_positions},
                     {"drafted_tokens", one.drafted_tokens},
                     {"accepted_tokens", one.accepted_tokens},
                     {"generated_tokens", one.generated_tokens},
                     {"draft_s", one.draft_s},
                     {"pass_s", one.pass_s},
                     {"attention_s", one.attention_s},
                     {"experts_s", one.experts_s},
                     {"stall_s", one.stall_s},
                     {"head_s", one.head_s},
                     {"bytes_read", one.bytes_read}};
  return json.dump();
}

Json stats_json(const JobReport& report) {
  const JobCounts& counts = report.counts;
  const BatchStats& stats = report.stats;
  const BatchIteration& sum = stats.sum;
  const Engine& engine = report.engine;
  const EngineOptions& options = engine.options();
  Json memory = Json::array();
  for (const MemoryLedger::Entry& entry : engine.ledger().entries()) {
    memory.push_back({{"tag", entry.tag}, {"bytes", entry.bytes}});
  }
  return {{"schema", 1},
          {"model", options.target_path},
          {"draft", options.draft_path},
          {"interrupted", report.interrupted},
          {"requests", counts.requests},
          {"done", counts.done},
          {"failed", counts.failed},
          {"done_before", counts.earlier},
          {"answered", counts.answered},
          {"answered_prompt_tokens", counts.prompt_tokens},
          {"answered_generated_tokens", counts.generated_tokens},
          {"generated_tokens", sum.generated_tokens},
          {"prompt_tokens", sum.prompt_tokens},
          {"decode_tokens_per_s", decode_tokens_per_s(report)},
          {"end_to_end_tokens_per_s", end_to_end_tokens_per_s(report)},
          {"seconds", report.seconds},
          {"load_s", report.load_seconds},
          {"busy_s", stats.busy_s},
          {"iterations", stats.iterations},
          {"most_sequences", stats.most_sequences},
          {"mean_sequences", ratio(sum.generating, stats.iterations)},
          {"window_tokens", sum.window_tokens},
          {"drafted_tokens", sum.drafted_tokens},
          {"accepted_tokens", sum.accepted_tokens},
          {"acceptance", acceptance(report)},
          {"draft_s", sum.draft_s},
          {"pass_s", sum.pass_s},
          {"attention_s", sum.attention_s},
          {"experts_s", sum.experts_s},
          {"stall_s", sum.stall_s},
          {"head_s", sum.head_s},
          {"stall_share", ratio(sum.stall_s, stats.busy_s)},
          {"computing_share", computing_share(report)},
          {"processor_s", report.processor_seconds},
          {"bytes_read", sum.bytes_read},
          {"bytes_per_s", ratio(static_cast<double>(sum.bytes_read), stats.busy_s)},
          {"explanation", report.explanation},
          {"regime", options.batch ? options.batch->regime : ""},
          {"kv", options.kv_type},
          {"drafter", options.drafter},
          {"draft_depth", options.draft_depth ? Json(*options.draft_depth) : Json("auto")},
          {"threads", options.threads},
          {"isa", options.isa},
          {"io", options.io},
          {"context", engine.context()},
          {"expert_slots", engine.memory_plan().slots},
          {"experts", engine.target().model->layout().total_experts()},
          {"device", device_json(engine, device_stats(report))},
          {"peak_rss_bytes", peak_resident_bytes()},
          {"ram_budget_bytes", engine.ram_budget_bytes()},
          {"memory", memory}};
}

}  // namespace drafthorse::cli
