// The report of a bench of batches: one HTML file that needs nothing else, drawn from the lines of runs.jsonl alone.
// Pure.
#pragma once

#include <string>

#include "bench_batch_runs.h"

namespace drafthorse::cli {

std::string html_report(const BatchBenchFile& file);

}  // namespace drafthorse::cli
