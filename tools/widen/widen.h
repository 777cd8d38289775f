// Makes a GGUF file of any wanted size with the same function from a small one, or the same model in another type.
// Why the function stays is written in plan.h.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "widen/plan.h"

namespace drafthorse {

struct WidenReport {
  int64_t n_layer = 0;
  int64_t n_embd = 0;
  int64_t n_ff = 0;
  uint64_t file_bytes = 0;
  uint64_t expert_bytes = 0;  // of one expert of one layer; 0 for a dense model
};

// Called from the calling thread with the bytes of tensor data written so far and in all.
using WidenProgress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

// Streams to `out_path`.part and renames it when it is complete and on disk; on failure the part is removed.
// At most about 150 MiB are held beside the mapped source. n_threads 0: as many as there are processors.
Result<WidenReport> widen(const std::string& in_path, const std::string& out_path, const WidenOptions& options,
                          int32_t n_threads = 0, const WidenProgress& progress = nullptr);

}  // namespace drafthorse
