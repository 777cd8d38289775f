// Builds a small ggml graph and runs it the way the engine does, for tests of graph nodes.
#pragma once

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <memory>
#include <vector>

#include "backend/compute.h"

namespace drafthorse::ops {

class GraphRunner {
 public:
  explicit GraphRunner(Compute& compute)
      : compute_(compute),
        context_(ggml_init({.mem_size = 64 * ggml_tensor_overhead() + ggml_graph_overhead(),
                            .mem_buffer = nullptr,
                            .no_alloc = true})) {}

  ggml_context* context() const { return context_.get(); }

  // `data` is copied in when the graph runs.
  ggml_tensor* input(ggml_type type, std::vector<int64_t> shape, const void* data) {
    ggml_tensor* tensor = ggml_new_tensor(context(), type, static_cast<int>(shape.size()), shape.data());
    inputs_.push_back({tensor, data});
    return tensor;
  }

  std::vector<float> run(ggml_tensor* output) {
    ggml_cgraph* graph = ggml_new_graph(context());
    ggml_build_forward_expand(graph, output);
    const std::unique_ptr<ggml_backend_buffer, FreeBuffer> buffer(
        ggml_backend_alloc_ctx_tensors(context(), compute_.backend()));
    for (const Input& one : inputs_) ggml_backend_tensor_set(one.tensor, one.data, 0, ggml_nbytes(one.tensor));
    compute_.run(graph);
    std::vector<float> result(static_cast<size_t>(ggml_nelements(output)));
    ggml_backend_tensor_get(output, result.data(), 0, ggml_nbytes(output));
    return result;
  }

 private:
  struct FreeContext {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  struct FreeBuffer {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
  };
  struct Input {
    ggml_tensor* tensor = nullptr;
    const void* data = nullptr;
  };
  Compute& compute_;
  std::unique_ptr<ggml_context, FreeContext> context_;
  std::vector<Input> inputs_;
};

}  // namespace drafthorse::ops
