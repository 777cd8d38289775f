#include "run_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>

#include "base/host_memory.h"
#include "base/units.h"
#include "chat.h"
#include "device_report.h"
#include "engine/session.h"
#include "engine_flags.h"
#include "hits_picture.h"
#include "interrupts.h"
#include "output.h"
#include "routing_file.h"
#include "sampling_flags.h"
#include "stats_json.h"
#include "suggest.h"
#include "text_file.h"
#include "text_hash.h"

namespace drafthorse::cli {
void print_summary(Console& console, Engine& engine, const Session& session) {
  const SessionStats& stats = session.stats();
  const std::string sampled = describe(engine.options().sampling);
  if (!sampled.empty()) console.line(sampled);
  const std::string kept =
      stats.prompt_tokens_kept > 0 ? fmt::format(" ({} of them kept)", stats.prompt_tokens_kept) : "";
  console.line(fmt::format("{} tokens, {:.2f} tokens/s; prompt {} tokens{} in {:.2f} s, first token after {:.2f} s",
                           stats.generated_tokens, stats.decode_tokens_per_s(), stats.prompt_tokens, kept,
                           stats.prefill_s, stats.ttft_s));
  if (!engine.drafters().empty() && stats.steps > 0) {
    console.line(fmt::format("draft: {:.0f} % of {} drafted tokens accepted, {:.2f} tokens per verification; {}",
                             stats.acceptance() * 100, stats.drafted_tokens, stats.tokens_per_verification(),
                             session.explain_depth()));
  }
  if (engine.target().cache != nullptr) {
    console.line(
        fmt::format("experts: {} of {} fit; {:.0f} % were there when needed; {} read per token; {:.0f} % of the "
                    "time spent waiting for them",
                    engine.memory_plan().slots, engine.target().model->layout().total_experts(), stats.hit_rate() * 100,
                    format_size(static_cast<uint64_t>(stats.bytes_read_per_token())),
                    stats.decode_s > 0 ? 100 * stats.stall_s / stats.decode_s : 0.0));
  }
  print_device_summary(console, engine, stats);
  console.line(fmt::format("memory: {} at most, of a budget of {}", format_size(peak_resident_bytes()),
                           format_size(engine.ram_budget_bytes())));
}

void print_stats(Console& console, const Engine& engine, const SessionStats& stats) {
  console.line("\nmemory budget");
  for (const MemoryLedger::Entry& entry : engine.ledger().entries()) {
    console.line(fmt::format("  {:<28} {:>12}", entry.tag, format_size(entry.bytes)));
  }
  console.line(fmt::format("  {:<28} {:>12}", "in all", format_size(engine.ledger().total())));
  console.line(fmt::format("\ndecoding: {:.2f} s = draft {:.2f} + verify {:.2f}, of which {:.2f} waiting for experts",
                           stats.decode_s, stats.draft_s, stats.verify_s, stats.stall_s));
  for (const DrafterStats& by : stats.drafters) {
    console.line(fmt::format("  drafter {}: {} of {} steps, {} tokens drafted in {:.2f} s, {:.0f} % accepted", by.name,
                             by.steps, stats.steps, by.drafted_tokens, by.draft_s,
                             100.0 * static_cast<double>(by.accepted_tokens) /
                                 static_cast<double>(std::max<int64_t>(1, by.drafted_tokens))));
  }
  for (size_t i = 0; i < stats.reached_by_position.size(); ++i) {
    console.line(fmt::format("  draft position {:>2}: reached {:>5}, accepted {:>3.0f} %", i + 1,
                             stats.reached_by_position[i],
                             100.0 * static_cast<double>(stats.accepted_by_position[i]) /
                                 static_cast<double>(std::max<int64_t>(1, stats.reached_by_position[i]))));
  }
  print_device_stats(console, engine, stats);
  if (stats.decode_layers.empty()) return;
  console.line("\nlayer     hits  in flight   misses  evicted       read  read ahead   waiting");
  for (size_t i = 0; i < stats.decode_layers.size(); ++i) {
    const LayerCacheStats& layer = stats.decode_layers[i];
    console.line(fmt::format("{:>5} {:>8} {:>10} {:>8} {:>8} {:>10} {:>11} {:>7.2f} s", i, layer.hits,
                             layer.in_flight_hits, layer.misses, layer.evictions, format_size(layer.bytes_demanded),
                             format_size(layer.bytes_prefetched), seconds(layer.stall_ns)));
  }
  LayerForecastStats forecast;
  for (const LayerForecastStats& layer : stats.forecast_layers) {
    forecast.predicted += layer.predicted;
    forecast.used += layer.used;
    forecast.hits += layer.hits;
  }
  const LayerCacheStats total = stats.decode_total();
  console.line(fmt::format(
      "\npredicted by {}: {:.0f} % of what was used, {:.0f} % of it rightly; {} experts read ahead, {} of them "
      "demanded",
      engine.options().schedule.predictor, 100 * forecast.recall(), 100 * forecast.precision(), total.prefetched,
      total.prefetched_used));
  if (const std::string why = engine.schedule().scheduler()->explain(); !why.empty()) console.line(why);
  console.line("\n" + hits_picture(stats.decode_layers));
}

namespace {

Result<std::string> read_all_of(std::FILE* file, const std::string& name) {
  std::optional<std::string> text = read_text(file);
  if (!text) return file_error(fmt::format("{}: reading the prompt failed", name));
  return std::move(*text);
}

Result<std::string> read_prompt(const RunFlags& flags) {
  if (flags.prompt_given) return flags.prompt;
  if (!flags.prompt_file.empty()) {
    using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
    const File file(std::fopen(flags.prompt_file.c_str(), "rb"), std::fclose);
    if (!file) return file_error(fmt::format("{}: cannot be opened; check the path given with -f", flags.prompt_file));
    return read_all_of(file.get(), flags.prompt_file);
  }
  return read_all_of(stdin, "standard input");
}

Result<EngineOptions> engine_options(const RunFlags& flags) {
  ASSIGN_OR_RETURN(EngineOptions options, engine_options(flags.model));
  options.schedule = schedule_options(flags.schedule);
  options.fitted_path = flags.fitted;
  options.keep_draft = flags.keep_draft;
  ASSIGN_OR_RETURN(options.device, device_options(flags.device));
  ASSIGN_OR_RETURN(options.sampling, sampling_options(flags.sampling));
  return options;
}

std::string status_line(const Engine& engine, const SessionStats& stats) {
  return fmt::format("{} tokens  {:.1f} tokens/s  {} of {} RAM", stats.generated_tokens, stats.decode_tokens_per_s(),
                     format_size(resident_bytes()), format_size(engine.ram_budget_bytes()));
}

std::string_view stop_name(const Session& session, bool interrupted) {
  if (interrupted) return "interrupted";
  switch (session.stop_reason()) {
    case StopReason::kEndOfText:
      return "end of text";
    case StopReason::kContextFull:
      return "context full";
    case StopReason::kStopText:
      return "stop text";
    default:
      return "token limit";
  }
}

Status cannot_write_stats(const std::string& path) {
  return file_error(fmt::format("{}: the statistics cannot be written there", path));
}

Status write_stats(const std::string& path, std::ofstream& file, const nlohmann::ordered_json& json) {
  file << json_text(json);
  file.flush();
  return file ? Status() : cannot_write_stats(path);
}

// Streams until something stops it. The status is of failures alone.
Status generate(Engine& engine, Session& session, Console& console, TextHash& hash) {
  while (session.stop_reason() == StopReason::kNone) {
    const Status status = session.decode_step().status();
    const std::string text = status.ok() ? session.take_text() : session.take_held_text();
    hash.add(text);
    RETURN_IF_ERROR(write_output(text));
    RETURN_IF_ERROR(status);
    console.status(status_line(engine, session.stats()));
  }
  return {};
}

Status check_chat_flags(const RunFlags& flags, bool interactive) {
  if (interactive && !flags.stats_file.empty()) {
    return usage_error(
        "--stats-file is for one answer: give a prompt with -p TEXT or -f FILE, or use /stats in the chat");
  }
  if (!flags.chat && !interactive && !(flags.chat_template.empty() && flags.system.empty())) {
    return usage_error("--system and --chat-template are for chats: add --chat");
  }
  return flags.chat_template.empty() ? Status() : read_chat_template(flags.chat_template).status();
}

std::string check_not_negative(const std::string& value) {
  return value.starts_with('-') ? fmt::format("{} makes no sense; give 0 or more", value) : "";
}

}  // namespace

CLI::App* add_run_command(CLI::App& app, RunFlags& flags) {
  CLI::App* run = app.add_subcommand("run", "Generate text from a prompt");
  add_model_flags(*run, flags.model);
  add_device_flags(*run, flags.device);
  CLI::Option* prompt = run->add_option("-p,--prompt", flags.prompt, "the prompt, taken literally")->type_name("TEXT");
  run->add_option("-f,--file", flags.prompt_file, "read the prompt from a file")
      ->type_name("FILE")
      ->check(check_not_empty)
      ->excludes(prompt);
  run->add_option("-n,--tokens", flags.tokens, "generate at most this many tokens; default: until the text ends")
      ->type_name("N")
      ->check(check_not_empty)
      ->check(check_not_negative);
  add_schedule_flags(*run, flags.schedule);
  run->add_flag("--keep-draft", flags.keep_draft,
                "keep the draft model in memory also where its memory would serve better for experts");
  run->add_option("--fitted", flags.fitted,
                  "what drafthorse calibrate made of the pair, or none; default: beside the draft, if it is there")
      ->type_name("FILE|none")
      ->check(check_not_empty);
  run->add_flag("-q,--quiet", flags.quiet, "write nothing but the text and errors");
  run->add_flag("--stats", flags.stats, "show where memory and time went");
  run->add_option("--stats-file", flags.stats_file, "write the statistics as JSON")
      ->type_name("FILE")
      ->check(check_not_empty);
  add_sampling_flags(*run, flags.sampling);
  run->add_flag("--chat", flags.chat, "the prompt is a message in a chat; without one, at a terminal, chat");
  run->add_option("--chat-template", flags.chat_template,
                  "how a chat is written for the model: a name, a file, or list; default: the model's own")
      ->type_name("NAME|FILE")
      ->check(check_not_empty);
  run->add_option("--system", flags.system, "what the model is told before a chat begins")->type_name("TEXT");
  add_trace_flags(*run, flags.trace);
  run->add_option("--trace-routing", flags.routing_file,
                  "write which experts were used and predicted, and the times, for drafthorse simulate")
      ->type_name("FILE")
      ->check(check_not_empty);
  run->callback([prompt, &flags] { flags.prompt_given = prompt->count() > 0; });
  return run;
}

int run(const RunFlags& flags) {
  Console console;
  if (flags.quiet) console.set_quiet();
  std::optional<std::string> list = schedule_list(flags.schedule);
  std::optional<std::vector<std::string>> names = model_list(flags.model);
  if (flags.chat_template == "list") names = ChatTemplate::names();
  if (list || names) {
    std::string lines = list.value_or("");
    for (const std::string& name : names.value_or(std::vector<std::string>())) lines += name + '\n';
    const Status written = write_output(lines);
    return written.ok() ? 0 : fail(console, written);
  }
  if (flags.model.target.empty()) return fail(console, usage_error("no model: give one with -m FILE"));
  Result<EngineOptions> options = engine_options(flags);
  if (!options.ok()) return fail(console, options.status());
  const bool interactive = !flags.prompt_given && flags.prompt_file.empty() && isatty(STDIN_FILENO) != 0;
  const Status chat_checked = check_chat_flags(flags, interactive);
  if (!chat_checked.ok()) return fail(console, chat_checked);
  const Result<std::string> prompt = interactive ? std::string() : read_prompt(flags);
  if (!prompt.ok()) return fail(console, prompt.status());
  // Opened first: nobody wants to hear after an hour that the path was wrong.
  std::ofstream stats_file;
  if (!flags.stats_file.empty()) {
    stats_file.open(flags.stats_file);
    if (!stats_file) return fail(console, cannot_write_stats(flags.stats_file));
  }

  const Result<std::unique_ptr<RunTrace>> trace = RunTrace::open(flags.trace);
  if (!trace.ok()) return fail(console, trace.status());
  options->trace = trace->get();

  std::unique_ptr<RoutingFileWriter> routing;
  if (!flags.routing_file.empty()) {
    Result<std::unique_ptr<RoutingFileWriter>> made = RoutingFileWriter::open(flags.routing_file);
    if (!made.ok()) return fail(console, made.status());
    routing = std::move(made).value();
    options->schedule.record = routing.get();
  }

  Interrupts interrupts;
  options->interrupt = interrupts.flag();
  Result<std::unique_ptr<Engine>> opened =
      Engine::open(*options, [&](std::string_view phase, double part) { console.progress(phase, part); });
  console.end_progress();
  if (opened.status().kind() == StatusKind::kInterrupted) {
    console.line("interrupted while loading");
    return static_cast<int>(StatusKind::kInterrupted);
  }
  if (!opened.ok()) return fail(console, opened.status());
  Engine& engine = **opened;
  for (const std::string& notice : engine.notices()) console.line("note: " + notice);
  if (routing != nullptr) {
    if (engine.target().cache == nullptr) {
      return fail(console, usage_error("the model has no experts: there is no routing to trace"));
    }
    routing->begin(engine);
  }
  if (interactive) {
    const int code = chat(engine, flags, console);
    const Status written = routing != nullptr ? routing->finish() : Status();
    return written.ok() ? code : fail(console, written);
  }

  Session session(engine);
  std::vector<int32_t> tokens;
  std::vector<std::string> stops = flags.sampling.stops;
  if (flags.chat) {
    Result<ChatTemplate> chat_template = choose_chat_template(flags.chat_template, engine, console);
    if (!chat_template.ok()) return fail(console, chat_template.status());
    Conversation conversation(engine.tokenizer(), std::move(chat_template).value(), flags.system);
    tokens = conversation.ask(*prompt, {});
    for (const std::string& stop : conversation.stop_texts()) stops.push_back(stop);
  } else {
    tokens = engine.tokenizer().tokenize(*prompt);
  }
  if (tokens.empty()) return fail(console, usage_error("the prompt is empty"));
  session.set_stop_texts(std::move(stops));
  session.set_token_limit(flags.tokens);
  Status status = session.prefill(tokens, [&](double part) { console.progress("reading the prompt", part); });
  console.end_progress();
  TextHash hash;
  if (status.ok()) status = generate(engine, session, console, hash);
  console.end_status();
  const bool interrupted = status.kind() == StatusKind::kInterrupted;
  if (!status.ok() && !interrupted) {
    fail(console, status);
    return static_cast<int>(status.kind());
  }
  if (session.stats().generated_tokens > 0 && isatty(STDOUT_FILENO) != 0) console.line("");
  if (session.stop_reason() == StopReason::kContextFull) {
    console.line(fmt::format("note: the context of {} tokens is full; raise --ctx for longer texts", engine.context()));
  }
  print_summary(console, engine, session);
  if (flags.stats) print_stats(console, engine, session.stats());
  if (!flags.stats_file.empty()) {
    const Status written = write_stats(flags.stats_file, stats_file,
                                       stats_json(engine, session, stop_name(session, interrupted), hash.hex()));
    if (!written.ok()) return fail(console, written);
  }
  if (*trace != nullptr) {
    const Status written = (*trace)->finish();
    if (!written.ok()) return fail(console, written);
  }
  if (routing != nullptr) {
    const Status written = routing->finish();
    if (!written.ok()) return fail(console, written);
  }
  return static_cast<int>(status.kind());
}

}  // namespace drafthorse::cli
