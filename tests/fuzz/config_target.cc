// The configuration file, with flags of every kind.
#include <CLI/CLI.hpp>

#include "cli/config_file.h"
#include "cli/sampling_flags.h"
#include "fuzz/memory_file.h"
#include "fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  static const fuzz::MemoryFile file;
  file.write(data, size);
  CLI::App app;
  CLI::App* run = app.add_subcommand("run");
  cli::SamplingFlags sampling;
  cli::add_sampling_flags(*run, sampling);
  int threads = 0;
  bool stats = false;
  run->add_option("-t,--threads", threads)->check(CLI::Range(1, 512));
  run->add_flag("--stats", stats);
  app.parse("run --threads 2", false);
  static_cast<void>(cli::apply_config(app, file.path()));
  return 0;
}
