#include "batch_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

#include "base/host_memory.h"
#include "batch_choice.h"
#include "batch_input.h"
#include "batch_job.h"
#include "batch_prompts.h"
#include "batch_report.h"
#include "batch_results.h"
#include "chat.h"
#include "console.h"
#include "engine/batch.h"
#include "interrupts.h"
#include "output.h"
#include "suggest.h"

namespace drafthorse::cli {
namespace {

class RealEngine : public BatchEngine {
 public:
  explicit RealEngine(Engine& engine) : batch_(engine) {}

  Status submit(BatchRequest request) override { return batch_.submit(std::move(request)); }
  bool idle() const override { return batch_.idle(); }
  int64_t waiting() const override { return batch_.waiting(); }
  int64_t active() const override { return batch_.active(); }
  Status step() override { return batch_.step(); }
  std::vector<BatchResult> take_finished() override { return batch_.take_finished(); }
  const Batch& batch() const { return batch_; }

 private:
  Batch batch_;
};

// For requests that are all wrong: they need no model.
class NoEngine : public BatchEngine {
 public:
  Status submit(BatchRequest /*request*/) override { return runtime_error("no model is loaded"); }
  bool idle() const override { return true; }
  int64_t waiting() const override { return 0; }
  int64_t active() const override { return 0; }
  Status step() override { return {}; }
  std::vector<BatchResult> take_finished() override { return {}; }
};

// What iterations leave: a line of each, where lines are wanted, and why the depth was what it was.
class IterationLog {
 public:
  // Empty: no lines.
  Status open(const std::string& path) {
    path_ = path;
    if (path.empty()) return {};
    lines_.open(path);
    return lines_ ? Status() : cannot_write(path);
  }
  // After every step, which may have been none.
  void note(const Batch& batch) {
    const BatchStats& stats = batch.stats();
    if (stats.iterations == noted_) return;
    if (lines_.is_open()) {
      lines_ << iteration_line(batch.last(), stats.iterations, stats.busy_s - noted_s_) << '\n';
    }
    noted_ = stats.iterations;
    noted_s_ = stats.busy_s;
    // Of an iteration as most are, not of the last text's.
    if (batch.last().generating < most_) return;
    most_ = batch.last().generating;
    explanation_ = batch.explain();
  }
  Status finish() {
    lines_.flush();
    return lines_ ? Status() : cannot_write(path_);
  }
  const std::string& explanation() const { return explanation_; }

 private:
  std::string path_;
  std::ofstream lines_;
  int64_t noted_ = 0;
  double noted_s_ = 0;
  int32_t most_ = 0;
  std::string explanation_;
};

std::string check_positive(const std::string& value) {
  return value.starts_with('-') || value == "0" ? fmt::format("{} makes no sense; give 1 or more", value) : "";
}

std::optional<std::vector<std::string>> asked_list(const BatchFlags& flags) {
  if (flags.regime == "list") return batch_regime_names();
  if (flags.chat_template == "list") return ChatTemplate::names();
  return model_list(flags.model);
}

Status check_flags(const BatchFlags& flags) {
  if (flags.model.target.empty()) return usage_error("no model: give one with -m FILE");
  if (flags.in.empty()) return usage_error("no requests: give a file with --in FILE, or - for standard input");
  if (flags.out.empty())
    return usage_error("nowhere to write to: give a file with --out FILE, or - for standard output");
  return flags.chat_template.empty() ? Status() : read_chat_template(flags.chat_template).status();
}

// One job from its flags to its summary.
class BatchRun {
 public:
  explicit BatchRun(const BatchFlags& flags) : flags_(flags), started_ns_(clock_.now_ns()) {
    if (flags.quiet) console_.set_quiet();
  }

  int run() {
    Status status = prepare();
    if (!status.ok()) return fail(console_, status);
    if (!anything_to_generate()) return write_failures();
    status = open_engine();
    if (status.ok()) return work();
    if (status.kind() != StatusKind::kInterrupted) return fail(console_, status);
    console_.line("interrupted before anything was generated");
    return static_cast<int>(status.kind());
  }

 private:
  // All that can be wrong is found before the model is loaded.
  Status prepare() {
    RETURN_IF_ERROR(check_flags(flags_));
    ASSIGN_OR_RETURN(options_, engine_options(flags_.model));
    ASSIGN_OR_RETURN(options_.device, device_options(flags_.device));
    RequestDefaults defaults;
    ASSIGN_OR_RETURN(defaults.sampling, sampling_options(flags_.sampling));
    defaults.seed = flags_.sampling.seed;
    defaults.token_limit = flags_.tokens;
    defaults.stops = flags_.sampling.stops;
    options_.sampling = defaults.sampling;
    ASSIGN_OR_RETURN(input_, BatchInput::open(flags_.in, defaults));
    const ResultsMode mode = flags_.retry_errors ? ResultsMode::kRetryErrors
                             : flags_.resume     ? ResultsMode::kResume
                                                 : ResultsMode::kNew;
    writer_.emplace(std::filesystem::path(flags_.model.target).filename().string());
    ASSIGN_OR_RETURN(results_, ResultsFile::open(flags_.out, mode, *input_, writer_->model()));
    if (!flags_.stats_file.empty()) {
      stats_file_.open(flags_.stats_file);
      if (!stats_file_) return cannot_write(flags_.stats_file);
    }
    RETURN_IF_ERROR(iterations_.open(flags_.iterations_file));
    ASSIGN_OR_RETURN(trace_, RunTrace::open(flags_.trace));
    options_.trace = trace_.get();
    return {};
  }

