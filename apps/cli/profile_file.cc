#include "profile_file.h"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "folders.h"
#include "output.h"
#include "profile/measure.h"
#include "profile_json.h"
#include "text_file.h"

namespace drafthorse::cli {

Result<std::string> profile_path() {
  const std::string folder = cache_folder();
  if (folder.empty()) {
    return runtime_error("no folder to keep the profile in: set HOME or XDG_CACHE_HOME");
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return runtime_error(fmt::format("{}: cannot be made: {}", folder, error.message()));
  return folder + "/profile.json";
}

Status save_profile(const MachineProfile& profile, const std::string& path) {
  // Beside it first: a plan that runs at the same time sees the old one or the new one.
  const std::string beside = path + ".new";
  std::ofstream file(beside);
  file << json_text(profile_json(profile));
  file.close();
  if (!file || std::rename(beside.c_str(), path.c_str()) != 0) {
    return file_error(fmt::format("{}: the profile cannot be written there", path));
  }
  return {};
}

Result<MachineProfile> load_profile(const std::string& path) {
  const std::optional<std::string> text = read_text_file(path);
  if (!text) {
    return file_error("this machine has not been measured yet; run `drafthorse profile` first (half a minute, once)");
  }
  ASSIGN_OR_RETURN(MachineProfile profile, parse_profile(*text, path));
  if (profile.machine != machine_name()) {
    return file_error(fmt::format("{}: measured on another machine ({}; this is {}); run `drafthorse profile` again",
                                  path, profile.machine, machine_name()));
  }
  return profile;
}

}  // namespace drafthorse::cli
