#include "bench_command.h"

#include <fmt/format.h>

#include <algorithm>

#include "bench_batch_command.h"
#include "bench_batch_runs.h"
#include "bench_folder.h"
#include "bench_prompts.h"
#include "bench_report.h"
#include "bench_runner.h"
#include "bench_suite.h"
#include "console.h"
#include "engine_flags.h"
#include "output.h"
#include "suggest.h"

namespace drafthorse::cli {

std::vector<std::string> split_list(const std::string& list) {
  std::vector<std::string> out;
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    const std::string word = list.substr(at, end - at);
    if (!word.empty() && std::find(out.begin(), out.end(), word) == out.end()) out.push_back(word);
    at = end + 1;
  }
  return out;
}

namespace {

int show(Console& console, const BenchFile& file, const std::string& folder) {
  std::string text;
  for (const SuiteSummary& suite : summarise(file.runs)) text += (text.empty() ? "" : "\n") + table(suite);
  return show_results(console, folder, html_report(file), text, differing_texts(file.runs), "prompt");
}

int report_anew(Console& console, const std::string& folder) {
  if (const Result<std::string> text = read_runs_text(folder); text.ok() && is_batch_bench(*text)) {
    return report_batch_bench(console, folder);
  }
  const Result<BenchFile> file = read_runs(folder);
  if (!file.ok()) return fail(console, file.status());
  if (file->runs.empty()) return fail(console, file_error(fmt::format("{}: no runs in it", runs_path(folder))));
  return show(console, *file, folder);
}

}  // namespace

CLI::App* add_bench_command(CLI::App& app, BenchFlags& flags) {
  CLI::App* bench = app.add_subcommand("bench", "Compare policies, budgets and depths on a model; draw a report");
  bench->footer(R"(
Suites, each a figure of the report:
  quick      three policies at one budget; the default
  policies   time per token of every policy, at two budgets
  ablation   from reading on demand to the default policy, part by part
  cutoff     SP-MoE's cutoff layer, from 0 on, and the formula's choice
  memory     time per token over the budget
  depth      tokens drafted per step, from none on, and what auto chooses
  all        all but quick; several: --suite policies,depth
Runs of a round alternate between contenders, each in a process of its own, writing the same greedy text past any end
of text. All is kept in the folder: runs.jsonl (a line a run), report.html, the prompts. Ctrl-C ends with what is there;
--resume goes on.
With --batch a run is one of `drafthorse batch`: tokens per second by --depths, --sequences at once and --budgets, how
busy disk and processor are, and what was predicted beside what was measured, part by part.)");
  const auto text = [&](const char* flag, std::string& value, const std::string& help, const char* type) {
    return bench->add_option(flag, value, help)->type_name(type)->check(check_not_empty);
  };
  text("-m,--model", flags.target, "the model, a GGUF file", "FILE");
  text("-d,--draft", flags.draft, "a smaller model with the same vocabulary, to draft with", "FILE");
  bench->add_option("--drafter", flags.drafter, "what drafts: auto or model or shared-kv (-d), ngram, resident")
      ->type_name("NAME")
      ->check(one_of({"auto", "model", "shared-kv", "ngram", "resident"}))
      ->capture_default_str();
  CLI::Option* batch =
      bench->add_flag("--batch", flags.batch, "compare how fast `drafthorse batch` gets through many requests at once");
  text("--suite", flags.suites, "what to compare: quick, policies, ablation, cutoff, memory, depth, all", "NAMES");
  text("--policies", flags.policies, "policies to compare: names, or all", "NAMES");
  text(
      "--budgets", flags.budgets,
      "memory for everything: sizes such as 8G, or percentages: so much of the model's routed experts fits besides all "
      "else, the draft included",
      "LIST");
  text("--depths", flags.depths,
       "tokens drafted per step: auto, numbers, off for no drafting at all; of batches off,auto if not given", "LIST");
  text("--cutoffs", flags.cutoffs, "layers that policies with a cutoff read ahead: auto, numbers", "LIST");
  text("--sequences", flags.sequences, "of batches: requests worked on at once; default: 4,16,64", "LIST")
      ->needs(batch);
  text(
      "--regimes", flags.regimes,
      "of batches: how experts are read (stream, cache, layered, auto), the first with every depth, the others without "
      "a draft; default: auto",
      "NAMES")
      ->needs(batch);
  bench->add_option("--requests", flags.requests, "of batches: requests of a run; default: as many as --sequences")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20))
      ->needs(batch);
  text("--profile", flags.profile, "of batches: the machine's profile to predict with; default: the one that was kept",
       "FILE")
      ->needs(batch);
  text("--baseline", flags.baseline, "what the others are held against; default: the first", "NAME");
  text("--prompts", flags.prompts, R"(a file of lines such as {"text": "Once"}; default: six of our own)", "FILE");
  bench
      ->add_option("--prompt-count", flags.prompt_count,
                   "so many of them, spread evenly; default: 4, of quick 2, of batches all")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  bench->add_option("-n,--tokens", flags.tokens, "tokens to generate in a run; default: 64")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  bench->add_option("--rounds", flags.rounds, "how often everything is run; default: 3, of quick 1")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  bench->add_option("--ctx", flags.context, "longest text in tokens; default: 4096, or the model's own")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  bench->add_option("--threads", flags.threads, "threads to compute with; default: one per core")
      ->type_name("N")
      ->check(CLI::Range(1, 512));
  bench->add_option("--io", flags.io, "how to read: uring or pread")
      ->type_name("NAME")
      ->check(one_of({"uring", "pread"}))
      ->capture_default_str();
  add_kv_flag(*bench, flags.kv);
  text("--out", flags.out, "folder for all that is written; default: drafthorse-bench and the time", "DIR");
  CLI::Option* resume = bench->add_flag("--resume", flags.resume, "go on where the bench in --out ended");
  bench->add_flag("--dry-run", flags.dry_run, "say what would be run, and run nothing");
  CLI::Option* report = text("--report", flags.report, "make the report of such a folder anew, and run nothing", "DIR");
  report->excludes(resume);
  return bench;
}

