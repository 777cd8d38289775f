// The report of a bench: one HTML file that needs nothing else, drawn from the lines of runs.jsonl alone. Pure.
#pragma once

#include <string>

#include "bench_runs.h"

namespace drafthorse::cli {

std::string html_report(const BenchFile& file);

}  // namespace drafthorse::cli
