// drafthorse's command line. Each command is a file; this one only finds out which.
#include <CLI/CLI.hpp>

#include "base/status.h"
#include "run_command.h"

int main(int argc, char** argv) {
  CLI::App app{"drafthorse runs Mixture-of-Experts models larger than memory, with speculative decoding", "drafthorse"};
  app.require_subcommand(1);
  app.set_version_flag("--version", DRAFTHORSE_VERSION);
  drafthorse::cli::RunFlags run_flags;
  const CLI::App* run = drafthorse::cli::add_run_command(app, run_flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(drafthorse::StatusKind::kUsage);
  }
  return run->parsed() ? drafthorse::cli::run(run_flags) : 0;
}
