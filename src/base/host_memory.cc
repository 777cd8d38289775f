#include "base/host_memory.h"

#include <malloc.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>

#include "base/units.h"

namespace drafthorse {
namespace {

// "KEY:   123 kB" in /proc/meminfo and /proc/self/status, in bytes.
std::optional<uint64_t> read_kib_field(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.size() > key.size() && line.compare(0, key.size(), key) == 0 && line[key.size()] == ':') {
      uint64_t value = 0;
      std::istringstream(line.substr(key.size() + 1)) >> value;
      return value * kKiB;
    }
  }
  return std::nullopt;
}

std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word)) return std::nullopt;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;  // "max"
  return value;
}

// "inactive_file 123" (v2) or "total_inactive_file 123" (v1) in memory.stat.
uint64_t read_stat(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string word;
  uint64_t value = 0;
  while (file >> word >> value) {
    if (word == key) return value;
  }
  return 0;
}

struct Controller {
  std::string mount;
  const char* limit;
  const char* usage;
  const char* inactive;
};

// What the group at mount/path and each of its ancestors still allow.
uint64_t group_allowance(const Controller& controller, std::string path) {
  uint64_t allowance = std::numeric_limits<uint64_t>::max();
  while (true) {
    const std::string folder = controller.mount + path;
    std::optional<uint64_t> limit = read_number(folder + "/" + controller.limit);
    // Beyond memory.high (version 2 only) the kernel throttles the group to a crawl: as good as a limit.
    if (const std::optional<uint64_t> high = read_number(folder + "/memory.high")) {
      limit = std::min(limit.value_or(*high), *high);
    }
    const std::optional<uint64_t> usage = read_number(folder + "/" + controller.usage);
    if (limit && usage) {
      const uint64_t inactive = read_stat(folder + "/memory.stat", controller.inactive);
      const uint64_t used = *usage - std::min(*usage, inactive);
      allowance = std::min(allowance, *limit - std::min(*limit, used));
    }
    if (path.empty() || path == "/") return allowance;
    const size_t slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
}

}  // namespace

uint64_t available_memory_bytes(const std::string& proc, const std::string& cgroup_root) {
  uint64_t available = read_kib_field(proc + "/meminfo", "MemAvailable").value_or(4 * kGiB);
  std::ifstream groups(proc + "/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // "HIERARCHY:CONTROLLERS:PATH"
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      available =
          std::min(available, group_allowance({cgroup_root, "memory.max", "memory.current", "inactive_file"}, path));
    } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      available = std::min(available, group_allowance({cgroup_root + "/memory", "memory.limit_in_bytes",
                                                       "memory.usage_in_bytes", "total_inactive_file"},
                                                      path));
    }
  }
  return available + read_kib_field(proc + "/self/status", "VmRSS").value_or(0);
}

uint64_t resident_bytes() { return read_kib_field("/proc/self/status", "VmRSS").value_or(0); }
uint64_t peak_resident_bytes() { return read_kib_field("/proc/self/status", "VmHWM").value_or(0); }
void trim_heap() { malloc_trim(0); }

}  // namespace drafthorse
