// What commands share: text on standard output, and failures as exit codes.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"
#include "console.h"

namespace drafthorse::cli {

// One sentence on standard error; returns the exit code.
int fail(Console& console, const Status& status);

// kRuntime where standard output cannot be written to.
Status write_output(std::string_view text);

// Indented, and valid JSON whatever bytes the strings hold.
std::string json_text(const nlohmann::ordered_json& json);

// Text out of a file that nobody vouches for: what would steer a terminal becomes '?'.
std::string printable(std::string_view text);

// A script's unset variable should not quietly become a default: for CLI::Option::check.
std::string check_not_empty(const std::string& value);

// kFile: a path that was given to be written to.
Status cannot_write(const std::string& path);

}  // namespace drafthorse::cli
