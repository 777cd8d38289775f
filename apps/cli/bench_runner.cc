#include "bench_runner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "bench_budget.h"
#include "bench_children.h"
#include "bench_folder.h"
#include "child_run.h"
#include "commit.h"
#include "engine/engine.h"
#include "output.h"
#include "profile/measure.h"
#include "schedule/policy.h"
#include "text_file.h"

namespace drafthorse::cli {
namespace {

constexpr int kTimelinePasses = 3;  // of the baseline, that the timelines show

struct Sizes {
  BudgetSizes memory;
  int moe_layers = 0;
};

Result<Sizes> measure_sizes(const BenchPlan& plan) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   Engine::prepare(engine_options(plan, can_draft(plan), kUnlimitedBudget)));
  const Model& target = *engine->target().model;
  if (!target.config().is_moe()) {
    return usage_error(fmt::format("{} has no experts whose loading could be compared", plan.target));
  }
  Sizes sizes;
  sizes.memory = budget_sizes(*engine);
  for (int i = 0; i < target.config().n_layer; ++i) sizes.moe_layers += target.is_moe_layer(LayerId{i}) ? 1 : 0;
  return sizes;
}

Status try_budgets(const BenchPlan& plan) {
  std::set<std::pair<std::string, bool>> tried;
  for (const Suite& suite : plan.suites) {
    for (const std::string& budget : suite.budgets) {
      for (const Contender& contender : suite.contenders) {
        if (!tried.emplace(budget, contender.drafts()).second) continue;
        const uint64_t bytes = plan.ram_bytes.at(budget);
        RETURN_IF_ERROR(check_available(budget, bytes));
        const Status status = Engine::prepare(engine_options(plan, contender.drafts(), bytes)).status();
        if (!status.ok()) return {status.kind(), fmt::format("--budgets {}: {}", budget, status.message())};
      }
    }
  }
  return {};
}

// What a run would say about a contender that is none of all: what it names and cannot have.
Status collect_notes(BenchPlan& plan) {
  std::map<std::vector<std::string>, std::string> known;
  for (Suite& suite : plan.suites) {
    for (Contender& contender : suite.contenders) {
      const SchedulePolicy policy = *find_schedule_policy(contender.policy);
      const std::string predictor = contender.predictor.empty() ? std::string(policy.predictor) : contender.predictor;
      const auto [entry, fresh] = known.try_emplace({predictor, contender.drafts() ? "drafts" : ""});
      if (fresh) {
        EngineOptions options = engine_options(plan, contender.drafts(), kUnlimitedBudget);
        options.schedule.predictor = predictor;
        ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::prepare(options));
        entry->second = engine->schedule().missing_scores();
        if (entry->second.empty()) entry->second = engine->schedule().unused_fitted();
      }
      contender.note = entry->second;
    }
  }
  return {};
}

// One run, of however many.
struct Job {
  const Suite* suite = nullptr;
  const Contender* contender = nullptr;
  std::string budget;
  size_t prompt = 0;  // number of it
  int round = 1;
};

RunKey key_of(const BenchPlan& plan, const Job& job) {
  return {job.suite->name, job.contender->name, job.budget, plan.prompts[job.prompt].id, job.round};
}

// Contenders are next to each other in time, and none is always the first: what the machine does besides hits all
// alike.
std::vector<Job> jobs_of(const BenchPlan& plan) {
  std::vector<Job> jobs;
  for (const Suite& suite : plan.suites) {
    size_t first = 0;
    for (int round = 1; round <= plan.rounds; ++round) {
      for (size_t prompt = 0; prompt < plan.prompts.size(); ++prompt) {
        for (const std::string& budget : suite.budgets) {
          const size_t count = suite.contenders.size();
          for (size_t i = 0; i < count; ++i) {
            jobs.push_back({&suite, &suite.contenders[(first + i) % count], budget, prompt, round});
          }
        }
        ++first;
      }
    }
  }
  return jobs;
}

