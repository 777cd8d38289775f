#include "bench_batch_runner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/units.h"
#include "batch_plan_input.h"
#include "bench_batch_measure.h"
#include "bench_budget.h"
#include "bench_children.h"
#include "bench_folder.h"
#include "child_run.h"
#include "commit.h"
#include "engine/engine.h"
#include "output.h"
#include "profile/measure.h"
#include "profile_file.h"

namespace drafthorse::cli {
namespace {

constexpr size_t kTimelineIterations = 3;

EngineOptions engine_options(const BatchBenchPlan& plan, const BatchContender& contender, uint64_t ram_bytes) {
  EngineOptions options = engine_options(plan, contender.drafts(), ram_bytes);
  if (contender.drafts() && contender.depth != "auto") options.draft_depth = std::stoi(contender.depth);
  options.device.name = kNoDevice;  // what is predicted is the CPU's time
  options.batch = BatchOptions{.sequences = 1, .typical_tokens = 1, .requests = 1, .regime = contender.regime};
  return options;
}

// Tokens of a request, prompt and answer, on average over those of a job; as `drafthorse batch` plans memory by.
class RequestSizes {
 public:
  static Result<RequestSizes> measure(const BatchBenchPlan& plan, const Engine& engine) {
    RequestSizes out;
    for (const BenchPrompt& prompt : plan.prompts) {
      const auto tokens = static_cast<int64_t>(engine.tokenizer().tokenize(prompt.text).size()) + plan.tokens;
      if (tokens > engine.context()) {
        return usage_error(fmt::format(
            "prompt {}: with {} tokens generated it takes {}, and the context is {}; give fewer with -n, or --ctx",
            prompt.id, plan.tokens, tokens, engine.context()));
      }
      out.tokens_.push_back(tokens);
    }
    return out;
  }

  int32_t typical(int64_t requests) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < requests; ++i) sum += tokens_[static_cast<size_t>(i) % tokens_.size()];
    return static_cast<int32_t>((sum + requests - 1) / requests);
  }

 private:
  std::vector<int64_t> tokens_;  // by prompt
};

void set_job(const BatchBenchPlan& plan, const RequestSizes& sizes, int64_t sequences, EngineOptions& options) {
  options.batch->sequences = static_cast<int32_t>(sequences);
  options.batch->requests = plan.requests_of(sequences);
  options.batch->typical_tokens = sizes.typical(options.batch->requests);
}

// Why the contender cannot have so many at once; empty: it can.
Result<std::string> missing_memory(const BatchBenchPlan& plan, const RequestSizes& sizes,
                                   const BatchContender& contender, uint64_t ram_bytes, int64_t sequences) {
  EngineOptions options = engine_options(plan, contender, ram_bytes);
  set_job(plan, sizes, sequences, options);
  const Result<std::unique_ptr<Engine>> engine = Engine::prepare(options);
  if (engine.status().kind() == StatusKind::kMemory) return engine.status().message();
  RETURN_IF_ERROR(engine.status());
  const uint64_t each = (*engine)->sequence_bytes(options.batch->typical_tokens);
  const auto fit = static_cast<int64_t>((*engine)->batch_bytes() / std::max<uint64_t>(1, each));
  if (fit >= sequences) return std::string();
  return fmt::format("there is memory for the texts of {}", fit);
}

// Leaves out what does not fit, with a note.
Status choose_cases(BatchBenchPlan& plan, const RequestSizes& sizes) {
  std::string first_missing;
  for (const std::string& budget : plan.grid.budgets) {
    const uint64_t bytes = plan.ram_bytes.at(budget);
    RETURN_IF_ERROR(check_available(budget, bytes));
    for (const int64_t sequences : plan.grid.sequences) {
      BatchCase one{budget, sequences, {}};
      for (const BatchContender& contender : plan.grid.contenders) {
        ASSIGN_OR_RETURN(const std::string missing, missing_memory(plan, sizes, contender, bytes, sequences));
        if (missing.empty()) {
          one.contenders.push_back(contender);
          continue;
        }
        const std::string what =
            fmt::format("{}, {} at once, '{}': does not fit: {}", budget, sequences, contender.name, missing);
        if (first_missing.empty()) first_missing = what;
        plan.notes.push_back(what + "; left out");
      }
      if (!one.contenders.empty()) plan.cases.push_back(std::move(one));
    }
  }
  if (!plan.cases.empty()) return {};
  return memory_error(fmt::format("nothing fits; {}", first_missing));
}

