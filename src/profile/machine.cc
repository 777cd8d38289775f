#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "base/units.h"
#include "profile/measure.h"

namespace drafthorse {

std::string machine_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  std::string processor = "unknown processor";
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      processor = line.substr(colon + 2);
      break;
    }
  }
  const auto memory = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
  return fmt::format("{}, {} processors, {} GiB", processor, std::thread::hardware_concurrency(),
                     (memory + kGiB / 2) / kGiB);
}

Result<MachineProfile> measure_machine(const MeasureOptions& options, const MeasureProgress& progress) {
  MachineProfile profile;
  profile.machine = machine_name();
  profile.threads =
      options.threads > 0 ? options.threads : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  profile.taken_at =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  RETURN_IF_ERROR(measure_disk(options, profile, progress));
  RETURN_IF_ERROR(measure_overlap(options, profile));
  RETURN_IF_ERROR(measure_first_touch(profile));
  RETURN_IF_ERROR(measure_kernels(options, profile, progress));
  measure_graph(profile.threads, profile);
  RETURN_IF_ERROR(measure_disk_again(options, profile));
  return profile;
}

}  // namespace drafthorse
