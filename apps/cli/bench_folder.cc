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

// What was measured with other files, prompts or lengths does not belong beside what is to come. Of either kind.
template <typename Plan, typename File>
Status check_same(const Plan& plan, const File& file) {
  for (const auto& run : file.runs) {
    const auto refuse = [&](const std::string& what) {
      return usage_error(
          fmt::format("{} was made with {}; resume it with the same, or give another --out", plan.folder, what));
    };
    if (run.model != plan.target) return refuse("-m " + run.model);
    if (run.tokens != plan.tokens) return refuse(fmt::format("-n {}", run.tokens));
    if (!run.draft.empty() && run.draft != plan.draft) return refuse("-d " + run.draft);
    if (run.drafter != "none" && run.drafter != plan.drafter) return refuse("--drafter " + run.drafter);
    if constexpr (requires { run.kv; }) {
      if (run.kv != plan.kv) return refuse("--kv " + run.kv);
    }
  }
  return {};
}

// Without what was cut, which is run again.
template <typename File>
std::string whole_lines(const File& file) {
  std::string kept;
  for (const auto& run : file.runs) kept += json_line(to_json(run)) + '\n';
  for (const auto& timeline : file.timelines) kept += json_line(to_json(timeline)) + '\n';
  return kept;
}

// Whether there is a bench in the folder, and may be.
Result<bool> is_there(const std::string& folder, bool resume) {
  std::error_code error;
  const bool there = std::filesystem::exists(runs_path(folder), error);
  if (there && !resume) {
    return usage_error(
        fmt::format("{} holds a bench already; go on with it with --resume, or give another --out", folder));
  }
  if (!there && resume) return file_error(fmt::format("{}: there is nothing to resume", runs_path(folder)));
  return there;
}

struct Input {
  std::string path;
  std::string text;
};

// What runs read, into a folder within the folder; and an empty file of runs where there is none.
Status write_inputs(const std::string& folder, const std::string& within, const std::vector<Input>& inputs,
                    bool there) {
  std::error_code error;
  std::filesystem::create_directories(folder + "/" + within, error);
  if (error) return file_error(fmt::format("{}: the folder cannot be made ({})", folder, error.message()));
  for (const Input& input : inputs) {
    const std::optional<std::string> old = there ? read_text_file(input.path) : std::nullopt;
    if (old && *old != input.text) {
      return usage_error(
          fmt::format("{} was made with other prompts; resume it with the same, or give another --out", folder));
    }
    RETURN_IF_ERROR(write_file(input.path, input.text));
  }
  return there ? Status() : write_file(runs_path(folder), "");
}

}  // namespace

std::string runs_path(const std::string& folder) { return folder + "/runs.jsonl"; }
std::string report_path(const std::string& folder) { return folder + "/report.html"; }
std::string prompt_path(const std::string& folder, size_t number) {
  return fmt::format("{}/prompts/{:02}.txt", folder, number + 1);
}

std::string requests_path(const std::string& folder, int64_t requests) {
  return fmt::format("{}/requests/{}.jsonl", folder, requests);
}

Result<std::string> read_runs_text(const std::string& folder) {
  const std::string path = runs_path(folder);
  std::optional<std::string> text = read_text_file(path);
  if (!text) return file_error(fmt::format("{}: cannot be read; give a folder that `drafthorse bench` wrote to", path));
  return std::move(*text);
}

Result<BenchFile> read_runs(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text, read_runs_text(folder));
  if (is_batch_bench(text)) return usage_error(fmt::format("{} holds a bench of batches; give --batch", folder));
  return parse_bench_file(text, runs_path(folder));
}

Result<BatchBenchFile> read_batch_runs(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text, read_runs_text(folder));
  const Result<BenchFile> other = parse_bench_file(text, runs_path(folder));
  if (other.ok() && !other->runs.empty()) {
    return usage_error(fmt::format("{} holds no bench of batches; leave --batch out", folder));
  }
  return parse_batch_bench(text, runs_path(folder));
}

Status open_folder(const BenchPlan& plan, BenchFile& file) {
  ASSIGN_OR_RETURN(const bool there, is_there(plan.folder, plan.resume));
  if (there) {
    ASSIGN_OR_RETURN(file, read_runs(plan.folder));
    RETURN_IF_ERROR(check_same(plan, file));
    if (file.last_line_cut) RETURN_IF_ERROR(write_file(runs_path(plan.folder), whole_lines(file)));
  }
  std::vector<Input> inputs;
  for (size_t i = 0; i < plan.prompts.size(); ++i) {
    inputs.push_back({prompt_path(plan.folder, i), plan.prompts[i].text});
  }
  return write_inputs(plan.folder, "prompts", inputs, there);
}

Status open_folder(const BatchBenchPlan& plan, BatchBenchFile& file) {
  ASSIGN_OR_RETURN(const bool there, is_there(plan.folder, plan.resume));
  if (there) {
    ASSIGN_OR_RETURN(file, read_batch_runs(plan.folder));
    RETURN_IF_ERROR(check_same(plan, file));
    if (file.last_line_cut) RETURN_IF_ERROR(write_file(runs_path(plan.folder), whole_lines(file)));
  }
  std::vector<Input> inputs;
  for (const BatchCase& at : plan.cases) {
    const int64_t requests = plan.requests_of(at.sequences);
    inputs.push_back({requests_path(plan.folder, requests), requests_text(plan.prompts, requests, plan.tokens)});
  }
  return write_inputs(plan.folder, "requests", inputs, there);
}

Status append_line(const std::string& folder, const std::string& line) {
  return write_file(runs_path(folder), line + '\n', std::ios::app);
}

Status write_report(const std::string& folder, const std::string& html) {
  return write_file(report_path(folder), html);
}

}  // namespace drafthorse::cli
