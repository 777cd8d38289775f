#include "bench_batch_command.h"

#include <fmt/format.h>

#include <limits>

#include "bench_batch_report.h"
#include "bench_batch_runner.h"
#include "bench_folder.h"
#include "bench_runner.h"
#include "output.h"

namespace drafthorse::cli {
namespace {

constexpr int64_t kTokens = 64;
constexpr int kRounds = 3;

int show(Console& console, const BatchBenchFile& file, const std::string& folder) {
  return show_results(console, folder, html_report(file), table(summarise(file.runs)), differing_texts(file.runs),
                      "request");
}

// What compares single texts.
Status check_flags(const BenchFlags& flags) {
  const auto refuse = [](const char* flag) {
    return usage_error(
        fmt::format("{} compares runs of one text at a time; leave it out, or --batch (which has --depths, "
                    "--sequences, --regimes and --budgets)",
                    flag));
  };
  if (!flags.suites.empty()) return refuse("--suite");
  if (!flags.policies.empty()) return refuse("--policies");
  if (!flags.cutoffs.empty()) return refuse("--cutoffs");
  return {};
}

}  // namespace

int report_batch_bench(Console& console, const std::string& folder) {
  const Result<BatchBenchFile> file = read_batch_runs(folder);
  if (!file.ok()) return fail(console, file.status());
  return show(console, *file, folder);
}

int bench_batch(const BenchFlags& flags, Console& console) {
  BatchBenchPlan plan;
  static_cast<BenchSetup&>(plan) = setup_of(flags);
  plan.profile = flags.profile;
  plan.tokens = flags.tokens > 0 ? flags.tokens : kTokens;
  plan.rounds = flags.rounds > 0 ? flags.rounds : kRounds;
  plan.requests = flags.requests;
  BatchBenchRequest request;
  request.depths = split_list(flags.depths);
  request.regimes = split_list(flags.regimes);
  request.sequences = split_list(flags.sequences);
  request.budgets = split_list(flags.budgets);
  request.baseline = flags.baseline;
  const auto prompt_count =
      flags.prompt_count > 0 ? static_cast<size_t>(flags.prompt_count) : std::numeric_limits<size_t>::max();
  Status status = check_flags(flags);
  if (status.ok()) status = read_bench_prompts(flags.prompts, prompt_count, plan.prompts);
  if (status.ok()) status = prepare_batch_bench(request, plan);
  if (status.ok() && flags.dry_run) {
    status = write_output(describe(plan));
    return status.ok() ? 0 : fail(console, status);
  }
  BatchBenchFile file;
  if (status.ok()) status = open_folder(plan, file);
  if (!status.ok()) return fail(console, status);
  status = run_batch_bench(plan, file, console);
  return end_bench(console, plan.folder, status, !file.runs.empty(), [&] { return show(console, file, plan.folder); });
}

}  // namespace drafthorse::cli
