// The folder that a bench writes to: runs.jsonl, report.html, and prompts/ or, of batches, requests/.
#pragma once

#include <string>

#include "base/status.h"
#include "bench_batch_runner.h"
#include "bench_batch_runs.h"
#include "bench_runner.h"
#include "bench_runs.h"

namespace drafthorse::cli {

std::string runs_path(const std::string& folder);
std::string report_path(const std::string& folder);
// Where the prompt with this number, from 0 on, stands as `run -f` reads it.
std::string prompt_path(const std::string& folder, size_t number);

// Of jobs with so many requests, as `batch --in` reads them.
std::string requests_path(const std::string& folder, int64_t requests);

// What runs.jsonl holds. kFile where there is none.
Result<std::string> read_runs_text(const std::string& folder);
Result<BenchFile> read_runs(const std::string& folder);
Result<BatchBenchFile> read_batch_runs(const std::string& folder);

// Makes the folder, or checks that what is in it may be gone on with, and writes the prompts into it. `file` becomes
// what it holds already. kUsage where there is something in it and nobody asked to resume.
Status open_folder(const BenchPlan& plan, BenchFile& file);
// The same for a bench of batches, with the files of its requests.
Status open_folder(const BatchBenchPlan& plan, BatchBenchFile& file);

// A line more. kFile where the disk does not take it.
Status append_line(const std::string& folder, const std::string& line);
Status write_report(const std::string& folder, const std::string& html);

}  // namespace drafthorse::cli