// The model of time; without a profile none, which is no reason not to measure.
Status make_model(BatchBenchPlan& plan, const Engine& engine, const RequestSizes& sizes) {
  const Result<std::string> path = plan.profile.empty() ? profile_path() : Result<std::string>(plan.profile);
  Result<MachineProfile> profile = path.ok() ? load_profile(*path) : Result<MachineProfile>(path.status());
  if (!profile.ok() && !plan.profile.empty()) return profile.status();
  Status status = profile.status();
  if (status.ok()) {
    const int tokens = sizes.typical(static_cast<int64_t>(plan.prompts.size()));
    Result<BatchPlanInput> model = plan_input(engine, *profile, {.prompt_tokens = tokens});
    status = model.status();
    if (status.ok()) plan.model = std::move(model).value();
  }
  if (!status.ok()) plan.notes.push_back("nothing is predicted: " + status.message());
  return {};
}

std::vector<std::string> arguments_of(const BatchBenchPlan& plan, const BatchCase& at, const BatchContender& who) {
  std::vector<std::string> out = arguments_of(plan, "batch", who.drafts(), plan.ram_bytes.at(at.budget));
  out.insert(out.end(), {"--in", requests_path(plan.folder, plan.requests_of(at.sequences)), "--out",
                         plan.folder + "/results.jsonl", "--sequences", std::to_string(at.sequences), "--device",
                         std::string(kNoDevice)});
  for (const std::string& flag : who.flags()) out.push_back(flag);
  return out;
}

// One run, of however many.
struct Job {
  const BatchCase* at = nullptr;
  const BatchContender* who = nullptr;
  int round = 1;

  BatchRunKey key() const { return {who->name, at->budget, at->sequences, round}; }
};

// Contenders are next to each other in time, and none is always the first: what the machine does besides hits all
// alike.
std::vector<Job> jobs_of(const BatchBenchPlan& plan) {
  std::vector<Job> jobs;
  for (int round = 1; round <= plan.rounds; ++round) {
    size_t first = static_cast<size_t>(round) - 1;
    for (const BatchCase& at : plan.cases) {
      const size_t count = at.contenders.size();
      for (size_t i = 0; i < count; ++i) jobs.push_back({&at, &at.contenders[(first + i) % count], round});
      ++first;
    }
  }
  return jobs;
}

class Runner {
 public:
  Runner(const BatchBenchPlan& plan, BatchBenchFile& file, Console& console)
      : plan_(plan), file_(file), console_(console), children_(console) {}

  Status run() {
    std::set<BatchRunKey> done;
    for (const BatchBenchRun& run : file_.runs) done.insert(run.key);
    std::vector<Job> jobs;
    for (const Job& job : jobs_of(plan_)) {
      if (!done.contains(job.key())) jobs.push_back(job);
    }
    if (jobs.empty()) console_.line("nothing is left to run");
    for (const std::string& note : plan_.notes) console_.line("note: " + note);
    children_.begin(jobs.size());
    int round = jobs.empty() ? 0 : jobs.front().round;
    for (const Job& job : jobs) {
      if (job.round != round) {
        console_.line(fmt::format("round {} of {} is done; {}", round, plan_.rounds, children_.progress()));
      }
      round = job.round;
      RETURN_IF_ERROR(measure(job));
      children_.count_one();
    }
    return trace_some();
  }

 private:
  struct Written {
    std::string stats, results, trace;
    std::vector<IterationLine> iterations;
  };

