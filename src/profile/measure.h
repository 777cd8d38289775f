// Measures what predictions need of the machine: disk, RAM, kernels. Some seconds for each; nothing else should run.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "plan/machine_profile.h"

namespace drafthorse {

struct MeasureOptions {
  std::string disk_file;           // read, never written; at least 64 MiB
  int threads = 0;                 // 0: one per core
  double seconds = 0.2;            // for each disk figure; kernels take a fraction
  std::vector<std::string> types;  // of weights, by ggml's names; empty: all
  uint64_t memory_bytes = 0;  // that kernels rotate over, more than the caches hold; 0: four times the largest cache
};

// what: in words; part: 0 to 1.
using MeasureProgress = std::function<void(std::string_view what, double part)>;

// kFile where disk_file cannot be read or is too small, kMemory where memory is short.
Result<MachineProfile> measure_machine(const MeasureOptions& options, const MeasureProgress& progress);

// Which machine this is: processor, cores, memory. Two machines of one make are the same.
std::string machine_name();

// --- the parts
// Disk figures into `profile`.
Status measure_disk(const MeasureOptions& options, MachineProfile& profile, const MeasureProgress& progress);
// The last of them again, to compare: a disk that was busy with something else is not so for long.
Status measure_disk_again(const MeasureOptions& options, MachineProfile& profile);
// What reading costs computing.
Status measure_overlap(const MeasureOptions& options, MachineProfile& profile);
// What memory costs when it is used for the first time.
Status measure_first_touch(MachineProfile& profile);
// RAM and kernels.
Status measure_kernels(const MeasureOptions& options, MachineProfile& profile, const MeasureProgress& progress);

// What graph nodes and attention cost, with as many threads.
void measure_graph(int threads, MachineProfile& profile);

}  // namespace drafthorse