int bench(const BenchFlags& flags) {
  Console console;
  if (!flags.report.empty()) return report_anew(console, flags.report);
  if (flags.target.empty()) return fail(console, usage_error("no model: give one with -m FILE"));
  if (flags.batch) return bench_batch(flags, console);
  BenchPlan plan;
  static_cast<BenchSetup&>(plan) = setup_of(flags);
  BenchRequest request;
  request.suites = split_list(flags.suites);
  request.policies = split_list(flags.policies);
  request.budgets = split_list(flags.budgets);
  request.depths = split_list(flags.depths);
  request.cutoffs = split_list(flags.cutoffs);
  request.baseline = flags.baseline;
  const bool nothing_asked = (flags.suites + flags.policies + flags.depths + flags.cutoffs).empty();
  const bool quick = nothing_asked || flags.suites == "quick";
  plan.tokens = flags.tokens > 0 ? flags.tokens : 64;
  plan.rounds = flags.rounds > 0 ? flags.rounds : quick ? 1 : 3;
  const auto prompt_count = static_cast<size_t>(flags.prompt_count > 0 ? flags.prompt_count : quick ? 2 : 4);
  Status status = read_bench_prompts(flags.prompts, prompt_count, plan.prompts);
  if (status.ok()) status = prepare_bench(request, plan);
  if (status.ok() && flags.dry_run) {
    status = write_output(describe(plan));
    return status.ok() ? 0 : fail(console, status);
  }
  BenchFile file;
  if (status.ok()) status = open_folder(plan, file);
  if (!status.ok()) return fail(console, status);
  status = run_bench(plan, file, console);
  return end_bench(console, plan.folder, status, !file.runs.empty(), [&] { return show(console, file, plan.folder); });
}

}  // namespace drafthorse::cli
