#include "calibrate_command.h"

#include <fmt/format.h>

#include <cstdio>
#include <fstream>

#include "base/units.h"
#include "bench_prompts.h"
#include "console.h"
#include "engine/calibration.h"
#include "engine/calibration_text.h"
#include "engine_flags.h"
#include "interrupts.h"
#include "output.h"
#include "suggest.h"
#include "text_file.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;
using Texts = std::vector<std::vector<int32_t>>;

struct Report {
  std::string path;
  int n_expert_used = 0;
  const CalibrationResult& result;
};

// Nobody wants to hear after minutes that the path was wrong.
Status check_writable(const std::string& path) {
  const std::string beside = path + ".new";
  const bool can = std::ofstream(beside).good();
  static_cast<void>(std::remove(beside.c_str()));
  return can ? Status() : file_error(fmt::format("{}: cannot be written; give another place with -o", path));
}

Result<std::vector<std::string>> openings(const CalibrateFlags& flags) {
  std::vector<std::string> out;
  if (flags.prompts_file.empty()) {
    for (const std::string_view one : own_openings()) out.emplace_back(one);
    return out;
  }
  const std::optional<std::string> text = read_text_file(flags.prompts_file);
  if (!text) return file_error(fmt::format("{}: cannot be read; check the path given", flags.prompts_file));
  ASSIGN_OR_RETURN(const std::vector<BenchPrompt> prompts, parse_prompts(*text, flags.prompts_file));
  for (const BenchPrompt& one : prompts) out.push_back(one.text);
  return out;
}

Result<Texts> texts_for(const CalibrateFlags& flags, Engine& engine, const LoadProgress& progress) {
  const int32_t positions = *engine.options().calibration_positions;
  if (!flags.text_file.empty()) {
    const std::optional<std::string> text = read_text_file(flags.text_file);
    if (!text) return file_error(fmt::format("{}: cannot be read; check the path given with -f", flags.text_file));
    return cut_text(engine, *text, positions);
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> begun, openings(flags));
  return write_texts(engine, begun, flags.writer == "target" ? Writer::kTarget : Writer::kDraft, positions, progress);
}

Json quality_json(const PredictionQuality& quality) {
  return {{"recall", quality.recall}, {"wide_recall", quality.wide_recall}, {"wide_weight", quality.wide_weight}};
}

std::string report_json(const Report& report) {
  Json layers = Json::array();
  for (const LayerCalibration& layer : report.result.layers) {
    Json one = {{"layer", index(layer.layer)},
                {"draft_layer", index(layer.draft_layer)},
                {"lambda", layer.lambda},
                {"fitted", quality_json(layer.fitted)},
                {"frequency", quality_json(layer.frequency)},
                {"cross", layer.cross ? quality_json(*layer.cross) : Json()},
                {"last_token", {{"recall", layer.last_token}}}};
    layers.push_back(std::move(one));
  }
  return json_text({{"schema", 1},
                    {"file", report.path},
                    {"experts_per_token", report.n_expert_used},
                    {"fitted_positions", report.result.fitted_positions},
                    {"judged_positions", report.result.judged_positions},
                    {"by_layer", layers}});
}

std::string percent(double share) { return fmt::format("{:.0f} %", 100 * share); }

std::string three(const PredictionQuality& quality) {
  return fmt::format(" {:>6} {:>6} {:>6}", percent(quality.recall), percent(quality.wide_recall),
                     percent(quality.wide_weight));
}

std::string report_text(const Report& report) {
  const bool with_cross = !report.result.layers.empty() && report.result.layers.front().cross.has_value();
  const int k = report.n_expert_used;
  std::string text = fmt::format(
      "fitted to {} positions, judged by {} others: the share of the experts used that were among the first {} and "
      "the\n"
      "first {} predicted, and the weight of the latter in what the token's experts give\n\n",
      report.result.fitted_positions, report.result.judged_positions, k, 2 * k);
  text += fmt::format("{:>5} {:>5} {:>7}  {:^20}  {:^20}", "", "draft", "", "fitted", "most often used");
  if (with_cross) text += fmt::format("  {:^20}", "target's router");
  const std::string columns = fmt::format("  {:>6} {:>6} {:>6}", k, 2 * k, "weight");
  text += fmt::format("  {:>10}\n{:>5} {:>5} {:>7}{}{}{}  {:>10}\n", "last", "layer", "layer", "lambda", columns,
                      columns, with_cross ? columns : "", "token's");
  for (const LayerCalibration& layer : report.result.layers) {
    text += fmt::format("{:>5} {:>5} {:>7} {} {}", index(layer.layer), index(layer.draft_layer), layer.lambda,
                        three(layer.fitted), three(layer.frequency));
    if (layer.cross) text += " " + three(*layer.cross);
    text += fmt::format("  {:>10}\n", percent(layer.last_token));
  }
  return text + fmt::format("\nkept in {}; run, bench and plan find it there\n", report.path);
}

