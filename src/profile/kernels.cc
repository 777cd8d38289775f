#include <fmt/format.h>
#include <ggml-cpu.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "base/arena.h"
#include "base/clock.h"
#include "base/units.h"
#include "base/worker_pool.h"
#include "ops/expert_ffn.h"
#include "ops/linear.h"
#include "profile/measure.h"

namespace drafthorse {
namespace {

constexpr int kTokens[] = {1, 2, 4, 8, 16, 64, 256};
// Sizes of a matrix as models have them; what matters is that they are neither tiny nor larger than what they
// rotate over.
constexpr int64_t kColumns = 2048;
constexpr int64_t kRows = 2048;
constexpr uint64_t kLeastMemory = 256 * kMiB;
constexpr int kLeastRuns = 3;
constexpr double kLeastSeconds = 0.02;
constexpr double kMostOfMedian = 3;

uint64_t largest_cache() {
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? static_cast<uint64_t>(bytes) : 32 * kMiB;
}

// The mean time of `run`, run for at least as long and as often as it takes to trust it. What now and then takes longer
// (other processes, a host's other guests) is a part of every run of a model too and counts, but a single long stop of
// the system only as much as kMostOfMedian times the median.
template <typename Run>
double mean_seconds(double least_s, const Run& run) {
  const SteadyClock clock;
  run();
  std::vector<double> times;
  const int64_t start = clock.now_ns();
  while (static_cast<int>(times.size()) < kLeastRuns || seconds(clock.now_ns() - start) < least_s) {
    const int64_t before = clock.now_ns();
    run();
    times.push_back(seconds(clock.now_ns() - before));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  const double most = kMostOfMedian * times[times.size() / 2];
  return std::accumulate(times.begin(), times.end(), 0.0,
                         [&](double sum, double taken) { return sum + std::min(taken, most); }) /
         static_cast<double>(times.size());
}

// Types that weights come in: those whose kernels the engine would use.
std::vector<ggml_type> weight_types(const std::vector<std::string>& wanted) {
  std::vector<ggml_type> types;
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const auto type = static_cast<ggml_type>(i);
    const bool stored = ggml_type_size(type) > 0 && type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K;
    const bool asked_for =
        wanted.empty() || (stored && std::find(wanted.begin(), wanted.end(), ggml_type_name(type)) != wanted.end());
    if (stored && asked_for && ops::supports_weights(type) && kColumns % ggml_blck_size(type) == 0)
      types.push_back(type);
  }
  return types;
}

class Kernels {
 public:
  Kernels(const Arena& weights, int threads, double least_s)
      : weights_(weights), pool_(threads), kernels_(ops::simd::kernels(ops::best_isa())), least_s_(least_s) {}

  WorkerPool& pool() { return pool_; }

  KernelProfile profile(ggml_type type) {
    KernelProfile result;
    result.type = ggml_type_name(type);
    result.bytes_per_weight = static_cast<double>(ggml_row_size(type, kColumns)) / kColumns;
    for (const int tokens : kTokens) {
      result.linear.push_back({tokens, linear(type, tokens)});
      result.experts.push_back({tokens, experts(type, tokens)});
    }
    return result;
  }

  double ram_bytes_per_s() {
    const auto* words = reinterpret_cast<const uint64_t*>(weights_.data());
    const auto count = static_cast<int64_t>(weights_.bytes() / sizeof(uint64_t));
    std::atomic<uint64_t> sink = 0;
    const double taken = mean_seconds(least_s_ * 5, [&] {
      pool_.run(count, 1 << 16,
                [&](int64_t begin, int64_t end) { sink += std::accumulate(words + begin, words + end, uint64_t{0}); });
    });
    return static_cast<double>(weights_.bytes()) / taken;
  }

  double byte_products_per_s() {
    return products_per_s([&] {
      int32_t sink = 1;
      return kernels_.peak_of_bytes(kPeakRounds, &sink);
    });
  }
  double float_products_per_s() {
    return products_per_s([&] {
      float sink = 0;
      return kernels_.peak_of_floats(kPeakRounds, &sink);
    });
  }

 private:
  static constexpr int64_t kPeakRounds = 1 << 16;

  template <typename Peak>
  double products_per_s(const Peak& peak) {
    int64_t products = 0;
    const double taken = mean_seconds(least_s_, [&] { products = peak(); });
    return static_cast<double>(products) / taken;
  }

