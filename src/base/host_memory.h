// How much memory this process may use, and how much it does.
#pragma once

#include <cstdint>
#include <string>

namespace drafthorse {

// The least of MemAvailable and what every memory cgroup above this process leaves (v1 and v2, all ancestors;
// inactive file pages count as free, the kernel takes them back), in bytes, this process's own pages included.
// `proc` and `cgroup_root` are parameters for tests.
uint64_t available_memory_bytes(const std::string& proc = "/proc", const std::string& cgroup_root = "/sys/fs/cgroup");

uint64_t resident_bytes();       // VmRSS of this process
uint64_t peak_resident_bytes();  // VmHWM of this process

// Hands freed heap pages back to the system.
void trim_heap();

}  // namespace drafthorse
