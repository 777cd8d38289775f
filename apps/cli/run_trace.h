// --trace and --explain: what the engine tells, as Chrome's trace events (Perfetto opens them) and as sentences.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <unordered_map>

#include "base/status.h"
#include "base/trace.h"

namespace drafthorse::cli {

struct TraceFlags {
  std::string trace_file;  // empty: no trace
  const CLI::Option* explain = nullptr;
  std::string explain_file;  // empty: standard error
};

void add_trace_flags(CLI::App& app, TraceFlags& flags);

class RunTrace final : public Trace {
 public:
  // Both are written while the engine runs, so that a run that is ended from outside leaves what it did until then.
  // nullptr: neither is wanted. kFile where one cannot be written.
  static Result<std::unique_ptr<RunTrace>> open(const TraceFlags& flags);
  ~RunTrace() override;

  // Closes the files; kFile where something could not be written.
  Status finish();

  void span(Span what, int64_t number, int64_t start_ns, int64_t end_ns) override;
  void fetched(ExpertKey key, FetchReason why, uint64_t bytes, int64_t now_ns) override;
  void arrived(ExpertKey key, bool usable, int64_t now_ns) override;
  void evicted(ExpertKey key, double worth, FetchReason for_what, int64_t now_ns) override;
  void dropped(ExpertKey key, std::string_view why, int64_t now_ns) override;
  void placed(ExpertKey key, bool on_host, double copy_s, double host_s, int64_t now_ns) override;
  void copied(ExpertKey key, bool ahead, uint64_t bytes, int64_t start_ns, int64_t end_ns) override;
  void depth(int32_t depth, std::string_view why, int64_t now_ns) override;

 private:
  RunTrace() = default;
  double microseconds(int64_t ns);
  void event(const std::string& json);
  void explain(int64_t now_ns, const std::string& sentence);

  std::string trace_path_;
  std::string explain_path_;
  std::ofstream trace_;
  std::FILE* explain_ = nullptr;
  bool first_event_ = true;
  bool link_named_ = false;
  int64_t origin_ns_ = -1;
  uint64_t next_read_ = 1;
  std::unordered_map<int64_t, uint64_t> reads_;  // by expert: the read that is under way
};

}  // namespace drafthorse::cli