Result<EngineOptions> options_of(const CalibrateFlags& flags) {
  const std::string depth = "auto";
  const std::string kv = "f16";
  const std::string drafter = "model";
  ASSIGN_OR_RETURN(EngineOptions options,
                   engine_options(EngineFlags{flags.target, flags.draft, flags.ram, kCalibrationWindow, flags.threads,
                                              depth, drafter, kv}));
  // The texts are prompts: nothing is predicted.
  options.schedule.policy = "next-use";
  options.calibration_positions = flags.positions;
  return options;
}

Status calibrate_and_write(const CalibrateFlags& flags, const std::string& path, Console& console) {
  RETURN_IF_ERROR(check_writable(path));
  ASSIGN_OR_RETURN(EngineOptions options, options_of(flags));
  Interrupts interrupts;
  options.interrupt = interrupts.flag();
  const LoadProgress progress = [&](std::string_view phase, double part) { console.progress(phase, part); };
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::open(options, progress));
  console.end_progress();
  for (const std::string& notice : engine->notices()) console.line("note: " + notice);
  ASSIGN_OR_RETURN(const Texts texts, texts_for(flags, *engine, progress));
  ASSIGN_OR_RETURN(const CalibrationResult result, calibrate(*engine, texts, progress));
  console.end_progress();
  RETURN_IF_ERROR(write_fitted_routers(path, {engine->target_index(), engine->target().model->config()},
                                       {engine->draft_index(), engine->draft().model->config()}, result.routers));
  const Report report{path, engine->target().model->config().n_expert_used, result};
  return write_output(flags.json ? report_json(report) : report_text(report));
}

}  // namespace

CLI::App* add_calibrate_command(CLI::App& app, CalibrateFlags& flags) {
  CLI::App* calibrate =
      app.add_subcommand("calibrate", "Fit a draft's states to a model's routers, to foresee experts; once per pair");
  calibrate->footer(R"(
Both models read the same texts. Where their widths differ, nothing else tells from what the draft computes which
experts the model will need. What is fitted is kept in a file of some MiB beside the draft, and found there by run,
bench and plan; it is refused once one of the two models is another. The text a run generates does not depend on it.)");
  const auto text = [&](const char* flag, std::string& value, const std::string& help, const char* type) {
    return calibrate->add_option(flag, value, help)->type_name(type)->check(check_not_empty);
  };
  text("-m,--model", flags.target, "the model, a GGUF file", "FILE");
  text("-d,--draft", flags.draft, "the model that drafts for it", "FILE");
  CLI::Option* file =
      text("-f,--file", flags.text_file, "a text to read; default: texts that the draft writes", "FILE");
  CLI::Option* prompts =
      text("--prompts", flags.prompts_file,
           R"(beginnings to write on from, lines such as {"text": "Once"}; default: our own)", "FILE");
  calibrate->add_option("--writer", flags.writer, "who writes on: draft, or target, which takes longer")
      ->type_name("NAME")
      ->check(one_of({"draft", "target"}))
      ->capture_default_str();
  file->excludes(prompts);
  calibrate->add_option("--positions", flags.positions, "tokens to read; default: 4096 to 16384, by the draft's width")
      ->type_name("N")
      ->check(CLI::Range(kLeastCalibrationPositions, 1 << 20));
  text("-o,--out", flags.out, "where to keep it; default: beside the draft, named after both", "FILE");
  text("--ram", flags.ram, "memory for everything, such as 8G; default: what the machine has free", "SIZE");
  calibrate->add_option("--threads", flags.threads, "threads to compute with; default: one per core")
      ->type_name("N")
      ->check(CLI::Range(1, 512));
  calibrate->add_flag("--json", flags.json, "print JSON");
  return calibrate;
}

int calibrate(const CalibrateFlags& flags) {
  Console console;
  if (flags.target.empty()) return fail(console, usage_error("no model: give one with -m FILE"));
  if (flags.draft.empty()) return fail(console, usage_error("no draft to calibrate: give one with -d FILE"));
  const std::string path = flags.out.empty() ? fitted_routers_path(flags.draft, flags.target) : flags.out;
  const Status status = calibrate_and_write(flags, path, console);
  console.end_progress();
  if (status.kind() == StatusKind::kInterrupted) {
    console.line("interrupted: nothing was kept");
    return static_cast<int>(status.kind());
  }
  return status.ok() ? 0 : fail(console, status);
}

}  // namespace drafthorse::cli
