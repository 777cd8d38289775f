// Kernels at the speed of memory: weights rotate over more than the caches hold, as they do in a model.
// `bytes_per_second` counts weight bytes, each read once per call however many tokens share it.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/units.h"
#include "base/worker_pool.h"
#include "ops/expert_ffn.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

constexpr uint64_t kBeyondCaches = 96 * kMiB;
constexpr uint64_t kSmoke = 1;  // a single copy

// Copies of one matrix, together at least `bytes`.
class RotatingMatrix {
 public:
  RotatingMatrix(ggml_type type, int64_t columns, int64_t rows, uint64_t bytes, std::mt19937_64& random)
      : original_(type, columns, rows, random, 1 / std::sqrt(static_cast<float>(columns))),
        copies_((bytes + original_.data.size() - 1) / original_.data.size()),
        memory_(copies_ * original_.data.size()) {
    for (size_t i = 0; i < copies_; ++i) {
      std::memcpy(memory_.data() + i * original_.data.size(), original_.data.data(), original_.data.size());
    }
  }
  WeightMatrix next() {
    WeightMatrix matrix = original_.matrix;
    matrix.data = memory_.data() + (turn_++ % copies_) * original_.data.size();
    return matrix;
  }
  size_t bytes() const { return original_.data.size(); }

 private:
  RandomMatrix original_;
  size_t copies_;
  std::vector<std::byte> memory_;
  size_t turn_ = 0;
};

void bench_linear(benchmark::State& state, ggml_type type, int64_t tokens, int threads, uint64_t rotate_bytes) {
  const int64_t columns = rotate_bytes == kSmoke ? 256 : 2048;
  const int64_t rows = rotate_bytes == kSmoke ? 64 : 2048;
  std::mt19937_64 random(1);
  WorkerPool pool(threads);
  RotatingMatrix weights(type, columns, rows, rotate_bytes, random);
  const std::vector<float> x = random_floats(static_cast<size_t>(columns * tokens), random);
  const RandomActivations in(x, columns, type);
  const simd::Kernels& kernels = simd::kernels(best_isa());
  std::vector<float> y(static_cast<size_t>(rows * tokens));
  for (auto _ : state) {
    const WeightMatrix w = weights.next();
    pool.run(rows, row_grain(rows, columns * tokens, threads),
             [&](int64_t begin, int64_t end) { linear_rows(kernels, w, in.rows, y.data(), rows, begin, end); });
    benchmark::DoNotOptimize(y.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(weights.bytes()));
}

// Eight experts with `tokens` rows each.
void bench_experts(benchmark::State& state, ggml_type type, int32_t tokens, int threads, uint64_t rotate_bytes) {
  constexpr int kExperts = 8;
  const int64_t n_embd = rotate_bytes == kSmoke ? 256 : 2048;
  const int64_t n_ff = rotate_bytes == kSmoke ? 256 : 768;
  std::mt19937_64 random(1);
  WorkerPool pool(threads);
  RotatingMatrix gate_up(type, n_embd, n_ff, rotate_bytes, random);
  RotatingMatrix down(type, n_ff, n_embd, rotate_bytes, random);
  const std::vector<float> x = random_floats(static_cast<size_t>(n_embd * tokens), random);
  const RandomActivations in(x, n_embd, type);
  std::vector<int32_t> token_of_row;
  for (int32_t row = 0; row < kExperts * tokens; ++row) token_of_row.push_back(row % tokens);
  std::vector<float> hidden(token_of_row.size() * static_cast<size_t>(n_ff));
  std::vector<std::byte> hidden_quantized(token_of_row.size() * activation_row_bytes(activation_format(type), n_ff));
  std::vector<float> output(token_of_row.size() * static_cast<size_t>(n_embd));
  std::vector<ExpertWork> work(kExperts);
  for (auto _ : state) {
    for (int32_t e = 0; e < kExperts; ++e) {
      work[e] = {{gate_up.next(), gate_up.next(), down.next()}, e * tokens, (e + 1) * tokens};
    }
    run_experts(
        {{in.data.data(), in.row_bytes}, token_of_row, work, hidden.data(), hidden_quantized.data(), output.data()},
        {pool, simd::kernels(best_isa())});
    benchmark::DoNotOptimize(output.data());
  }
  state.SetBytesProcessed(state.iterations() * kExperts * static_cast<int64_t>(2 * gate_up.bytes() + down.bytes()));
}

void register_all() {
  for (const ggml_type type : {GGML_TYPE_Q4_K, GGML_TYPE_Q8_0, GGML_TYPE_BF16}) {
    const std::string type_name = ggml_type_name(type);
    for (const int threads : {1, 2}) {
      for (const int tokens : {1, 4, 16}) {
        const std::string name =
            type_name + "/tokens:" + std::to_string(tokens) + "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(("linear/" + name).c_str(), bench_linear, type, tokens, threads, kBeyondCaches)
            ->UseRealTime();
        benchmark::RegisterBenchmark(("experts/" + name).c_str(), bench_experts, type, tokens, threads, kBeyondCaches)
            ->UseRealTime();
      }
    }
    benchmark::RegisterBenchmark(("smoke/linear/" + type_name).c_str(), bench_linear, type, 4, 2, kSmoke);
    benchmark::RegisterBenchmark(("smoke/experts/" + type_name).c_str(), bench_experts, type, 4, 2, kSmoke);
  }
}

}  // namespace
}  // namespace drafthorse::ops

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  drafthorse::ops::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
