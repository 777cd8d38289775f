#include "backend/compute.h"

#include <ggml-cpu.h>

namespace drafthorse {
namespace {

// How long ggml's idle workers spin before they sleep: level 1 is about a millisecond. Between the stages of a layer
// they stay awake; during a read from storage they leave the core to the kernel.
constexpr uint32_t kPollLevel = 1;

}  // namespace

Compute::Compute(int threads) : threads_(threads) {
  backend_ = ggml_backend_cpu_init();
  CHECK(backend_ != nullptr);
  ggml_threadpool_params params = ggml_threadpool_params_default(threads);
  params.poll = kPollLevel;
  pool_ = ggml_threadpool_new(&params);
  CHECK(pool_ != nullptr);
  ggml_backend_cpu_set_n_threads(backend_, threads);
  ggml_backend_cpu_set_threadpool(backend_, pool_);
}

Compute::~Compute() {
  ggml_backend_free(backend_);
  ggml_threadpool_free(pool_);
}

void Compute::run(ggml_cgraph* graph) {
  const ggml_status status = ggml_backend_graph_compute(backend_, graph);
  CHECK(status == GGML_STATUS_SUCCESS);
}

Result<DeviceBuffer> DeviceBuffer::reserve(uint64_t bytes) {
  DeviceBuffer result;
  if (bytes == 0) return result;
  ASSIGN_OR_RETURN(result.arena_, Arena::reserve(bytes));
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
