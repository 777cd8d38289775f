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
  Status status = write_report(folder, html_report(file));
  if (status.ok()) status = write_output(table(summarise(file.runs)));
  if (!status.ok()) return fail(console, status);
  console.line(fmt::format("report: {}", report_path(folder)));
  const std::vector<std::string> different = differing_texts(file.runs);
  if (different.empty()) return 0;
  for (const std::string& one : different) console.error("drafthorse: TEXTS DIFFER: " + printable(one));
  return fail(console, runtime_error("texts of one request differ between contenders, which must never happen; please "
                                     "report it"));
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
  plan.target = flags.target;
  plan.draft = flags.draft;
  plan.drafter = flags.drafter;
  plan.context = flags.context;
  plan.threads = flags.threads;
  plan.io = flags.io;
  plan.kv = flags.kv;
  plan.profile = flags.profile;
  plan.folder = flags.out;
  plan.resume = flags.resume;
  plan.command_line = flags.command_line;
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
  const bool interrupted = status.kind() == StatusKind::kInterrupted;
  if (interrupted) {
    console.line(fmt::format("interrupted; go on with --resume --out {}", plan.folder));
  } else if (!status.ok()) {
    fail(console, status);
  }
  const int shown = file.runs.empty() ? 0 : show(console, file, plan.folder);
  return shown != 0 ? shown : static_cast<int>(status.kind());
}

}  // namespace drafthorse::cli
