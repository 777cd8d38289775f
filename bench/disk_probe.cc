// What the disk gives: random O_DIRECT reads of 1 MiB through the engine's own queue, as many in flight as it allows,
// into huge pages. Prints bytes per second.
//
//   drafthorse-disk-probe FILE [SECONDS]
#include <fmt/format.h>

#include <cstdlib>
#include <random>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "io/extent_reader.h"

namespace drafthorse {
namespace {

Result<double> probe(const std::string& path, double duration_s) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileSet> files, FileSet::open({path}));
  const std::unique_ptr<ReadQueue> queue = make_read_queue(*files);
  const size_t depth = queue->capacity();
  ASSIGN_OR_RETURN(const Arena arena, Arena::reserve(depth * kReadPieceBytes));
  const uint64_t pieces = files->bytes(0) / kReadPieceBytes;
  if (pieces == 0) return file_error(path + ": smaller than one read of 1 MiB");
  std::mt19937_64 random(1);
  const auto request = [&](uint64_t tag) {
    return ReadRequest{0, random() % pieces * kReadPieceBytes, kReadPieceBytes, arena.data() + tag * kReadPieceBytes,
                       tag};
  };
  std::vector<ReadRequest> first;
  for (uint64_t tag = 0; tag < depth; ++tag) first.push_back(request(tag));
  const SteadyClock clock;
  const int64_t start = clock.now_ns();
  const int64_t end = start + static_cast<int64_t>(duration_s * 1e9);
  queue->submit(first);
  uint64_t bytes = 0;
  std::vector<ReadCompletion> done(depth);
  while (queue->in_flight() > 0) {
    const size_t count = queue->reap(done, true);
    for (size_t i = 0; i < count; ++i) {
      if (done[i].error != 0) return runtime_error(fmt::format("{}: a read failed, errno {}", path, done[i].error));
      bytes += done[i].bytes;
      if (clock.now_ns() < end) {
        const ReadRequest next = request(done[i].tag);
        queue->submit({&next, 1});
      }
    }
  }
  return static_cast<double>(bytes) / seconds(clock.now_ns() - start);
}

}  // namespace
}  // namespace drafthorse

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: drafthorse-disk-probe FILE [SECONDS]\n");
    return 2;
  }
  const auto rate = drafthorse::probe(argv[1], argc > 2 ? std::atof(argv[2]) : 1.0);
  if (!rate.ok()) {
    fmt::print(stderr, "drafthorse-disk-probe: {}\n", rate.status().message());
    return static_cast<int>(rate.status().kind());
  }
  fmt::print("{:.0f}\n", *rate);
  return 0;
}