  // A run to its end, and what it wrote, which is then gone from the folder.
  Result<Written> carry_out(const Job& job, bool traced) {
    const std::string results = plan_.folder + "/results.jsonl";
    const std::string stats = plan_.folder + "/statistics.json";
    const std::string iterations = plan_.folder + "/iterations.jsonl";
    const std::string trace = plan_.folder + "/trace.json";
    taken(results);  // of a bench that was killed
    std::vector<std::string> arguments = arguments_of(plan_, *job.at, *job.who);
    arguments.insert(arguments.end(), {"--stats-file", stats, "--iterations-file", iterations});
    if (traced) arguments.insert(arguments.end(), {"--trace", trace});
    const Status executed = children_.run(arguments, fmt::format("{}{}, {}, {} at once", traced ? "a timeline: " : "",
                                                                 job.who->name, job.at->budget, job.at->sequences));
    const std::optional<std::string> stats_text = taken(stats);
    const std::optional<std::string> iterations_text = taken(iterations);
    const std::optional<std::string> results_text = taken(results);
    const std::optional<std::string> trace_text = traced ? taken(trace) : std::string();
    RETURN_IF_ERROR(executed);
    if (!stats_text || !iterations_text || !results_text || !trace_text) {
      return file_error(fmt::format("{}: what a run wrote there cannot be read", plan_.folder));
    }
    ASSIGN_OR_RETURN(std::vector<IterationLine> lines, parse_iterations(*iterations_text));
    return Written{*stats_text, *results_text, *trace_text, std::move(lines)};
  }

  Status measure(const Job& job) {
    BatchBenchRun run;
    run.key = job.key();
    run.baseline = plan_.grid.baseline;
    run.depth = job.who->depth;
    run.regime = job.who->regime;
    run.model = plan_.target;
    run.draft = draft_file(plan_, job.who->drafts());
    run.drafter = job.who->drafts() ? plan_.drafter : "none";
    run.kv = plan_.kv;
    run.machine = machine_name();
    run.version = DRAFTHORSE_VERSION " (" DRAFTHORSE_COMMIT ")";
    run.bench = plan_.command_line;
    run.command = "drafthorse " + shell_words(arguments_of(plan_, *job.at, *job.who));
    run.tokens = plan_.tokens;
    run.requests = plan_.requests_of(job.at->sequences);
    ASSIGN_OR_RETURN(const Written written, carry_out(job, false));
    ASSIGN_OR_RETURN(run, with_batch_statistics(std::move(run), written.stats, written.iterations, written.results));
    if (plan_.model) {
      run.link_bytes_per_s = plan_.model->platform.link_bytes_per_s;
      run.predicted = predict_parts(*plan_.model, run, written.iterations);
    }
    if (run.most_sequences < run.key.sequences) {
      console_.line(fmt::format("note: {}, {}: {} were worked on at once, not {}", run.key.contender, run.key.budget,
                                run.most_sequences, run.key.sequences));
    }
    RETURN_IF_ERROR(append_line(plan_.folder, json_line(to_json(run))));
    file_.runs.push_back(std::move(run));
    // At once: nobody wants to hear of it only after hours.
    const std::vector<std::string> different = differing_texts(file_.runs);
    if (different.size() > different_) console_.error("drafthorse: TEXTS DIFFER: " + printable(different.back()));
    different_ = different.size();
    return {};
  }

  // The first contender without a draft, and the fastest with one.
  std::vector<const BatchContender*> contrasted(const BatchCase& at) const {
    const BatchBenchSummary summary = summarise(file_.runs);
    const BatchContender* plain = nullptr;
    const BatchContender* drafted = nullptr;
    double best = -1;
    for (const BatchContender& one : at.contenders) {
      const BatchSummary* row = summary.find(one.name, at.budget, at.sequences);
      if (!one.drafts() && plain == nullptr) plain = &one;
      if (!one.drafts() || row == nullptr || row->tokens_per_s.median <= best) continue;
      best = row->tokens_per_s.median;
      drafted = &one;
    }
    std::vector<const BatchContender*> out;
    if (plain != nullptr) out.push_back(plain);
    if (drafted != nullptr) out.push_back(drafted);
    return out;
  }

