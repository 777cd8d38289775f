#include "run_trace.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/units.h"
#include "output.h"

namespace drafthorse::cli {
namespace {

constexpr int kEngineTrack = 1;
constexpr int kLinkTrack = 3;

const char* name_of(Span what) {
  switch (what) {
    case Span::kPrompt:
      return "prompt";
    case Span::kDraft:
      return "draft";
    case Span::kVerify:
      return "verify";
    case Span::kLayer:
      return "layer";
    case Span::kStages:
      return "attention";
    case Span::kHead:
      return "head";
    default:
      return "stall";
  }
}

const char* name_of(FetchReason why) {
  switch (why) {
    case FetchReason::kDemand:
      return "demand";
    case FetchReason::kPrefetch:
      return "prefetch";
    default:
      return "fill";
  }
}

std::string name_of(ExpertKey key) { return fmt::format("layer {} expert {}", index(key.layer), index(key.expert)); }

int64_t number_of(ExpertKey key) { return int64_t{index(key.layer)} << 32 | index(key.expert); }

}  // namespace

void add_trace_flags(CLI::App& app, TraceFlags& flags) {
  flags.explain = app.add_option("--explain", flags.explain_file,
                                 "say why experts are fetched and evicted and why so many tokens are drafted, on "
                                 "standard error or to a file")
                      ->type_name("[FILE]")
                      ->expected(0, 1);
  app.add_option("--trace", flags.trace_file, "write a trace that ui.perfetto.dev and chrome://tracing open")
      ->type_name("FILE")
      ->check(check_not_empty);
}

Result<std::unique_ptr<RunTrace>> RunTrace::open(const TraceFlags& flags) {
  const std::string& trace_path = flags.trace_file;
  const bool explains = flags.explain != nullptr && flags.explain->count() > 0;
  const std::string explain_path = !explains ? "" : flags.explain_file.empty() ? "-" : flags.explain_file;
  if (trace_path.empty() && explain_path.empty()) return std::unique_ptr<RunTrace>();
  std::unique_ptr<RunTrace> out(new RunTrace());
  out->trace_path_ = trace_path;
  out->explain_path_ = explain_path;
  if (!trace_path.empty()) {
    out->trace_.open(trace_path);
    if (!out->trace_) return cannot_write(trace_path);
    out->trace_ << R"({"displayTimeUnit":"ms","traceEvents":[)";
    out->event(R"({"ph":"M","pid":1,"name":"process_name","args":{"name":"drafthorse"}})");
    out->event(
        fmt::format(R"({{"ph":"M","pid":1,"tid":{},"name":"thread_name","args":{{"name":"engine"}}}})", kEngineTrack));
  }
  if (explain_path == "-") {
    out->explain_ = stderr;
  } else if (!explain_path.empty()) {
    out->explain_ = std::fopen(explain_path.c_str(), "w");
    if (out->explain_ == nullptr) return cannot_write(explain_path);
  }
  return out;
}

RunTrace::~RunTrace() { static_cast<void>(finish()); }

Status RunTrace::finish() {
  Status status;
  if (trace_.is_open()) {
    trace_ << "\n]}\n";
    trace_.close();
    if (!trace_) status = cannot_write(trace_path_);
  }
  if (explain_ != nullptr && explain_ != stderr) {
    const bool failed = std::ferror(explain_) != 0;
    if (std::fclose(explain_) != 0 || failed) status = cannot_write(explain_path_);
  }
  explain_ = nullptr;
  return status;
}

double RunTrace::microseconds(int64_t ns) {
  if (origin_ns_ < 0) origin_ns_ = ns;
  return static_cast<double>(ns - origin_ns_) / 1000;
}

void RunTrace::event(const std::string& json) {
  trace_ << (first_event_ ? "\n" : ",\n") << json;
  first_event_ = false;
}

void RunTrace::explain(int64_t now_ns, const std::string& sentence) {
  const std::string line = fmt::format("{:12.6f} {}\n", microseconds(now_ns) / 1e6, sentence);
  std::fwrite(line.data(), 1, line.size(), explain_);
}

void RunTrace::span(Span what, int64_t number, int64_t start_ns, int64_t end_ns) {
  if (!trace_.is_open()) return;
  const bool of_layer = what == Span::kLayer || what == Span::kStages || what == Span::kStall;
  event(fmt::format(R"({{"ph":"X","pid":1,"tid":{},"name":"{}{}","ts":{:.3f},"dur":{:.3f},"args":{{"{}":{}}}}})",
                    kEngineTrack, name_of(what), what == Span::kLayer ? fmt::format(" {}", number) : "",
                    microseconds(start_ns), static_cast<double>(end_ns - start_ns) / 1000,
                    of_layer ? "layer" : "tokens", number));
}

void RunTrace::fetched(ExpertKey key, FetchReason why, uint64_t bytes, int64_t now_ns) {
  if (trace_.is_open()) {
    const uint64_t read = reads_[number_of(key)] = next_read_++;
    event(fmt::format(
        R"({{"ph":"b","cat":"read","id":{},"pid":1,"tid":2,"name":"{}","ts":{:.3f},"args":{{"why":"{}","bytes":{}}}}})",
        read, name_of(key), microseconds(now_ns), name_of(why), bytes));
  }
  if (explain_ == nullptr) return;
  const char* sentence = "nothing better to read, and a slot is free";
  if (why == FetchReason::kDemand) sentence = "the router asks for it and it is not there";
  if (why == FetchReason::kPrefetch) sentence = "the next layer is expected to ask for it";
  explain(now_ns, fmt::format("fetch  {}: {} ({})", name_of(key), sentence, format_size(bytes)));
}

void RunTrace::arrived(ExpertKey key, bool usable, int64_t now_ns) {
  const auto read = reads_.find(number_of(key));
  if (trace_.is_open() && read != reads_.end()) {
    event(fmt::format(R"({{"ph":"e","cat":"read","id":{},"pid":1,"tid":2,"name":"{}","ts":{:.3f}}})", read->second,
                      name_of(key), microseconds(now_ns)));
    reads_.erase(read);
  }
  if (explain_ != nullptr && !usable) {
    explain(now_ns, fmt::format("drop   {}: its read failed or was given up", name_of(key)));
  }
}

void RunTrace::evicted(ExpertKey key, double worth, FetchReason for_what, int64_t now_ns) {
  if (trace_.is_open()) {
    event(fmt::format(R"({{"ph":"i","s":"t","pid":1,"tid":{},"name":"evict {}","ts":{:.3f}}})", kEngineTrack,
                      name_of(key), microseconds(now_ns)));
  }
  if (explain_ != nullptr) {
    explain(now_ns, fmt::format("evict  {}: worth least of all that could go ({:.4g}), room for a {}", name_of(key),
                                worth, name_of(for_what)));
  }
}

void RunTrace::dropped(ExpertKey key, std::string_view why, int64_t now_ns) {
  if (explain_ != nullptr) explain(now_ns, fmt::format("drop   {}: not read ahead, {}", name_of(key), why));
}

void RunTrace::placed(ExpertKey key, bool on_host, double copy_s, double host_s, int64_t now_ns) {
  if (trace_.is_open()) {
    event(fmt::format(R"({{"ph":"i","s":"t","pid":1,"tid":{},"name":"{} {}","ts":{:.3f}}})", kEngineTrack,
                      on_host ? "compute here" : "copy", name_of(key), microseconds(now_ns)));
  }
  if (explain_ == nullptr) return;
  const std::string why = copy_s > 0
                              ? fmt::format("copying takes {:.2f} ms, computing here {:.2f} ms, beside each other",
                                            copy_s * 1e3, host_s * 1e3)
                              : "all are computed there";
  explain(now_ns, fmt::format("{} {}: {}", on_host ? "here  " : "copy  ", name_of(key), why));
}

void RunTrace::copied(ExpertKey key, bool ahead, uint64_t bytes, int64_t start_ns, int64_t end_ns) {
  if (trace_.is_open()) {
    if (!std::exchange(link_named_, true)) {
      event(fmt::format(
          R"({{"ph":"M","pid":1,"tid":{},"name":"thread_name","args":{{"name":"link to the device, as reckoned"}}}})",
          kLinkTrack));
    }
    event(fmt::format(
        R"({{"ph":"X","pid":1,"tid":{},"name":"{}","ts":{:.3f},"dur":{:.3f},"args":{{"ahead":{},"bytes":{}}}}})",
        kLinkTrack, name_of(key), microseconds(start_ns), static_cast<double>(end_ns - start_ns) / 1000, ahead, bytes));
  }
  if (explain_ != nullptr && ahead) {
    explain(start_ns, fmt::format("ahead  {}: expected to be needed, copied to the device ({})", name_of(key),
                                  format_size(bytes)));
  }
}

void RunTrace::depth(int32_t depth, std::string_view why, int64_t now_ns) {
  if (explain_ == nullptr) return;
  explain(now_ns, fmt::format("depth  {} tokens are drafted; {}", depth, why));
}

}  // namespace drafthorse::cli
