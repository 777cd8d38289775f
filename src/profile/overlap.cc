// What reading costs computing: both use the memory, and the kernel's part of a read uses the processor.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "base/units.h"
#include "base/worker_pool.h"
#include "io/extent_reader.h"
#include "ops/linear.h"
#include "profile/measure.h"

namespace drafthorse {
namespace {

constexpr int64_t kColumns = 2048;
constexpr int64_t kRows = 2048;
constexpr uint64_t kMatrix = kColumns * kRows * sizeof(float);
constexpr int kRounds = 8;
constexpr uint64_t kMatrices = 24;  // 384 MiB, more than caches hold

// Products of a matrix with one token, as many as there is time for. Calls `between` after each. Seconds for one, the
// mean of all: what serves the reads takes the processor now and then for much longer than a product.
template <typename Between>
double product_seconds(const Arena& weights, WorkerPool& pool, double duration_s, const Between& between) {
  const ops::simd::Kernels& kernels = ops::simd::kernels(ops::best_isa());
  const std::vector<float> x(kColumns + ops::kFloatPadding, 1.0F);
  const std::byte* row = reinterpret_cast<const std::byte*>(x.data());
  std::vector<float> y(kRows);
  const SteadyClock clock;
  const int64_t start = clock.now_ns();
  int64_t taken_ns = 0;
  uint64_t products = 0;
  while (products == 0 || seconds(clock.now_ns() - start) < duration_s) {
    const ops::WeightMatrix w{weights.data() + products % kMatrices * kMatrix, GGML_TYPE_F32, kColumns, kRows,
                              kColumns * sizeof(float)};
    const int64_t before = clock.now_ns();
    pool.run(kRows, ops::row_grain(kRows, kColumns, pool.threads()), [&](int64_t begin, int64_t end) {
      ops::linear_rows(kernels, w, {&row, 1}, y.data(), kRows, begin, end);
    });
    taken_ns += clock.now_ns() - before;
    ++products;
    between();
  }
  return seconds(taken_ns) / static_cast<double>(products);
}

}  // namespace

Status measure_overlap(const MeasureOptions& options, MachineProfile& profile) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileSet> files, FileSet::open({options.disk_file}));
  const std::unique_ptr<ReadQueue> queue = make_read_queue(*files);
  ASSIGN_OR_RETURN(const Arena weights, Arena::reserve(kMatrices * kMatrix));
  ASSIGN_OR_RETURN(const Arena destination, Arena::reserve(queue->capacity() * kReadPieceBytes));
  std::memset(weights.data(), 0x38, weights.bytes());
  WorkerPool pool(profile.threads);
  const auto nothing = [] {};
  product_seconds(weights, pool, options.seconds / 4, nothing);
  std::mt19937_64 random(1);
  const uint64_t pieces = files->bytes(0) / kReadPieceBytes;
  const auto submit = [&](uint64_t tag) {
    const ReadRequest request{0, random() % pieces * kReadPieceBytes, kReadPieceBytes,
                              destination.data() + tag * kReadPieceBytes, tag};
    queue->submit({&request, 1});
  };
  std::vector<ReadCompletion> done(queue->capacity());
  const SteadyClock clock;
  // Keeps reads under way for a while, meanwhile doing `work`, which is to call what it is given now and then. Bytes
  // per second.
  const auto read_during = [&](const auto& work) {
    for (uint64_t tag = 0; tag < queue->capacity(); ++tag) submit(tag);
    const int64_t start = clock.now_ns();
    uint64_t bytes = 0;
    work([&](bool wait) {
      const size_t count = queue->reap(done, wait);
      bytes += count * kReadPieceBytes;
      for (size_t i = 0; i < count; ++i) submit(done[i].tag);
    });
    const double rate = static_cast<double>(bytes) / seconds(clock.now_ns() - start);
    while (queue->in_flight() > 0) queue->reap(done, true);
    return rate;
  };
  // In turn: a machine that changes meanwhile changes all.
  const double part_s = options.seconds / 2;
  double computing_alone = 0;
  double computing_beside = 0;
  double reading_alone = 0;
  double reading_beside = 0;
  for (int round = 0; round < kRounds; ++round) {
    computing_alone += product_seconds(weights, pool, part_s, nothing);
    reading_beside += read_during([&](const auto& read_on) {
      computing_beside += product_seconds(weights, pool, part_s, [&] { read_on(false); });
    });
    reading_alone += read_during([&](const auto& read_on) {
      const int64_t start = clock.now_ns();
      while (seconds(clock.now_ns() - start) < part_s) read_on(true);
    });
  }
  profile.compute_slowdown_while_reading = std::max(1.0, computing_beside / computing_alone);
  profile.stream_bytes_per_s = std::max(1.0, reading_alone / kRounds);
  profile.stream_bytes_per_s_while_computing = std::clamp(reading_beside / kRounds, 1.0, profile.stream_bytes_per_s);
  return {};
}

}  // namespace drafthorse