  // Another place each time, so that nothing is found in a cache.
  ops::WeightMatrix next(ggml_type type, int64_t columns, int64_t rows) {
    const size_t row_bytes = ggml_row_size(type, columns);
    const uint64_t bytes = align_up(row_bytes * static_cast<uint64_t>(rows), kDirectBlock);
    if (at_ + bytes > weights_.bytes()) at_ = 0;
    const ops::WeightMatrix matrix{weights_.data() + at_, type, columns, rows, row_bytes};
    at_ += bytes;
    return matrix;
  }

  std::vector<std::byte> activations(ggml_type type, int tokens) const {
    const ops::ActivationFormat format = ops::activation_format(type);
    const size_t row_bytes = ops::activation_row_bytes(format, kColumns);
    std::vector<std::byte> rows(row_bytes * static_cast<size_t>(tokens));
    const std::vector<float> ones(kColumns, 1.0F);
    for (int t = 0; t < tokens; ++t) {
      ops::write_activation_row(kernels_, ones.data(), rows.data() + row_bytes * static_cast<size_t>(t), kColumns,
                                format);
    }
    return rows;
  }

  double linear(ggml_type type, int tokens) {
    const std::vector<std::byte> in = activations(type, tokens);
    const size_t row_bytes = in.size() / static_cast<size_t>(tokens);
    std::vector<const std::byte*> rows;
    for (int t = 0; t < tokens; ++t) rows.push_back(in.data() + row_bytes * static_cast<size_t>(t));
    std::vector<float> y(static_cast<size_t>(kRows) * static_cast<size_t>(tokens));
    const double taken = mean_seconds(least_s_, [&] {
      const ops::WeightMatrix w = next(type, kColumns, kRows);
      pool_.run(kRows, ops::row_grain(kRows, kColumns * tokens, pool_.threads()),
                [&](int64_t begin, int64_t end) { ops::linear_rows(kernels_, w, rows, y.data(), kRows, begin, end); });
    });
    return taken / static_cast<double>(kRows * kColumns);
  }

  double experts(ggml_type type, int tokens) {
    const std::vector<std::byte> in = activations(type, tokens);
    const auto rows = static_cast<size_t>(tokens);
    std::vector<int32_t> token_of_row(rows);
    std::iota(token_of_row.begin(), token_of_row.end(), 0);
    std::vector<float> hidden(rows * kRows);
    std::vector<std::byte> hidden_quantized(rows * ops::activation_row_bytes(ops::activation_format(type), kRows));
    std::vector<float> output(rows * kColumns);
    const double taken = mean_seconds(least_s_, [&] {
      const ops::ExpertWork work{
          {next(type, kColumns, kRows), next(type, kColumns, kRows), next(type, kRows, kColumns)}, 0, tokens};
      ops::run_experts({{in.data(), in.size() / rows},
                        token_of_row,
                        {&work, 1},
                        hidden.data(),
                        hidden_quantized.data(),
                        output.data()},
                       {pool_, kernels_});
    });
    return taken / static_cast<double>(3 * kRows * kColumns);
  }

  static constexpr uint64_t kDirectBlock = 4096;
  const Arena& weights_;
  WorkerPool pool_;
  const ops::simd::Kernels& kernels_;
  double least_s_;
  uint64_t at_ = 0;
};

}  // namespace

Status measure_kernels(const MeasureOptions& options, MachineProfile& profile, const MeasureProgress& progress) {
  const uint64_t bytes = options.memory_bytes > 0 ? options.memory_bytes
                                                  : std::max(kLeastMemory, 4 * std::min(largest_cache(), 512 * kMiB));
  ASSIGN_OR_RETURN(const Arena weights,
                   Arena::reserve(std::max<uint64_t>(bytes, 4 * kRows * kColumns * sizeof(float))));
  // As floats of any width, scales included: small, and neither zero nor denormal.
  std::memset(weights.data(), 0x38, weights.bytes());
  Kernels kernels(weights, profile.threads, std::min(options.seconds / 10, kLeastSeconds));
  profile.threads = kernels.pool().threads();
  profile.ram_bytes_per_s = kernels.ram_bytes_per_s();
  profile.byte_products_per_s = kernels.byte_products_per_s();
  profile.float_products_per_s = kernels.float_products_per_s();
  const std::vector<ggml_type> types = weight_types(options.types);
  if (types.empty() || (!options.types.empty() && types.size() != options.types.size())) {
    return usage_error(fmt::format("of the types {} not all can be computed with; give names such as q4_K, bf16",
                                   fmt::join(options.types, ",")));
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (progress) {
      progress(fmt::format("measuring kernels: {}", ggml_type_name(types[i])),
               static_cast<double>(i) / static_cast<double>(types.size()));
    }
    profile.kernels.push_back(kernels.profile(types[i]));
  }
  if (progress) progress("measuring kernels", 1);
  return {};
}

}  // namespace drafthorse
