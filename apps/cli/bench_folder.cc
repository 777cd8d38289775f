#include "bench_folder.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "text_file.h"

namespace drafthorse::cli {
namespace {

Status write_file(const std::string& path, const std::string& text, std::ios::openmode mode = std::ios::trunc) {
  std::ofstream file(path, std::ios::binary | std::ios::out | mode);
  file << text;
  file.close();
  return file ? Status() : file_error(fmt::format("{}: cannot be written", path));
}

// What was measured with other files, prompts or lengths does not belong beside what is to come.
Status check_same(const BenchPlan& plan, const BenchFile& file) {
  for (const BenchRun& run : file.runs) {
    const auto refuse = [&](const std::string& what) {
      return usage_error(
          fmt::format("{} was made with {}; resume it with the same, or give another --out", plan.folder, what));
    };
    if (run.model != plan.target) return refuse("-m " + run.model);
    if (run.tokens != plan.tokens) return refuse(fmt::format("-n {}", run.tokens));
    if (!run.draft.empty() && run.draft != plan.draft) return refuse("-d " + run.draft);
    if (run.drafter != "none" && run.drafter != plan.drafter) return refuse("--drafter " + run.drafter);
  }
  return {};
}

}  // namespace

std::string runs_path(const std::string& folder) { return folder + "/runs.jsonl"; }
std::string report_path(const std::string& folder) { return folder + "/report.html"; }
std::string prompt_path(const std::string& folder, size_t number) {
  return fmt::format("{}/prompts/{:02}.txt", folder, number + 1);
}

Result<BenchFile> read_runs(const std::string& folder) {
  const std::string path = runs_path(folder);
  const std::optional<std::string> text = read_text_file(path);
  if (!text) return file_error(fmt::format("{}: cannot be read; give a folder that `drafthorse bench` wrote to", path));
  return parse_bench_file(*text, path);
}

Status open_folder(const BenchPlan& plan, BenchFile& file) {
  std::error_code error;
  const bool there = std::filesystem::exists(runs_path(plan.folder), error);
  if (there && !plan.resume) {
    return usage_error(
        fmt::format("{} holds a bench already; go on with it with --resume, or give another --out", plan.folder));
  }
  if (!there && plan.resume) {
    return file_error(fmt::format("{}: there is nothing to resume", runs_path(plan.folder)));
  }
  if (there) {
    ASSIGN_OR_RETURN(file, read_runs(plan.folder));
    RETURN_IF_ERROR(check_same(plan, file));
    if (file.last_line_cut) {  // it is run again
      std::string kept;
      for (const BenchRun& run : file.runs) kept += json_line(to_json(run)) + '\n';
      for (const BenchTimeline& timeline : file.timelines) kept += json_line(to_json(timeline)) + '\n';
      RETURN_IF_ERROR(write_file(runs_path(plan.folder), kept));
    }
  }
  std::filesystem::create_directories(plan.folder + "/prompts", error);
  if (error) return file_error(fmt::format("{}: the folder cannot be made ({})", plan.folder, error.message()));
  for (size_t i = 0; i < plan.prompts.size(); ++i) {
    const std::string path = prompt_path(plan.folder, i);
    const std::optional<std::string> old = there ? read_text_file(path) : std::nullopt;
    if (old && *old != plan.prompts[i].text) {
      return usage_error(
          fmt::format("{} was made with other prompts; resume it with the same, or give another --out", plan.folder));
    }
    RETURN_IF_ERROR(write_file(path, plan.prompts[i].text));
  }
  return there ? Status() : write_file(runs_path(plan.folder), "");
}

Status append_line(const std::string& folder, const std::string& line) {
  return write_file(runs_path(folder), line + '\n', std::ios::app);
}

Status write_report(const std::string& folder, const std::string& html) {
  return write_file(report_path(folder), html);
}

}  // namespace drafthorse::cli
