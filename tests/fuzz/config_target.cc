// The configuration file, with flags of every kind.
#include <CLI/CLI.hpp>

#include "cli/config_file.h"
#include "cli/sampling_flags.h"
#include "fuzz/memory_file.h"
#include "fuzz/target.h"

namespace drafthorse::fuzz {
namespace {

struct CommandLine {
  CLI::App app;
  cli::SamplingFlags sampling;
  int threads = 0;
  bool stats = false;

  CommandLine() {
    CLI::App* run = app.add_subcommand("run");
    cli::add_sampling_flags(*run, sampling);
    run->add_option("-t,--threads", threads)->check(CLI::Range(1, 512));
    run->add_flag("--stats", stats);
  }
};

}  // namespace
}  // namespace drafthorse::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  static const fuzz::MemoryFile file;
  static fuzz::CommandLine line;
  file.write(data, size);
  line.app.parse("run --threads 2", false);  // forgets the values of the last time
  static_cast<void>(cli::apply_config(line.app, file.path()));
  return 0;
}