std::vector<std::string> arguments_of(const BenchPlan& plan, const Job& job) {
  std::vector<std::string> out = arguments_of(plan, "run", job.contender->drafts(), plan.ram_bytes.at(job.budget));
  out.insert(out.end(), {"-f", prompt_path(plan.folder, job.prompt), "-n", std::to_string(plan.tokens)});
  for (const std::string& flag : job.contender->flags()) out.push_back(flag);
  return out;
}

class Runner {
 public:
  Runner(const BenchPlan& plan, BenchFile& file, Console& console)
      : plan_(plan), file_(file), console_(console), children_(console) {}

  Status run() {
    std::set<RunKey> done;
    for (const BenchRun& run : file_.runs) done.insert(run.key);
    std::vector<Job> jobs;
    for (const Job& job : jobs_of(plan_)) {
      if (!done.contains(key_of(plan_, job))) jobs.push_back(job);
    }
    if (jobs.empty()) console_.line("nothing is left to run");
    for (const Suite& suite : plan_.suites) {
      for (const Contender& contender : suite.contenders) {
        if (!contender.note.empty()) console_.line(fmt::format("note: {}: {}", contender.name, contender.note));
      }
    }
    children_.begin(jobs.size());
    int round = jobs.empty() ? 0 : jobs.front().round;
    for (const Job& job : jobs) {
      if (job.round != round) {
        console_.line(fmt::format("{}, round {} of {} is done; {}", jobs[children_.done() - 1].suite->name, round,
                                  plan_.rounds, children_.progress()));
      }
      round = job.round;
      RETURN_IF_ERROR(measure(job));
      children_.count_one();
    }
    return trace_some();
  }

 private:
  Status measure(const Job& job) {
    std::vector<std::string> arguments = arguments_of(plan_, job);
    BenchRun run;
    run.key = key_of(plan_, job);
    run.figure = name_of(job.suite->figure);
    run.title = job.suite->title;
    run.baseline = job.suite->baseline;
    run.policy = job.contender->policy;
    run.depth = job.contender->depth;
    run.drafter = job.contender->drafts() ? plan_.drafter : "none";
    run.cutoff = job.contender->cutoff;
    run.model = plan_.target;
    run.draft = draft_file(plan_, job.contender->drafts());
    run.machine = machine_name();
    run.version = DRAFTHORSE_VERSION " (" DRAFTHORSE_COMMIT ")";
    run.bench = plan_.command_line;
    run.command = "drafthorse " + shell_words(arguments);
    run.note = job.contender->note;
    run.tokens = plan_.tokens;
    const std::string stats = plan_.folder + "/statistics.json";
    arguments.insert(arguments.end(), {"--stats-file", stats});
    const std::string what = fmt::format("{}: {}, {}", job.suite->name, job.contender->name, job.budget);
    const Status executed = children_.run(arguments, what);
    const std::optional<std::string> text = taken(stats);
    RETURN_IF_ERROR(executed);
    if (!text) return file_error(fmt::format("{}: the statistics of a run cannot be read", stats));
    ASSIGN_OR_RETURN(run, with_statistics(std::move(run), *text));
    RETURN_IF_ERROR(append_line(plan_.folder, json_line(to_json(run))));
    file_.runs.push_back(std::move(run));
    warn_of_differences();
    return {};
  }

  // At once: nobody wants to hear of it only after hours.
  void warn_of_differences() {
    const std::vector<std::string> different = differing_texts(file_.runs);
    if (different.size() > different_) console_.error("drafthorse: TEXTS DIFFER: " + printable(different.back()));
    different_ = different.size();
  }