  // Runs of their own, for telling costs time.
  Status trace_some() {
    const BatchCase& at = plan_.cases.front();
    for (const BatchContender* one : contrasted(at)) {
      const Job job{&at, one, 1};
      if (std::any_of(file_.timelines.begin(), file_.timelines.end(),
                      [&](const BatchTimeline& known) { return known.key == job.key(); })) {
        continue;
      }
      ASSIGN_OR_RETURN(const Written written, carry_out(job, true));
      const std::vector<size_t> decoding = decoding_iterations(written.iterations);
      if (decoding.empty()) continue;
      // Neighbours around the middle one.
      size_t first = decoding.size() / 2;
      size_t last = first;
      const auto adjoin = [&](size_t a, size_t b) { return decoding[b] == decoding[a] + 1; };
      while (last - first + 1 < kTimelineIterations) {
        const size_t had = last - first;
        if (last + 1 < decoding.size() && adjoin(last, last + 1)) ++last;
        if (last - first + 1 < kTimelineIterations && first > 0 && adjoin(first - 1, first)) --first;
        if (last - first == had) break;
      }
      ASSIGN_OR_RETURN(BatchTimeline timeline,
                       timeline_of_batch_trace(written.trace, job.key(), decoding[first], last - first + 1));
      RETURN_IF_ERROR(append_line(plan_.folder, json_line(to_json(timeline))));
      file_.timelines.push_back(std::move(timeline));
    }
    return {};
  }

  const BatchBenchPlan& plan_;
  BatchBenchFile& file_;
  Console& console_;
  BenchChildren children_;
  size_t different_ = 0;
};

}  // namespace

Status prepare_batch_bench(const BatchBenchRequest& asked, BatchBenchPlan& plan) {
  BatchBenchRequest request = asked;
  request.has_draft = can_draft(plan);
  request.requests = plan.requests;
  ASSIGN_OR_RETURN(plan.grid, plan_batch_bench(request));
  if (plan.folder.empty()) {
    if (plan.resume) return usage_error("--resume: say which bench, with --out DIR");
    plan.folder = new_folder_name();
  }
  // All that is to be had, for the most sequences.
  const BatchContender whole{"", can_draft(plan) ? "auto" : "off", "auto"};
  EngineOptions options = engine_options(plan, whole, kUnlimitedBudget);
  RequestSizes sizes;
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<Engine> measuring, Engine::prepare(options));
    if (!measuring->target().model->config().is_moe()) {
      return usage_error(fmt::format("{} has no experts whose loading could be compared", plan.target));
    }
    ASSIGN_OR_RETURN(sizes, RequestSizes::measure(plan, *measuring));
  }
  set_job(plan, sizes, *std::max_element(plan.grid.sequences.begin(), plan.grid.sequences.end()), options);
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::prepare(options));
    if (plan.resume) {
      // The same budget at the second start, though this process may be of another size.
      ASSIGN_OR_RETURN(const BatchBenchFile old, read_batch_runs(plan.folder));
      for (const BatchBenchRun& run : old.runs) plan.ram_bytes[run.key.budget] = run.ram_bytes;
    }
    for (const std::string& budget : plan.grid.budgets) {
      if (plan.ram_bytes.contains(budget)) continue;
      ASSIGN_OR_RETURN(plan.ram_bytes[budget], budget_bytes(budget, budget_sizes(*engine)));
    }
    RETURN_IF_ERROR(make_model(plan, *engine, sizes));
  }
  return choose_cases(plan, sizes);
}

std::string describe(const BatchBenchPlan& plan) {
  std::string out = fmt::format("{} runs: {} round{}, against '{}'; {} tokens for each request\n", jobs_of(plan).size(),
                                plan.rounds, plan.rounds == 1 ? "" : "s", plan.grid.baseline, plan.tokens);
  for (const BatchCase& at : plan.cases) {
    out += fmt::format("\n{} ({}), {} requests, {} at once:\n", at.budget, format_size(plan.ram_bytes.at(at.budget)),
                       plan.requests_of(at.sequences), at.sequences);
    for (const BatchContender& one : at.contenders) {
      out += fmt::format("  {:<22} {}{}\n", one.name, shell_words(one.flags()), one.drafts() ? "" : " (no draft)");
    }
  }
  if (!plan.notes.empty()) out += '\n';
  for (const std::string& note : plan.notes) out += "note: " + note + '\n';
  return out;
}

Status run_batch_bench(const BatchBenchPlan& plan, BatchBenchFile& file, Console& console) {
  return Runner(plan, file, console).run();
}

}  // namespace drafthorse::cli
