// The machine's profile as JSON. Pure: text in, text out.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"
#include "plan/machine_profile.h"

namespace drafthorse::cli {

nlohmann::ordered_json profile_json(const MachineProfile& profile);

// kFile, saying what is wrong, for anything that profile_json() would not have written. `name`: the text's, for that.
Result<MachineProfile> parse_profile(const std::string& text, const std::string& name);

}  // namespace drafthorse::cli
