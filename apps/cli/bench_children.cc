#include "bench_children.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <filesystem>

#include "child_run.h"
#include "text_file.h"

namespace drafthorse::cli {
namespace {

std::string time_words(double s) {
  return s < 90     ? fmt::format("{:.0f} s", s)
         : s < 5400 ? fmt::format("{:.0f} min", s / 60)
                    : fmt::format("{:.1f} h", s / 3600);
}

}  // namespace

void BenchChildren::begin(size_t runs) {
  total_ = runs;
  done_ = 0;
  start_ns_ = clock_.now_ns();
}

std::string BenchChildren::time_left() const {
  if (done_ == 0) return "time left unknown";
  const double each = seconds(clock_.now_ns() - start_ns_) / static_cast<double>(done_);
  return time_words(each * static_cast<double>(total_ - done_)) + " left";
}

std::string BenchChildren::progress() const { return fmt::format("{} of {} runs, {}", done_, total_, time_left()); }

void BenchChildren::show(const std::string& what) {
  const double part = total_ == 0 ? 1 : static_cast<double>(done_) / static_cast<double>(total_);
  // The numbers first, and no more than leaves room for the bar in 100 columns.
  console_.progress(fmt::format("{}/{}, {}; {}", std::min(done_ + 1, total_), total_, time_left(), what).substr(0, 58),
                    part);
}

Status BenchChildren::run(const std::vector<std::string>& arguments, const std::string& what) {
  if (*interrupts_.flag()) return interrupted_error();
  const ChildResult child = run_child(arguments, *interrupts_.flag(), [&] { show(what); });
  console_.end_progress();
  if (*interrupts_.flag()) return interrupted_error();
  if (child.exit_code == 0) return {};
  const std::string said = child.errors.substr(0, child.errors.find('\n'));
  const std::string ended = child.exit_code < 0 ? fmt::format("was ended by signal {}", -child.exit_code)
                                                : fmt::format("failed (exit code {})", child.exit_code);
  const std::string why = said.starts_with("drafthorse: ") ? said.substr(12) : said;
  return runtime_error(fmt::format("a run {}{}{}; the command was: drafthorse {}", ended, why.empty() ? "" : ": ", why,
                                   shell_words(arguments)));
}

std::optional<std::string> taken(const std::string& path) {
  std::optional<std::string> text = read_text_file(path);
  std::error_code error;
  std::filesystem::remove(path, error);
  return text;
}

std::string new_folder_name() {
  return fmt::format("drafthorse-bench-{:%Y%m%d-%H%M%S}", fmt::localtime(std::time(nullptr)));
}

}  // namespace drafthorse::cli
