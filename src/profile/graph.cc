// What ggml's share of a layer costs: nodes by their number and by the floats they pass over, and attention.
#include <ggml-alloc.h>

#include <memory>
#include <vector>

#include "backend/compute.h"
#include "base/clock.h"
#include "ops/attention.h"
#include "profile/measure.h"

namespace drafthorse {
namespace {

constexpr int kNodes = 16;
constexpr int64_t kFewFloats = 32;
constexpr int64_t kManyFloats = 8192;
constexpr int64_t kKeys = 512;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kHeads = 16;
constexpr int kRuns = 200;

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
struct FreeBuffer {
  void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
};

// Runs the graph that `build` makes and returns the time of one run.
template <typename Build>
double graph_seconds(Compute& compute, const Build& build) {
  const std::unique_ptr<ggml_context, FreeContext> context(
      ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
  CHECK(context != nullptr);
  ggml_cgraph* graph = ggml_new_graph(context.get());
  ggml_build_forward_expand(graph, build(context.get()));
  const std::unique_ptr<ggml_backend_buffer, FreeBuffer> buffer(
      ggml_backend_alloc_ctx_tensors(context.get(), compute.backend()));
  CHECK(buffer != nullptr);
  ggml_backend_buffer_clear(buffer.get(), 0);
  for (ggml_tensor* tensor = ggml_get_first_tensor(context.get()); tensor != nullptr;
       tensor = ggml_get_next_tensor(context.get(), tensor)) {
    if (tensor->op != GGML_OP_NONE) continue;
    // Positions and rows are the only whole numbers: the last key's.
    const int64_t last = kKeys - 1;
    if (tensor->type == GGML_TYPE_I32) ggml_backend_tensor_set(tensor, &last, 0, sizeof(int32_t));
    if (tensor->type == GGML_TYPE_I64) ggml_backend_tensor_set(tensor, &last, 0, sizeof(int64_t));
  }
  compute.run(graph);
  const SteadyClock clock;
  const int64_t start = clock.now_ns();
  for (int i = 0; i < kRuns; ++i) compute.run(graph);
  return seconds(clock.now_ns() - start) / kRuns;
}

}  // namespace

void measure_graph(int threads, MachineProfile& profile) {
  Compute compute(threads);
  const auto chain = [](int64_t floats) {
    return [floats](ggml_context* context) {
      ggml_tensor* x = ggml_new_tensor_1d(context, GGML_TYPE_F32, floats);
      ggml_tensor* y = ggml_new_tensor_1d(context, GGML_TYPE_F32, floats);
      for (int i = 0; i < kNodes; ++i) x = i % 2 == 0 ? ggml_rms_norm(context, x, 1e-5F) : ggml_mul(context, x, y);
      return x;
    };
  };
  const double few = graph_seconds(compute, chain(kFewFloats));
  const double many = graph_seconds(compute, chain(kManyFloats));
  profile.node_overhead_s = few / kNodes;
  profile.elementwise_s_per_float = std::max(0.0, many - few) / (kNodes * (kManyFloats - kFewFloats));
  const ops::AttentionNode node(
      {compute.pool(), ops::simd::kernels(ops::best_isa())},
      {.key_dim = kHeadDim, .value_dim = kHeadDim, .n_head = kHeads, .n_head_kv = kHeads, .scale = 0.1F});
  const double attention = graph_seconds(compute, [&](ggml_context* context) {
    return ops::attention(context, ggml_new_tensor_3d(context, GGML_TYPE_F32, kHeadDim, kHeads, 1),
                          ggml_new_tensor_2d(context, GGML_TYPE_F16, kHeadDim * kHeads, kKeys),
                          ggml_new_tensor_2d(context, GGML_TYPE_F16, kHeadDim * kHeads, kKeys),
                          ggml_new_tensor_1d(context, GGML_TYPE_I32, 1), ggml_new_tensor_1d(context, GGML_TYPE_I64, 1),
                          node);
  });
  profile.attention_s_per_key_float =
      std::max(0.0, attention - profile.node_overhead_s) / static_cast<double>(kHeadDim * kHeads * kKeys);
}

}  // namespace drafthorse
