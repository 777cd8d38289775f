// `drafthorse calibrate`: fits routers to a pair of models, for drafts of another width than the target's.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace drafthorse::cli {

struct CalibrateFlags {
  std::string target;
  std::string draft;
  std::string text_file;
  std::string prompts_file;
  std::string writer = "draft";
  int positions = 0;  // 0: as many as suit the draft
  std::string out;    // empty: beside the draft
  std::string ram;
  int threads = 0;
  bool json = false;
};

CLI::App* add_calibrate_command(CLI::App& app, CalibrateFlags& flags);

// Returns the process's exit code.
int calibrate(const CalibrateFlags& flags);

}  // namespace drafthorse::cli
