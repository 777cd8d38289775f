// A ggml graph and the context that its tensors live in.
#pragma once

#include <ggml.h>

#include "base/check.h"

namespace drafthorse {

struct StageGraph {
  ggml_context* context = nullptr;
  ggml_cgraph* graph = nullptr;

  static size_t context_bytes(size_t tensors) {
    return tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(tensors, false);
  }

  explicit StageGraph(size_t tensors) {
    context = ggml_init({context_bytes(tensors), nullptr, true});
    CHECK(context != nullptr);
    graph = ggml_new_graph_custom(context, tensors, false);
  }
  ~StageGraph() { ggml_free(context); }
  StageGraph(const StageGraph&) = delete;
  StageGraph& operator=(const StageGraph&) = delete;
};

}  // namespace drafthorse