  bool anything_to_generate() const {
    for (size_t i = 0; i < input_->lines().size(); ++i) {
      if (input_->lines()[i].valid && !results_->has(i)) return true;
    }
    return false;
  }

  int write_failures() {
    NoEngine engine;
    BatchJob job(*input_, *results_, *writer_, {}, engine, 0);
    Status status = job.run([] {});
    if (status.ok()) status = results_->finish();
    if (!status.ok()) return fail(console_, status);
    print_counts(console_, job.counts());
    return job.counts().failed > 0 ? kSomeFailed : 0;
  }

  Status open_engine() {
    interrupts_.emplace();
    options_.interrupt = interrupts_->flag();
    options_.batch = BatchOptions{.sequences = 1, .typical_tokens = 1, .requests = 1, .regime = flags_.regime};
    {
      // For its vocabulary alone: how long prompts are decides about the memory of the real one.
      ASSIGN_OR_RETURN(const std::unique_ptr<Engine> measuring, Engine::prepare(options_));
      ASSIGN_OR_RETURN(ChatTemplate chat_template, this->chat_template(*measuring));
      const JobSize size = measure_job(*input_, *results_, request_maker(*measuring, chat_template, flags_.system),
                                       measuring->context());
      options_.batch->sequences = flags_.sequences;
      options_.batch->typical_tokens = size.typical_tokens;
      options_.batch->requests = size.requests;
      // Memory for a sampler is set aside once.
      if (size.sampling && size.sampling->grammar.empty()) options_.sampling = *size.sampling;
      // How fast a device is the profile does not tell.
      if (measuring->device() == nullptr)
        choose({size.typical_prompt_tokens, size.typical_tokens - size.typical_prompt_tokens, size.requests});
    }
    trim_heap();
    Result<std::unique_ptr<Engine>> opened =
        Engine::open(options_, [&](std::string_view phase, double part) { console_.progress(phase, part); });
    console_.end_progress();
    RETURN_IF_ERROR(opened.status());
    engine_ = std::move(opened).value();
    for (const std::string& notice : engine_->notices()) console_.line("note: " + notice);
    load_s_ = seconds_since_start();
    return {};
  }

  // What nobody asked for otherwise, as planned for this machine.
  void choose(const drafthorse::BatchJob& job) {
    const std::optional<BatchChoice> choice = choose_batch(options_, job);
    if (!choice) return;
    options_.batch->costs = choice->costs;
    if (!choice->with_draft) options_.draft_path.clear();
    if (options_.batch->sequences == 0) {
      options_.batch->sequences = static_cast<int32_t>(std::min<int64_t>(choice->sequences, kMostSequences));
    }
    if (!choice->why.empty()) console_.line("note: " + choice->why);
  }

  // With a notice, once, where it is not the model's own.
  Result<ChatTemplate> chat_template(const Engine& engine) {
    if (!template_ && !input_->any_chat()) template_.emplace();
    if (!template_) {
      ASSIGN_OR_RETURN(template_, choose_chat_template(flags_.chat_template, engine, console_));
    }
    return *template_;
  }

  int work() {
    RealEngine engine(*engine_);
    BatchJob job(*input_, *results_, *writer_, request_maker(*engine_, *template_, flags_.system), engine,
                 engine_->context());
    const Batch& batch = engine.batch();
    SpeedMeter meter;
    meter.note(clock_.now_ns(), 0);
    // Results on the screen need no bar between them.
    const bool bar = flags_.out != "-" || isatty(STDOUT_FILENO) == 0;
    const double processor_before = processor_seconds();
    Status status = job.run([&] {
      iterations_.note(batch);
      if (!bar) return;
      meter.note(clock_.now_ns(), batch.stats().sum.generated_tokens);
      const JobCounts& counts = job.counts();
      console_.progress(progress_text(counts, batch.stats(), batch.last(), batch.active(), meter.tokens_per_s()),
                        static_cast<double>(counts.done) / static_cast<double>(counts.requests));
    });
    console_.end_progress();
    const Status synchronised = results_->finish();
    if (status.ok()) status = synchronised;
    const bool interrupted = status.kind() == StatusKind::kInterrupted;
    const JobReport report{*engine_,
                           job.counts(),
                           batch.stats(),
                           iterations_.explanation(),
                           seconds_since_start(),
                           load_s_,
                           processor_seconds() - processor_before,
                           interrupted};
    print_summary(console_, report);
    if (flags_.stats) print_stats(console_, report);
    if (!flags_.stats_file.empty()) {
      stats_file_ << json_text(stats_json(report));
      stats_file_.flush();
      if (!stats_file_ && status.ok()) status = cannot_write(flags_.stats_file);
    }
    const Status noted = iterations_.finish();
    if (status.ok()) status = noted;
    if (trace_ != nullptr) {
      const Status written = trace_->finish();
      if (status.ok()) status = written;
    }
    const std::string go_on =
        results_->resumable() ? fmt::format("the same command with --resume goes on ({})", results_->name()) : "";
    if (interrupted) {
      console_.line(go_on.empty() ? "interrupted" : "interrupted; " + go_on);
      return static_cast<int>(status.kind());
    }
    if (!status.ok()) {
      if (!go_on.empty() && job.counts().done < job.counts().requests) console_.line("note: " + go_on);
      return fail(console_, status);
    }
    return job.counts().failed > 0 ? kSomeFailed : 0;
  }

