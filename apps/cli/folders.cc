#include "folders.h"

#include <cstdlib>

namespace drafthorse::cli {
namespace {

std::string folder(const char* variable, const char* below_home) {
  const char* given = std::getenv(variable);
  if (given != nullptr && *given != '\0') return given;
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? std::string(home) + below_home : std::string();
}

}  // namespace

std::string cache_folder() {
  const std::string base = folder("XDG_CACHE_HOME", "/.cache");
  return base.empty() ? base : base + "/drafthorse";
}

std::string config_file() {
  const std::string base = folder("XDG_CONFIG_HOME", "/.config");
  return base.empty() ? base : base + "/drafthorse/config";
}

}  // namespace drafthorse::cli
