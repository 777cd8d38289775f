// Attention of n tokens over a long prefix: ours in one pass (attend), ours token by token (one_by_one), and ggml's
// flash attention on the CPU (ggml_flash). F16 keys and values of 128 elements, two threads; caches rotate over more
// than the last-level cache holds, as a model's layers do.
//
// `bytes_per_second` counts the keys and values once, however many tokens share them; `flops` the products and sums of
// both matrices; `of_bound` is the share of what the machine allows, the slower of reading the cache at the measured
// bandwidth and multiplying at the measured peak of the instruction set.
//
//   attention_bench --benchmark_filter='/prefix:4096/' --benchmark_repetitions=5
//                   --benchmark_enable_random_interleaving=true --benchmark_report_aggregates_only=true

#include <benchmark/benchmark.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/check.h"
#include "base/units.h"
#include "base/worker_pool.h"
#include "ops/attention.h"
#include "ops/isa.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

constexpr uint64_t kBeyondCaches = 128 * kMiB;
constexpr int64_t kHeadDim = 128;
constexpr int kThreads = 2;

struct Case {
  int64_t prefix = 0;
  int64_t group = 1;
  int64_t tokens = 1;
  int64_t n_head_kv = 8;
  ggml_type type = GGML_TYPE_F16;
  uint64_t rotate_bytes = kBeyondCaches;

  int64_t n_head() const { return group * n_head_kv; }
  int64_t positions() const { return prefix + tokens; }
  size_t row_bytes() const { return ggml_row_size(type, kHeadDim * n_head_kv); }
  size_t cache_bytes() const { return 2 * row_bytes() * static_cast<size_t>(positions()); }
  double flops() const {
    return 4.0 * static_cast<double>(kHeadDim * n_head() * tokens) * static_cast<double>(prefix + (tokens + 1) / 2);
  }
  std::string name() const {
    return "/prefix:" + std::to_string(prefix) + "/group:" + std::to_string(group) +
           "/tokens:" + std::to_string(tokens) + "/" + ggml_type_name(type);
  }
};

// --- what the machine can do

double seconds_of(const auto& function) {
  const auto begin = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Fastest of the rounds that fit into a second, in units per second: long enough to find a moment when nothing else
// runs.
double best_rate(double units, const auto& function) {
  double best = 0;
  for (double spent = 0; spent < 1;) {
    const double seconds = seconds_of(function);
    best = std::max(best, units / seconds);
    spent += seconds;
  }
  return best;
}

// Sixteen independent chains of multiplications and additions per thread.
#if defined(__x86_64__)
constexpr int64_t kChains = 16;
[[gnu::target("avx512f")]] float multiply_512(int64_t steps) {
  using Vector [[gnu::vector_size(64)]] = float;
  Vector sum[kChains] = {};
  const Vector x = Vector{} + 1e-3F;
  for (int64_t i = 0; i < steps; ++i) {
    for (Vector& one : sum) asm volatile("vfmadd231ps %1, %1, %0" : "+v"(one) : "v"(x));
  }
  return sum[0][0];
}
[[gnu::target("avx2,fma")]] float multiply_256(int64_t steps) {
  using Vector [[gnu::vector_size(32)]] = float;
  constexpr int64_t kFew = 12;
  Vector sum[kFew] = {};
  const Vector x = Vector{} + 1e-3F;
  for (int64_t i = 0; i < steps * kChains / kFew; ++i) {
    for (Vector& one : sum) asm volatile("vfmadd231ps %1, %1, %0" : "+x"(one) : "x"(x));
  }
  return sum[0][0];
}
double peak_flops(WorkerPool& pool) {
  constexpr int64_t kSteps = 20'000'000;  // long enough for the scheduler to find each thread a core
  const bool wide = best_isa() == Isa::kAvx512;
  return best_rate(2.0 * kThreads * (wide ? 16 : 8) * kChains * kSteps, [&] {
    pool.run(kThreads, 1,
             [&](int64_t, int64_t) { benchmark::DoNotOptimize(wide ? multiply_512(kSteps) : multiply_256(kSteps)); });
  });
}
#else
double peak_flops(WorkerPool&) { return 0; }  // not known
#endif

double read_bandwidth(WorkerPool& pool) {
  const std::vector<uint64_t> memory(kBeyondCaches / sizeof(uint64_t), 1);
  return best_rate(static_cast<double>(kBeyondCaches), [&] {
    pool.run(static_cast<int64_t>(memory.size()), 1 << 18, [&](int64_t begin, int64_t end) {
      uint64_t sums[16] = {};
      for (int64_t i = begin; i < end; i += 16) {
        for (int k = 0; k < 16; ++k) sums[k] ^= memory[static_cast<size_t>(i + k)];
      }
      benchmark::DoNotOptimize(sums);
    });
  });
}

struct Peaks {
  double flops = 0;
  double bandwidth = 0;
};
const Peaks& peaks() {
  static const Peaks measured = [] {
    WorkerPool pool(kThreads);
    return Peaks{peak_flops(pool), read_bandwidth(pool)};
  }();
  return measured;
}

void report(benchmark::State& state, const Case& c) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(c.cache_bytes()));
  state.counters["flops"] = benchmark::Counter(c.flops(), benchmark::Counter::kIsIterationInvariantRate);
  if (c.rotate_bytes == 0 || peaks().flops == 0) return;
  const double bound = std::max(c.flops() / peaks().flops, static_cast<double>(c.cache_bytes()) / peaks().bandwidth);
  state.counters["of_bound"] = benchmark::Counter(bound, benchmark::Counter::kIsIterationInvariantRate);
}

