// The folder that a bench writes to: runs.jsonl, report.html, prompts/.
#pragma once

#include <string>

#include "base/status.h"
#include "bench_runner.h"
#include "bench_runs.h"

namespace drafthorse::cli {

std::string runs_path(const std::string& folder);
std::string report_path(const std::string& folder);
// Where the prompt with this number, from 0 on, stands as `run -f` reads it.
std::string prompt_path(const std::string& folder, size_t number);

Result<BenchFile> read_runs(const std::string& folder);

// Makes the folder, or checks that what is in it may be gone on with, and writes the prompts into it. `file` becomes
// what it holds already. kUsage where there is something in it and nobody asked to resume.
Status open_folder(const BenchPlan& plan, BenchFile& file);

// A line more. kFile where the disk does not take it.
Status append_line(const std::string& folder, const std::string& line);
Status write_report(const std::string& folder, const std::string& html);

}  // namespace drafthorse::cli
