// The machine's profile as JSON, kept in the cache folder between runs.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"
#include "plan/machine_profile.h"

namespace drafthorse::cli {

nlohmann::ordered_json profile_json(const MachineProfile& profile);

// kFile, saying what is wrong, for anything that profile_json() would not have written.
Result<MachineProfile> parse_profile(const std::string& text, const std::string& name);

// Where profiles are kept: profile.json in the cache folder. kRuntime where there is no such folder to be had.
Result<std::string> profile_path();

Status save_profile(const MachineProfile& profile, const std::string& path);

// kFile where there is none yet, it is damaged, or it is another machine's: it says to run `drafthorse profile`.
Result<MachineProfile> load_profile(const std::string& path);

}  // namespace drafthorse::cli