// --- what is measured

// Copies of a cache in memory like the engine's; values follow the keys.
class Caches {
 public:
  explicit Caches(const Case& c)
      : copies_(std::max<size_t>(1, (c.rotate_bytes + c.cache_bytes() - 1) / c.cache_bytes())),
        bytes_(align_up(c.cache_bytes(), 4096)) {
    Result<Arena> arena = Arena::reserve(copies_ * bytes_);
    CHECK(arena.ok());
    arena_ = std::move(*arena);
    std::mt19937_64 random(1);
    const std::vector<float> row = random_floats(1 << 16, random);
    const size_t chunk = ggml_row_size(c.type, 1 << 16);
    std::vector<std::byte> rows(chunk);
    ggml_quantize_chunk(c.type, row.data(), rows.data(), 0, 1, 1 << 16, nullptr);
    for (size_t at = 0; at < copies_ * bytes_; at += chunk) {
      std::memcpy(arena_.data() + at, rows.data(), std::min(chunk, copies_ * bytes_ - at));
    }
  }
  size_t copies() const { return copies_; }
  std::byte* copy(size_t i) { return arena_.data() + i * bytes_; }
  std::byte* next() { return copy(turn_++ % copies_); }

 private:
  size_t copies_;
  size_t bytes_;
  Arena arena_;
  size_t turn_ = 0;
};

std::vector<float> queries(const Case& c) {
  std::mt19937_64 random(2);
  return random_floats(static_cast<size_t>(c.tokens * c.n_head() * kHeadDim), random);
}

void bench_attend(benchmark::State& state, const Case& c, bool one_by_one) {
  WorkerPool pool(kThreads);
  const Processor processor{pool, simd::kernels(best_isa())};
  Caches caches(c);
  const std::vector<float> q = queries(c);
  std::vector<float> out(q.size());
  std::vector<int32_t> positions(static_cast<size_t>(c.tokens));
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(c.prefix));
  const AttentionShape shape = {.key_dim = kHeadDim,
                                .value_dim = kHeadDim,
                                .n_head = c.n_head(),
                                .n_head_kv = c.n_head_kv,
                                .kv_type = c.type,
                                .scale = 1 / std::sqrt(static_cast<float>(kHeadDim))};
  AttentionWorkspace workspace;
  const int64_t step = one_by_one ? 1 : c.tokens;
  const int64_t width = c.n_head() * kHeadDim;
  for (auto _ : state) {
    for (int64_t t = 0; t < c.tokens; t += step) {
      const std::byte* cache = caches.next();
      const AttentionSequence sequence = {
          .q = q.data() + t * width,
          .q_token_stride = width,
          .q_head_stride = kHeadDim,
          .keys = cache,
          .key_stride = c.row_bytes(),
          .key_head_stride = ggml_row_size(c.type, kHeadDim),
          .values = cache + c.cache_bytes() / 2,
          .value_stride = c.row_bytes(),
          .value_head_stride = ggml_row_size(c.type, kHeadDim),
          .positions = {positions.data() + t, static_cast<size_t>(step)},
          .out = out.data() + t * width,
          .out_stride = width,
      };
      attend(processor, shape, {&sequence, 1}, workspace);
    }
    benchmark::DoNotOptimize(out.data());
  }
  report(state, c);
}

