// Where this user's files lie. The only place that reads the environment.
#pragma once

#include <string>

namespace drafthorse::cli {

// $XDG_CACHE_HOME/drafthorse, else ~/.cache/drafthorse; empty where neither is set.
std::string cache_folder();

// $XDG_CONFIG_HOME/drafthorse/config, else ~/.config/drafthorse/config; empty where neither is set.
std::string config_file();

}  // namespace drafthorse::cli
