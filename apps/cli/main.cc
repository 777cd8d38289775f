// drafthorse's command line. Each command is a file; this one only finds out which.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "base/status.h"
#include "batch_command.h"
#include "bench_command.h"
#include "calibrate_command.h"
#include "child_run.h"
#include "config_file.h"
#include "devices_command.h"
#include "folders.h"
#include "inspect_command.h"
#include "output.h"
#include "plan_command.h"
#include "profile_command.h"
#include "run_command.h"
#include "self_description.h"
#include "simulate_command.h"
#include "suggest.h"

namespace {

constexpr const char* kFooter = R"(
First steps:
  drafthorse inspect model.gguf                     what the file holds, and the least memory it runs in
  drafthorse profile model.gguf                     measure this machine, once (half a minute)
  drafthorse plan -m model.gguf --ram 12G           memory and speed to expect
  drafthorse run -m model.gguf --ram 12G -p "Hello" generate

--ram is the memory for everything and is never exceeded; without it, what the machine has free is used.
Each command has its own --help. Defaults may stand in ~/.config/drafthorse/config, as lines such as
  ram = 12G
)";

// A program may be started with standard streams closed. Files opened later would take their numbers, and the text
// would be written into one of them: put something there that fails instead.
void occupy_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) < 0) static_cast<void>(open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY));
  }
}

int print(const std::string& text) {
  drafthorse::cli::Console console;
  const drafthorse::Status written = drafthorse::cli::write_output(text);
  return written.ok() ? 0 : drafthorse::cli::fail(console, written);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace drafthorse::cli;
  occupy_standard_streams();
  CLI::App app{"drafthorse runs Mixture-of-Experts models larger than memory, with speculative decoding", "drafthorse"};
  app.require_subcommand(1);
  app.footer(kFooter);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  // One sentence, as for everything else that is wrong.
  app.failure_message([&](const CLI::App*, const CLI::Error& error) {
    const bool about_names = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr ||
                             dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
    std::string what = about_names ? unknown_word(app, arguments) : "";
    if (what.empty()) what = error.what();
    return "drafthorse: " + printable(what) + (what.ends_with('?') ? " (" : "; ") + "run with --help for all flags" +
           (what.ends_with('?') ? ")\n" : "\n");
  });
  app.set_version_flag("--version", DRAFTHORSE_VERSION);
  bool no_config = false;
  app.add_flag("--no-config", no_config, "take no defaults from the configuration file");
  RunFlags run_flags;
  const CLI::App* run_command = add_run_command(app, run_flags);
  PlanFlags plan_flags;
  const CLI::App* plan_command = add_plan_command(app, plan_flags);
  InspectFlags inspect_flags;
  const CLI::App* inspect_command = add_inspect_command(app, inspect_flags);
  BatchFlags batch_flags;
  const CLI::App* batch_command = add_batch_command(app, batch_flags);
  BenchFlags bench_flags;
  const CLI::App* bench_command = add_bench_command(app, bench_flags);
  CalibrateFlags calibrate_flags;
  const CLI::App* calibrate_command = add_calibrate_command(app, calibrate_flags);
  ProfileFlags profile_flags;
  const CLI::App* profile_command = add_profile_command(app, profile_flags);
  DevicesFlags devices_flags;
  const CLI::App* devices_command = add_devices_command(app, devices_flags);
  SimulateFlags simulate_flags;
  const CLI::App* simulate_command = add_simulate_command(app, simulate_flags);
  std::string shell;
  CLI::App* completion =
      app.add_subcommand("completion", "Print a completion script: eval \"$(drafthorse completion bash)\"");
  completion->add_option("SHELL", shell, "bash or zsh")->type_name("")->required()->check(one_of({"bash", "zsh"}));
  const CLI::App* man = app.add_subcommand("man", "Print the manual page: drafthorse man | man -l -");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(drafthorse::StatusKind::kUsage);
  }
  if (!no_config) {
    Console console;
    const drafthorse::Status config = apply_config(app, config_file());
    if (!config.ok()) return fail(console, config);
  }
  if (run_command->parsed()) return run(run_flags);
  if (plan_command->parsed()) return plan(plan_flags);
  if (batch_command->parsed()) return batch(batch_flags);
  if (bench_command->parsed()) {
    bench_flags.command_line = "drafthorse " + shell_words(arguments);
    return bench(bench_flags);
  }
  if (calibrate_command->parsed()) return calibrate(calibrate_flags);
  if (inspect_command->parsed()) return inspect(inspect_flags);
  if (profile_command->parsed()) return profile(profile_flags);
  if (devices_command->parsed()) return devices(devices_flags);
  if (simulate_command->parsed()) return simulate(simulate_flags);
  if (completion->parsed()) return print(shell == "bash" ? bash_completion(app) : zsh_completion(app));
  return man->parsed() ? print(man_page(app, DRAFTHORSE_VERSION)) : 0;
}
