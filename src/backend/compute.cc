#include "backend/compute.h"

#include <ggml-cpu.h>

namespace drafthorse {
Compute::Compute(int threads) : pool_(threads), backend_(ggml_backend_cpu_init()) {
  CHECK(backend_ != nullptr);
  ggml_backend_cpu_set_n_threads(backend_, 1);
}

Compute::~Compute() { ggml_backend_free(backend_); }

void Compute::run(ggml_cgraph* graph) {
  const ggml_status status = ggml_backend_graph_compute(backend_, graph);
  CHECK(status == GGML_STATUS_SUCCESS);
}

Result<DeviceBuffer> DeviceBuffer::reserve(uint64_t bytes, Pages pages) {
  if (bytes == 0) return DeviceBuffer();
  ASSIGN_OR_RETURN(Arena arena, Arena::reserve(bytes, pages));
  return over(std::move(arena));
}

DeviceBuffer DeviceBuffer::over(Arena arena) {
  DeviceBuffer result;
  result.arena_ = std::move(arena);
  result.buffer_.reset(ggml_backend_cpu_buffer_from_ptr(result.arena_.data(), result.arena_.bytes()));
  CHECK(result.buffer_ != nullptr);
  return result;
}

void DeviceBuffer::place(ggml_tensor* tensor, uint64_t offset) const {
  CHECK(offset + ggml_nbytes(tensor) <= bytes());
  const ggml_status status = ggml_backend_tensor_alloc(buffer_.get(), tensor, data() + offset);
  CHECK(status == GGML_STATUS_SUCCESS);
}

}  // namespace drafthorse
