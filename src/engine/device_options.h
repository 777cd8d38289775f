// What computes beside the CPU, as an engine is told.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ledger.h"
#include "base/status.h"

namespace drafthorse {

// On a device in fixed mode every verification is as wide as this: deeper drafts are not to be had.
inline constexpr int32_t kFixedWindow = 16;

struct DeviceOptions {
  std::string name = "auto";           // a device's, "auto" or "cpu"
  std::vector<std::string> servers;    // of ggml's RPC backend, host:port: devices RPC0 and on
  std::optional<uint64_t> vram_bytes;  // of the device's memory; default: what is free, less a reserve
  std::string placement = "auto";      // or "fixed": the same text at any depth and number of slots
};
std::vector<std::string> placement_names();

// The name of the device to use; "cpu": none. kUsage where servers do not answer.
Result<std::string> resolve_device(const DeviceOptions& options);

// Bytes for expert slots that a budget of a device's memory leaves. kMemory, naming the least, where it is too small.
Result<uint64_t> plan_device_memory(const std::string& device, const MemoryLedger& fixed, uint64_t least_slot_bytes,
                                    uint64_t budget_bytes);

}  // namespace drafthorse
