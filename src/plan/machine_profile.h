// What a machine does, in numbers: measured by profile/, read by the prediction. Plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace drafthorse {

// Random reads of one size, so many under way at a time.
struct DiskRate {
  uint64_t read_bytes = 0;
  int in_flight = 0;
  double bytes_per_s = 0;
};

// Time of a matrix product for a number of tokens, by all threads, weights from DRAM.
struct KernelRate {
  int tokens = 0;
  double seconds_per_weight = 0;  // of the whole matrix's time, divided by its elements
};

// One weight type.
struct KernelProfile {
  std::string type;  // ggml's name, "bf16"
  double bytes_per_weight = 0;
  std::vector<KernelRate> linear;   // by ascending tokens
  std::vector<KernelRate> experts;  // gate, up, activation and down of whole experts, by rows of an expert
};

struct MachineProfile {
  std::string machine;  // processor, cores, memory: which machine this is about
  int threads = 0;
  int64_t taken_at = 0;  // seconds since 1970
  std::string disk_file;
  uint64_t disk_device = 0;  // the file system's st_dev
  bool direct_io = true;     // false: read through the page cache, so that the disk figures mean little
  std::vector<DiskRate> disk;
  double disk_bytes_per_s_at_the_end = 0;     // the last of `disk` again, after all else was measured
  double disk_latency_s = 0;                  // of one small read on an idle disk
  double first_touch_s_per_byte = 0;          // of memory the process has not used yet, where the system has it at hand
  double compute_slowdown_while_reading = 1;  // a matrix product's time beside full reading, over its time alone
  double stream_bytes_per_s = 0;              // large reads, as many under way as the queue takes, over seconds
  double stream_bytes_per_s_while_computing = 0;  // the same beside matrix products
  double ram_bytes_per_s = 0;                     // reading, all threads
  double byte_products_per_s = 0;                 // the peak of 8-bit multiplications, one core
  double float_products_per_s = 0;                // the same of floats
  double node_overhead_s = 0;                     // of one graph node on next to no data
  double elementwise_s_per_float = 0;             // of a graph node that passes over floats, on one thread
  double attention_s_per_key_float = 0;           // attention of one token: n_head * head_dim * keys times this
  std::vector<KernelProfile> kernels;
};

}  // namespace drafthorse
