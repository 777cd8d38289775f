// What reading costs computing: both use the memory, and the kernel's part of a read uses the processor.
#include <algorithm>
#include <cstring>
#include <numeric>
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
constexpr int kRounds = 4;
constexpr uint64_t kMatrices = 24;  // 384 MiB, more than caches hold

// Products of a matrix with one token, as many as there is time for. Calls `between` after each. Seconds for one: the
// mean without the slowest tenth, in which the system ran something else.
template <typename Between>
double product_seconds(const Arena& weights, WorkerPool& pool, double duration_s, const Between& between) {
  const ops::simd::Kernels& kernels = ops::simd::kernels(ops::best_isa());
  const std::vector<float> x(kColumns + ops::kFloatPadding, 1.0F);
  const std::byte* row = reinterpret_cast<const std::byte*>(x.data());
  std::vector<float> y(kRows);
  const SteadyClock clock;
  const int64_t start = clock.now_ns();
  std::vector<double> times;
  while (seconds(clock.now_ns() - start) < duration_s) {
    const ops::WeightMatrix w{weights.data() + times.size() % kMatrices * kMatrix, GGML_TYPE_F32, kColumns, kRows,
                              kColumns * sizeof(float)};
    const int64_t before = clock.now_ns();
    pool.run(kRows, ops::row_grain(kRows, kColumns, pool.threads()), [&](int64_t begin, int64_t end) {
      ops::linear_rows(kernels, w, {&row, 1}, y.data(), kRows, begin, end);
    });
    times.push_back(seconds(clock.now_ns() - before));
    between();
  }
  std::sort(times.begin(), times.end());
  const size_t kept = times.size() - times.size() / 10;
  return std::accumulate(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(kept), 0.0) /
         static_cast<double>(kept);
}

}  // namespace

Status measure_overlap(const MeasureOptions& options, MachineProfile& profile) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileSet> files, FileSet::open({options.disk_file}));
  std::unique_ptr<ReadQueue> queue = make_pread_queue(*files);
  if (Result<std::unique_ptr<ReadQueue>> uring = make_uring_queue(*files); uring.ok()) queue = std::move(uring).value();
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
  // In turn: a machine that changes meanwhile changes both.
  double alone = 0;
  double reading = 0;
  uint64_t bytes = 0;
  int64_t bytes_ns = 0;
  const SteadyClock clock;
  for (int round = 0; round < kRounds; ++round) {
    alone += product_seconds(weights, pool, options.seconds / kRounds, nothing);
    for (uint64_t tag = 0; tag < queue->capacity(); ++tag) submit(tag);
    const int64_t start = clock.now_ns();
    reading += product_seconds(weights, pool, options.seconds / kRounds, [&] {
      const size_t count = queue->reap(done, false);
      bytes += count * kReadPieceBytes;
      for (size_t i = 0; i < count; ++i) submit(done[i].tag);
    });
    bytes_ns += clock.now_ns() - start;
    while (queue->in_flight() > 0) queue->reap(done, true);
  }
  profile.compute_slowdown_while_reading = std::max(1.0, reading / alone);
  profile.disk_bytes_per_s_while_computing = std::max(1.0, static_cast<double>(bytes) / seconds(bytes_ns));
  return {};
}

}  // namespace drafthorse
