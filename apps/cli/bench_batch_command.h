// `drafthorse bench --batch`.
#pragma once

#include <string>

#include "bench_command.h"
#include "console.h"

namespace drafthorse::cli {

// These return the process's exit code.
int bench_batch(const BenchFlags& flags, Console& console);
// The table and the report of such a folder anew.
int report_batch_bench(Console& console, const std::string& folder);

}  // namespace drafthorse::cli
