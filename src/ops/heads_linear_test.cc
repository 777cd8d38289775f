// A matrix per head is as many linears: bit for bit, whatever is computed together.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "ops/linear.h"
#include "ops/testing/graph_runner.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

struct Heads {
  int64_t columns = 0;
  int64_t rows = 0;
  int64_t heads = 0;
};

// x: [columns, heads, tokens] -> [rows, heads, tokens]
std::vector<float> run_heads(Compute& compute, const Heads& shape, const RandomMatrix& w, const std::vector<float>& x) {
  const NodeContext nodes({compute.pool(), simd::kernels(best_isa())});
  GraphRunner graph(compute);
  const int64_t tokens = static_cast<int64_t>(x.size()) / (shape.columns * shape.heads);
  ggml_tensor* weights = graph.input(w.matrix.type, {shape.columns, shape.rows, shape.heads}, w.data.data());
  ggml_tensor* in = graph.input(GGML_TYPE_F32, {shape.columns, shape.heads * tokens}, x.data());
  return graph.run(heads_linear(graph.context(), nodes, weights, quantize(graph.context(), nodes, in, w.matrix.type)));
}

std::vector<float> run_one(Compute& compute, const Heads& shape, const RandomMatrix& w, int64_t head,
                           const std::vector<float>& x) {
  const NodeContext nodes({compute.pool(), simd::kernels(best_isa())});
  GraphRunner graph(compute);
  const std::byte* data = w.data.data() + static_cast<size_t>(head * shape.rows) * w.matrix.row_bytes;
  ggml_tensor* weights = graph.input(w.matrix.type, {shape.columns, shape.rows}, data);
  ggml_tensor* in = graph.input(GGML_TYPE_F32, {shape.columns, 1}, x.data());
  return graph.run(linear(graph.context(), nodes, weights, quantize(graph.context(), nodes, in, w.matrix.type)));
}

TEST(HeadsLinear, IsALinearPerHeadWhateverIsComputedTogether) {
  std::mt19937_64 random(5);
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K}) {
    const int64_t columns = ggml_blck_size(type) == 1 ? 37 : 256;
    for (const Heads& shape : {Heads{columns, 5, 3}, Heads{columns, 64, 1}, Heads{columns, 130, 16}}) {
      const RandomMatrix w(type, shape.columns, shape.rows * shape.heads, random);
      for (const int64_t tokens : {1, 2, 9, 40}) {
        const std::vector<float> x = random_floats(static_cast<size_t>(shape.columns * shape.heads * tokens), random);
        Compute one(1);
        Compute three(3);
        const std::vector<float> together = run_heads(one, shape, w, x);
        ASSERT_EQ(together, run_heads(three, shape, w, x));
        for (int64_t i = 0; i < tokens * shape.heads; i += 1 + i / 7) {
          const std::vector<float> row(x.begin() + i * shape.columns, x.begin() + (i + 1) * shape.columns);
          const std::vector<float> expected = run_one(one, shape, w, i % shape.heads, row);
          const std::vector<float> got(together.begin() + i * shape.rows, together.begin() + (i + 1) * shape.rows);
          ASSERT_EQ(got, expected) << ggml_type_name(type) << ", row " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace drafthorse::ops
