// The machine's profile, kept in the cache folder between runs.
#pragma once

#include <string>

#include "base/status.h"
#include "plan/machine_profile.h"

namespace drafthorse::cli {

// Where profiles are kept: profile.json in the cache folder. kRuntime where there is no such folder to be had.
Result<std::string> profile_path();

Status save_profile(const MachineProfile& profile, const std::string& path);

// kFile where there is none yet, it is damaged, or it is another machine's: it says to run `drafthorse profile`.
Result<MachineProfile> load_profile(const std::string& path);

}  // namespace drafthorse::cli
