// `drafthorse run`: generates from a prompt.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>

#include "base/status.h"
#include "console.h"
#include "device_flags.h"
#include "engine/session.h"
#include "engine_flags.h"
#include "run_trace.h"
#include "sampling_flags.h"
#include "schedule_flags.h"

namespace drafthorse::cli {

struct RunFlags {
  ModelFlags model;
  DeviceFlags device;
  std::string prompt;
  bool prompt_given = false;
  std::string prompt_file;
  int64_t tokens = -1;
  SamplingFlags sampling;
  bool chat = false;
  std::string chat_template;
  std::string system;
  ScheduleFlags schedule;
  std::string fitted;  // empty: where calibrate puts it
  bool keep_draft = false;
  bool quiet = false;
  TraceFlags trace;
  std::string routing_file;  // of --trace-routing
  bool stats = false;
  std::string stats_file;
};

// Declares the flags; they are filled in when the command line is parsed.
CLI::App* add_run_command(CLI::App& app, RunFlags& flags);

// Returns the process's exit code.
int run(const RunFlags& flags);

// What was generated, how fast, and how often experts were there.
void print_summary(Console& console, Engine& engine, const Session& session);
void print_stats(Console& console, const Engine& engine, const SessionStats& stats);

}  // namespace drafthorse::cli
