// The device that computes: the CPU. ggml's CPU backend runs a graph's nodes one after the other on the calling thread,
// and the nodes that are ours (ops/) spread their work over a pool of workers that target and draft share.
//
// ggml's own thread pool is not used: it meets at a spinning barrier after every node, so that on a machine with
// anything else to do each node waits for a time slice.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <memory>

#include "base/arena.h"
#include "base/status.h"
#include "base/worker_pool.h"

namespace drafthorse {

class Compute {
 public:
  explicit Compute(int threads);
  ~Compute();
  Compute(const Compute&) = delete;
  Compute& operator=(const Compute&) = delete;

  WorkerPool& pool() { return pool_; }
  ggml_backend_t backend() const { return backend_; }

  // Runs all nodes in order and returns when the last is done.
  void run(ggml_cgraph* graph);

 private:
  WorkerPool pool_;
  ggml_backend_t backend_ = nullptr;
};

// Memory of a device that ggml tensors can be placed in: an arena and the ggml buffer over it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static Result<DeviceBuffer> reserve(uint64_t bytes, Pages pages = Pages::kHuge);
  static DeviceBuffer over(Arena arena);
  DeviceBuffer(DeviceBuffer&&) = default;
  DeviceBuffer& operator=(DeviceBuffer&&) = default;

  std::byte* data() const { return arena_.data(); }
  uint64_t bytes() const { return arena_.bytes(); }
  void give_back(uint64_t offset, uint64_t bytes) const { arena_.give_back(offset, bytes); }

  // Gives `tensor` its memory, `offset` bytes into the buffer. The tensor must fit (CHECK).
  void place(ggml_tensor* tensor, uint64_t offset) const;

 private:
  struct BufferDeleter {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
  };
  Arena arena_;
  std::unique_ptr<ggml_backend_buffer, BufferDeleter> buffer_;
};

}  // namespace drafthorse