// One graph per copy of the cache, as a model has one per layer; a thread pool of its own that spins between nodes.
void bench_ggml(benchmark::State& state, const Case& c) {
  Caches caches(c);
  const std::vector<float> q = queries(c);
  std::vector<ggml_fp16_t> mask(static_cast<size_t>(c.tokens * c.positions()));
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t p = 0; p < c.positions(); ++p) {
      mask[static_cast<size_t>(t * c.positions() + p)] =
          ggml_fp32_to_fp16(p <= c.prefix + t ? 0.0F : -std::numeric_limits<float>::infinity());
    }
  }
  const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
      ggml_init({.mem_size = caches.copies() * (16 * ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false)),
                 .mem_buffer = nullptr,
                 .no_alloc = true}),
      ggml_free);
  ggml_backend_t backend = ggml_backend_cpu_init();
  ggml_threadpool_params params = ggml_threadpool_params_default(kThreads);
  ggml_threadpool* threads = ggml_threadpool_new(&params);
  ggml_backend_cpu_set_n_threads(backend, kThreads);
  ggml_backend_cpu_set_threadpool(backend, threads);
  ggml_context* const ctx = context.get();
  std::vector<float> out(q.size());
  std::vector<ggml_cgraph*> graphs;
  for (size_t i = 0; i < caches.copies(); ++i) {
    const auto tensor = [&](ggml_type type, std::vector<int64_t> dims, const void* data) {
      ggml_tensor* result = ggml_new_tensor(ctx, type, static_cast<int>(dims.size()), dims.data());
      result->data = const_cast<void*>(data);
      return result;
    };
    std::byte* cache = caches.copy(i);
    const auto heads = [&](const void* data) {
      return ggml_permute(ctx, tensor(c.type, {kHeadDim, c.n_head_kv, c.positions()}, data), 0, 2, 1, 3);
    };
    ggml_tensor* q_heads =
        ggml_permute(ctx, tensor(GGML_TYPE_F32, {kHeadDim, c.n_head(), c.tokens}, q.data()), 0, 2, 1, 3);
    ggml_tensor* k = heads(cache);
    ggml_tensor* v = heads(cache + c.cache_bytes() / 2);
    for (ggml_tensor* view : {q_heads, k, v}) view->data = view->src[0]->data;
    ggml_tensor* y = ggml_flash_attn_ext(
        ctx, q_heads, k, v, c.tokens == 1 ? nullptr : tensor(GGML_TYPE_F16, {c.positions(), c.tokens}, mask.data()),
        1 / std::sqrt(static_cast<float>(kHeadDim)), 0, 0);
    y->data = out.data();
    graphs.push_back(ggml_new_graph_custom(ctx, 8, false));
    ggml_build_forward_expand(graphs.back(), y);
  }
  size_t turn = 0;
  for (auto _ : state) {
    CHECK(ggml_backend_graph_compute(backend, graphs[turn++ % graphs.size()]) == GGML_STATUS_SUCCESS);
    benchmark::DoNotOptimize(out.data());
  }
  ggml_backend_free(backend);
  ggml_threadpool_free(threads);
  report(state, c);
}

void register_case(const std::string& prefix, const Case& c) {
  const auto add = [&](const std::string& name, auto... args) {
    benchmark::RegisterBenchmark((prefix + name + c.name()).c_str(), args...)
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  };
  add("attend", bench_attend, c, false);
  if (c.tokens > 1) add("one_by_one", bench_attend, c, true);
  add("ggml_flash", bench_ggml, c);
}

void register_all() {
  for (const int64_t prefix : {512, 4096, 32768}) {
    for (const int64_t group : {1, 4, 8}) {
      for (const int64_t tokens : {1, 4, 8, 16}) register_case("", {prefix, group, tokens});
    }
  }
  for (const ggml_type type : {GGML_TYPE_BF16, GGML_TYPE_Q8_0}) register_case("", {4096, 4, 8, 8, type});
  register_case("smoke/", {.prefix = 100, .group = 2, .tokens = 3, .n_head_kv = 2, .rotate_bytes = 0});
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
