#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "base/units.h"
#include "io/extent_reader.h"
#include "profile/measure.h"

namespace drafthorse {
namespace {

constexpr uint64_t kLeastFile = 64 * kMiB;
constexpr uint64_t kReadSizes[] = {64 * kKiB, 256 * kKiB, kReadPieceBytes};
constexpr int kMostInFlight = 64;
constexpr int kInFlight[] = {1, 4, 16, kMostInFlight};
constexpr uint64_t kSmallRead = kDirectAlignment;

// Random reads at whole blocks, kept at so many in flight for so long. Bytes per second.
class Reader {
 public:
  // seconds: of each figure to come.
  static Result<std::unique_ptr<Reader>> open(const FileSet& files, double seconds) {
    std::unique_ptr<ReadQueue> queue = make_read_queue(files);
    ASSIGN_OR_RETURN(Arena arena, Arena::reserve(queue->capacity() * kReadPieceBytes));
    std::unique_ptr<Reader> reader(new Reader(files, std::move(queue), std::move(arena)));
    // What is touched for the first time costs more than the read.
    ASSIGN_OR_RETURN(const double warm, reader->rate(kReadPieceBytes, kMostInFlight, seconds / 4));
    static_cast<void>(warm);
    return reader;
  }

  Result<double> rate(uint64_t bytes, int in_flight, double duration_s) {
    std::vector<ReadCompletion> done(queue_->capacity());
    const int64_t start = clock_.now_ns();
    const auto end = start + static_cast<int64_t>(duration_s * 1e9);
    for (int tag = 0; tag < in_flight; ++tag) submit(bytes, static_cast<uint64_t>(tag));
    uint64_t total = 0;
    Status failure;
    while (queue_->in_flight() > 0) {
      const size_t count = queue_->reap(done, true);
      for (size_t i = 0; i < count; ++i) {
        if (done[i].error != 0 && failure.ok()) {
          failure = runtime_error(fmt::format("{}: a read failed, errno {}", files_.path(0), done[i].error));
        }
        total += done[i].bytes;
        if (failure.ok() && clock_.now_ns() < end) submit(bytes, done[i].tag);
      }
    }
    RETURN_IF_ERROR(failure);
    return static_cast<double>(total) / seconds(clock_.now_ns() - start);
  }

 private:
  Reader(const FileSet& files, std::unique_ptr<ReadQueue> queue, Arena arena)
      : files_(files), queue_(std::move(queue)), arena_(std::move(arena)) {}

  void submit(uint64_t bytes, uint64_t tag) {
    const uint64_t places = files_.bytes(0) / bytes;
    const ReadRequest request{0, random_() % places * bytes, static_cast<uint32_t>(bytes),
                              arena_.data() + tag * kReadPieceBytes, tag};
    queue_->submit({&request, 1});
  }

  const FileSet& files_;
  std::unique_ptr<ReadQueue> queue_;
  Arena arena_;
  SteadyClock clock_;
  std::mt19937_64 random_{1};
};

}  // namespace

Status measure_disk(const MeasureOptions& options, MachineProfile& profile, const MeasureProgress& progress) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileSet> files, FileSet::open({options.disk_file}));
  if (files->bytes(0) < kLeastFile) {
    return file_error(fmt::format("{}: {} are too few to measure a disk with; give a file of at least {}",
                                  options.disk_file, format_size(files->bytes(0)), format_size(kLeastFile)));
  }
  struct stat info {};
  if (stat(options.disk_file.c_str(), &info) == 0) profile.disk_device = info.st_dev;
  profile.disk_file = options.disk_file;
  profile.direct_io = files->direct();
  ASSIGN_OR_RETURN(const std::unique_ptr<Reader> reader, Reader::open(*files, options.seconds));
  double part = 0;
  for (const uint64_t bytes : kReadSizes) {
    for (const int in_flight : kInFlight) {
      if (progress) progress("measuring the disk", part += 1.0 / (std::size(kReadSizes) * std::size(kInFlight) + 1));
      ASSIGN_OR_RETURN(const double rate, reader->rate(bytes, in_flight, options.seconds));
      profile.disk.push_back({bytes, in_flight, rate});
    }
  }
  ASSIGN_OR_RETURN(const double small, reader->rate(kSmallRead, 1, options.seconds));
  profile.disk_latency_s = static_cast<double>(kSmallRead) / std::max(1.0, small);
  return {};
}

Status measure_disk_again(const MeasureOptions& options, MachineProfile& profile) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileSet> files, FileSet::open({options.disk_file}));
  ASSIGN_OR_RETURN(const std::unique_ptr<Reader> reader, Reader::open(*files, options.seconds));
  const DiskRate& last = profile.disk.back();
  ASSIGN_OR_RETURN(const double rate, reader->rate(last.read_bytes, last.in_flight, options.seconds));
  profile.disk_bytes_per_s_at_the_end = std::max(1.0, rate);
  return {};
}

}  // namespace drafthorse
