// `drafthorse batch`: answers a file of requests (OpenAI's batch formats), many at once.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "device_flags.h"
#include "engine_flags.h"
#include "run_trace.h"
#include "sampling_flags.h"

namespace drafthorse::cli {

// The exit code of a job that came to its end with some of its requests failed.
inline constexpr int kSomeFailed = 5;

struct BatchFlags {
  ModelFlags model;
  DeviceFlags device;
  std::string in;
  std::string out;
  bool resume = false;
  bool retry_errors = false;
  int32_t sequences = 0;  // 0: as planned, or as many as memory allows
  std::string regime = "auto";
  int64_t tokens = -1;
  SamplingFlags sampling;
  std::string chat_template;
  std::string system;
  bool quiet = false;
  bool stats = false;
  std::string stats_file;
  std::string iterations_file;
  TraceFlags trace;
};

// Declares the flags; they are filled in when the command line is parsed.
CLI::App* add_batch_command(CLI::App& app, BatchFlags& flags);

// Returns the process's exit code.
int batch(const BatchFlags& flags);

}  // namespace drafthorse::cli
