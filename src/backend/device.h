// Devices that compute beside the CPU: whatever an installed ggml has a backend for, through its public API alone.
//
// A device has memory that the host cannot touch. Work on it is queued and runs in order: compute(), write() and read()
// return at once where the device can, and wait() waits for all that was queued before. copy() goes by a second queue,
// beside what is computed; what is queued after await_copies() sees what was copied before it. What a device cannot do
// its properties say, and the same calls do it one after the other.
//
// ggml ends the process when a device is lost. One thread uses a Device.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "base/status.h"

namespace drafthorse {

// The name of computing without any device.
inline constexpr std::string_view kNoDevice = "cpu";

struct DeviceInfo {
  enum class Kind { kCpu, kGpu, kIntegrated, kAccelerator, kOther };
  std::string name;
  std::string description;
  Kind kind = Kind::kOther;
  uint64_t memory_free = 0;
  uint64_t memory_total = 0;
  bool async = false;   // works while the host goes on
  bool events = false;  // its queues can wait for each other
  bool pinned = false;  // there is host memory that it copies from at full speed
};

// All there are, the CPU among them.
std::vector<DeviceInfo> list_devices();
std::string_view kind_name(DeviceInfo::Kind kind);

// A server of ggml's RPC backend, "host:port": its devices become RPC0 and on. kUsage where nobody answers there.
Status add_server(const std::string& endpoint);

// What "auto" stands for: the first GPU, or kNoDevice.
std::string choose_device();

class Device {
 public:
  // kUsage where there is no device of that name, or it is the CPU, naming those there are.
  static Result<std::unique_ptr<Device>> open(const std::string& name);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const DeviceInfo& info() const { return info_; }
  ggml_backend_buffer_type_t memory_type() const { return memory_type_; }
  // Host memory that copies are fastest from, where the device has such (info().pinned) and can have so much; else like
  // any other.
  Result<Arena> reserve_host(uint64_t bytes) const;
  bool supports(const ggml_tensor* op) const;
  uint64_t alignment() const;

  // Queues all nodes.
  void compute(ggml_cgraph* graph);
  // Queues a write. `data` must stay as it is until the next wait().
  void write(ggml_tensor* tensor, const void* data, uint64_t offset, uint64_t bytes);
  // Queues a read; `data` is there after the next wait().
  void read(const ggml_tensor* tensor, void* data, uint64_t offset, uint64_t bytes);
  // Until all that is queued is done, copies aside.
  void wait();
  int64_t waits() const { return waits_; }  // since the device was opened
  // A point in the queue, and until all before it is done: what was queued after it goes on. The last two marks hold.
  int mark();
  void wait_for(int mark);

  // Queues a copy to the device beside what is computed. `data` must stay until it is done, and nothing that is queued
  // or running may use where it goes.
  void copy(ggml_tensor* tensor, const void* data, uint64_t offset, uint64_t bytes);
  // What is queued from now on begins when the copies queued so far are done.
  void await_copies();
  void wait_for_copies();
  uint64_t copied_bytes() const { return copied_bytes_; }

 private:
  Device() = default;

  struct BackendDeleter {
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
  };
  using Backend = std::unique_ptr<ggml_backend, BackendDeleter>;
  struct EventDeleter {
    void operator()(ggml_backend_event_t event) const { ggml_backend_event_free(event); }
  };
  using Event = std::unique_ptr<ggml_backend_event, EventDeleter>;

  DeviceInfo info_;
  ggml_backend_dev_t device_ = nullptr;
  ggml_backend_buffer_type_t memory_type_ = nullptr;
  ggml_backend_buffer_type_t pinned_type_ = nullptr;
  Backend backend_;
  Backend copies_;  // null where the device cannot do two things at once: copies are queued with the rest
  Event copied_;
  Event marks_[2];  // null where its queue cannot be waited for in parts
  int next_mark_ = 0;
  int64_t waits_ = 0;
  uint64_t copied_bytes_ = 0;
};

// Memory on a device for tensors that stay. It is planned first: tensors get their places, and graphs over them can be
// measured, while nothing is taken from the device. allocate() takes it.
class DeviceArena {
 public:
  explicit DeviceArena(Device& device) : device_(&device) {}

  // The tensor must outlive this.
  void add(ggml_tensor* tensor);
  uint64_t bytes() const { return bytes_; }
  bool allocated() const { return buffer_ != nullptr; }
  // kMemory, naming `what` and what it takes, where the device has too little left. Zeroed.
  Status allocate(const std::string& what);

  // `result`, of a graph, is written where `place` lies, `offset` bytes on. place: added here before.
  void place(ggml_tensor* result, const ggml_tensor* place, uint64_t offset = 0) const;

 private:
  struct BufferDeleter {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
  };
  Device* device_;
  uint64_t bytes_ = 0;
  std::vector<std::pair<ggml_tensor*, uint64_t>> tensors_;  // and where
  std::unique_ptr<ggml_backend_buffer, BufferDeleter> buffer_;
};

}  // namespace drafthorse
