// Defaults from a file: lines of `key = value`, # begins a comment. A key is a long flag without its dashes; the
// command line wins.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "base/status.h"

namespace drafthorse::cli {

// Sets what the file says and the command line does not, for the command that was parsed. A missing file is none.
// kUsage, with file and line, for a key that no command has or a value its flag refuses.
Status apply_config(CLI::App& app, const std::string& path);

}  // namespace drafthorse::cli