  double seconds_since_start() const { return static_cast<double>(clock_.now_ns() - started_ns_) * 1e-9; }

  const BatchFlags& flags_;
  Console console_;
  SteadyClock clock_;
  int64_t started_ns_;
  std::optional<Interrupts> interrupts_;  // from when there is something to end in order
  EngineOptions options_;
  std::unique_ptr<BatchInput> input_;
  std::optional<ResultWriter> writer_;
  std::unique_ptr<ResultsFile> results_;
  std::ofstream stats_file_;
  IterationLog iterations_;
  std::unique_ptr<RunTrace> trace_;
  std::optional<ChatTemplate> template_;
  std::unique_ptr<Engine> engine_;
  double load_s_ = 0;
};

}  // namespace

CLI::App* add_batch_command(CLI::App& app, BatchFlags& flags) {
  CLI::App* batch = app.add_subcommand("batch", "Answer a file of requests, many at once");
  batch->footer(R"(
A line of --in is a request as OpenAI's batches have them:
  {"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hello"}]}}
  {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 100, "seed": 7}}
A line of --out is a result, written when it is finished. Sampling flags are for requests that do not say otherwise. The
text is the one that `drafthorse run` writes for the prompt and seed. Without a seed, each request has one of its own,
made from its custom_id. A request that cannot be answered gets an error for its result; the exit code is then 5.
Ctrl-C, a crash or a loss of power lose what was being generated, nothing else: --resume goes on.)");
  add_model_flags(*batch, flags.model);
  add_device_flags(*batch, flags.device);
  // The text is the same only where every pass has the same width.
  batch->remove_option(batch->get_option("--placement"));
  const auto path = [&](const char* flag, std::string& value, const std::string& help) {
    return batch->add_option(flag, value, help)->type_name("FILE")->check(check_not_empty);
  };
  path("--in", flags.in, "the requests, a JSON object a line; - is standard input");
  path("--out", flags.out, "where results go, a JSON object a line; - is standard output");
  batch->add_flag("--resume", flags.resume, "keep the results that --out holds, and go on with the other requests");
  batch->add_flag("--retry-errors", flags.retry_errors, "as --resume, but requests that failed are tried again");
  batch
      ->add_option("--sequences", flags.sequences,
                   "requests worked on at once, at most; default: as planned, or by memory")
      ->type_name("N")
      ->check(CLI::Range(1, kMostSequences));
  batch
      ->add_option("--regime", flags.regime,
                   "how experts are read: stream (layer after layer, ahead), cache (on demand, kept), layered (on "
                   "demand, not kept, to compare with), auto, or list")
      ->type_name("NAME")
      ->check(one_of(with_list(batch_regime_names())))
      ->capture_default_str();
  batch
      ->add_option("-n,--tokens", flags.tokens,
                   "generate at most this many tokens for a request; default: until the text ends")
      ->type_name("N")
      ->check(check_not_empty)
      ->check(check_positive);
  batch->add_flag("-q,--quiet", flags.quiet, "write nothing but errors");
  batch->add_flag("--stats", flags.stats, "show where memory and time went");
  path("--stats-file", flags.stats_file, "write the statistics as JSON");
  path("--iterations-file", flags.iterations_file, "write what each iteration did and took, a JSON object a line");
  add_trace_flags(*batch, flags.trace);
  add_sampling_flags(*batch, flags.sampling);
  batch->get_option("--seed")->description(
      "the same seed gives the same text; default: one for each request, made from its custom_id");
  // Texts of a batch do not depend on what was drafted.
  batch->remove_option(batch->get_option("--accept"));
  batch
      ->add_option("--chat-template", flags.chat_template,
                   "how a chat is written for the model: a name, a file, or list; default: the model's own")
      ->type_name("NAME|FILE")
      ->check(check_not_empty);
  batch->add_option("--system", flags.system, "what the model is told in chats without a system message")
      ->type_name("TEXT");
  return batch;
}

int batch(const BatchFlags& flags) {
  if (const std::optional<std::vector<std::string>> names = asked_list(flags)) {
    std::string lines;
    for (const std::string& name : *names) lines += name + '\n';
    const Status written = write_output(lines);
    Console console;
    return written.ok() ? 0 : fail(console, written);
  }
  return BatchRun(flags).run();
}

}  // namespace drafthorse::cli