  // What some contenders of the first suite do when: runs of their own, for telling costs time.
  Status trace_some() {
    if (!file_.timelines.empty() || plan_.suites.empty() || file_.runs.empty()) return {};
    const Suite& suite = plan_.suites.front();
    const std::string& budget = suite.budgets.front();
    double length_ms = 0;
    for (const BenchRun& run : file_.runs) {
      if (run.key.suite != suite.name || run.key.contender != suite.baseline || run.key.budget != budget) continue;
      length_ms = 1e3 * run.tpot_s * std::max(1.0, run.tokens_per_verification) * kTimelinePasses;
      break;
    }
    if (!(length_ms > 0)) return {};
    for (const Contender& contender : suite.contenders) {
      if (contender.name != suite.baseline && contender.name != "sp-moe" && &contender != &suite.contenders.back()) {
        continue;
      }
      const Job job{&suite, &contender, budget, 0, 1};
      std::vector<std::string> arguments = arguments_of(plan_, job);
      const std::string path = plan_.folder + "/trace.json";
      arguments.insert(arguments.end(), {"--trace", path});
      const Status executed = children_.run(arguments, "a timeline: " + contender.name);
      const std::optional<std::string> text = taken(path);
      RETURN_IF_ERROR(executed);
      if (!text) return file_error(fmt::format("{}: the trace of a run cannot be read", path));
      ASSIGN_OR_RETURN(BenchTimeline timeline, timeline_of_trace(*text, key_of(plan_, job), length_ms));
      RETURN_IF_ERROR(append_line(plan_.folder, json_line(to_json(timeline))));
      file_.timelines.push_back(std::move(timeline));
    }
    return {};
  }

  const BenchPlan& plan_;
  BenchFile& file_;
  Console& console_;
  BenchChildren children_;
  size_t different_ = 0;
};

}  // namespace

Status read_bench_prompts(const std::string& path, size_t count, std::vector<BenchPrompt>& prompts) {
  std::vector<BenchPrompt> all = own_prompts();
  if (!path.empty()) {
    const std::optional<std::string> text = read_text_file(path);
    if (!text) return file_error(fmt::format("{}: cannot be read; check the path given with --prompts", path));
    ASSIGN_OR_RETURN(all, parse_prompts(*text, path));
  }
  prompts = spread_out(all, count);
  return {};
}

Status prepare_bench(const BenchRequest& asked, BenchPlan& plan) {
  BenchRequest request = asked;
  request.has_draft = can_draft(plan);
  request.moe_layers = 1;  // what can be refused without reading the model is refused first
  RETURN_IF_ERROR(plan_suites(request).status());
  ASSIGN_OR_RETURN(const Sizes sizes, measure_sizes(plan));
  request.moe_layers = sizes.moe_layers;
  ASSIGN_OR_RETURN(plan.suites, plan_suites(request));
  if (plan.folder.empty()) {
    if (plan.resume) return usage_error("--resume: say which bench, with --out DIR");
    plan.folder = new_folder_name();
  }
  // The same budget at the second start, though this process may be of another size.
  if (plan.resume) {
    const Result<BenchFile> old = read_runs(plan.folder);
    if (!old.ok()) return old.status();
    for (const BenchRun& run : old->runs) plan.ram_bytes[run.key.budget] = run.ram_bytes;
  }
  for (const Suite& suite : plan.suites) {
    for (const std::string& budget : suite.budgets) {
      if (plan.ram_bytes.contains(budget)) continue;
      ASSIGN_OR_RETURN(plan.ram_bytes[budget], budget_bytes(budget, sizes.memory));
    }
  }
  RETURN_IF_ERROR(try_budgets(plan));
  return collect_notes(plan);
}

std::string describe(const BenchPlan& plan) {
  std::string out = fmt::format("{} runs of {} tokens: {} rounds, {} prompts\n", jobs_of(plan).size(), plan.tokens,
                                plan.rounds, plan.prompts.size());
  for (const Suite& suite : plan.suites) {
    std::vector<std::string> budgets;
    for (const std::string& budget : suite.budgets) {
      budgets.push_back(fmt::format("{} ({})", budget, format_size(plan.ram_bytes.at(budget))));
    }
    out += fmt::format("\n{}, budgets {}, against '{}':\n", suite.name, fmt::join(budgets, ", "), suite.baseline);
    for (const Contender& contender : suite.contenders) {
      out += fmt::format("  {:<30} {}{}\n", contender.name, shell_words(contender.flags()),
                         contender.drafts() ? "" : " (no draft)");
      if (!contender.note.empty()) out += fmt::format("  {:<30} note: {}\n", "", contender.note);
    }
  }
  return out;
}

Status run_bench(const BenchPlan& plan, BenchFile& file, Console& console) { return Runner(plan, file, console).run(); }

}  // namespace drafthorse::cli
