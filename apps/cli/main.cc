// drafthorse's command line. Each command is a file; this one only finds out which.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "base/status.h"
#include "inspect_command.h"
#include "plan_command.h"
#include "profile_command.h"
#include "run_command.h"

namespace {

// A program may be started with standard streams closed. Files opened later would take their numbers, and the text
// would be written into one of them: put something there that fails instead.
void occupy_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) < 0) static_cast<void>(open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY));
  }
}

// One sentence, as for everything else that is wrong.
std::string usage_message(const CLI::App*, const CLI::Error& error) {
  return std::string("drafthorse: ") + error.what() + "; run with --help for all flags\n";
}

}  // namespace

int main(int argc, char** argv) {
  occupy_standard_streams();
  CLI::App app{"drafthorse runs Mixture-of-Experts models larger than memory, with speculative decoding", "drafthorse"};
  app.require_subcommand(1);
  app.failure_message(usage_message);
  app.set_version_flag("--version", DRAFTHORSE_VERSION);
  drafthorse::cli::RunFlags run_flags;
  const CLI::App* run = drafthorse::cli::add_run_command(app, run_flags);
  drafthorse::cli::InspectFlags inspect_flags;
  const CLI::App* inspect = drafthorse::cli::add_inspect_command(app, inspect_flags);
  drafthorse::cli::ProfileFlags profile_flags;
  const CLI::App* profile = drafthorse::cli::add_profile_command(app, profile_flags);
  drafthorse::cli::PlanFlags plan_flags;
  const CLI::App* plan = drafthorse::cli::add_plan_command(app, plan_flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(drafthorse::StatusKind::kUsage);
  }
  if (inspect->parsed()) return drafthorse::cli::inspect(inspect_flags);
  if (plan->parsed()) return drafthorse::cli::plan(plan_flags);
  if (profile->parsed()) return drafthorse::cli::profile(profile_flags);
  return run->parsed() ? drafthorse::cli::run(run_flags) : 0;
}
