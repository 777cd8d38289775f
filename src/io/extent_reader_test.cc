#include "io/extent_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/units.h"
#include "io/testing/temporary_file.h"

namespace drafthorse {
namespace {

using Contents = std::vector<std::vector<std::byte>>;
constexpr uint64_t kBlock = kDirectAlignment;
constexpr std::byte kUntouched{0x5c};

// Room for one widened extent, with a guard block behind it.
class Destination {
 public:
  explicit Destination(const FileExtent& extent)
      : extent_(extent),
        bytes_(widen(extent).bytes() + kBlock),
        memory_(static_cast<std::byte*>(std::aligned_alloc(kBlock, bytes_))) {
    paint();
  }
  void paint() { std::fill_n(memory_.get(), bytes_, kUntouched); }
  ExtentRead read() const { return {extent_, memory_.get()}; }
  const std::byte* begin() const { return memory_.get(); }
  const std::byte* end() const { return memory_.get() + bytes_; }
  bool untouched() const {
    return std::all_of(begin(), end(), [](std::byte b) { return b == kUntouched; });
  }
  bool holds(const Contents& contents) const {
    const std::byte* expected = contents[static_cast<size_t>(extent_.file)].data() + extent_.offset;
    return std::memcmp(begin() + widen(extent_).payload, expected, extent_.bytes) == 0 &&
           std::all_of(end() - kBlock, end(), [](std::byte b) { return b == kUntouched; });
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  FileExtent extent_;
  uint64_t bytes_;
  std::unique_ptr<std::byte, Free> memory_;
};

// Keeps what was submitted, in order, and what of it is in flight.
class SpyQueue final : public ReadQueue {
 public:
  explicit SpyQueue(std::unique_ptr<ReadQueue> inner) : inner_(std::move(inner)) {}
  std::string_view name() const override { return "spy"; }
  size_t capacity() const override { return inner_->capacity(); }
  size_t in_flight() const override { return inner_->in_flight(); }
  void submit(std::span<const ReadRequest> requests) override {
    for (const ReadRequest& request : requests) {
      EXPECT_LE(request.bytes, kReadPieceBytes);
      EXPECT_EQ(request.offset % kBlock, 0U);
      EXPECT_EQ(request.bytes % kBlock, 0U);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(request.destination) % kBlock, 0U);
      EXPECT_TRUE(flying.emplace(request.tag, request).second) << "a tag in use was given out again";
      submitted.push_back(request);
    }
    inner_->submit(requests);
  }
  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    const size_t count = inner_->reap(out, wait);
    for (const ReadCompletion& completion : out.first(count)) flying.erase(completion.tag);
    return count;
  }

  std::vector<ReadRequest> submitted;
  std::map<uint64_t, ReadRequest> flying;

 private:
  std::unique_ptr<ReadQueue> inner_;
};

struct Reading {
  explicit Reading(const std::vector<uint64_t>& file_bytes, const FakeStorageOptions& storage = {},
                   uint64_t background_bytes = kBackgroundBytesInFlight, size_t capacity = kReadQueueCapacity) {
    std::mt19937_64 random(storage.seed + 17);
    std::vector<std::string> paths;
    for (const uint64_t bytes : file_bytes) {
      std::vector<std::byte>& content = contents.emplace_back(bytes);
      for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        const uint64_t bits = random();
        std::memcpy(content.data() + i, &bits, std::min(sizeof(bits), bytes - i));
      }
      on_disk.push_back(std::make_unique<TemporaryFile>(temporary_path("extents"), content));
      paths.push_back(on_disk.back()->path());
    }
    Result<std::unique_ptr<FileSet>> opened = FileSet::open(paths);
    CHECK(opened.ok());
    files = std::move(opened).value();
    queue = std::make_unique<SpyQueue>(make_fake_queue(contents, clock, storage, capacity));
    reader = std::make_unique<ExtentReader>(*files, *queue, background_bytes);
  }

  // Until all jobs are done; what became of each.
  std::map<ExtentReader::JobId, ExtentReader::Finished> run() {
    std::map<ExtentReader::JobId, ExtentReader::Finished> results;
    std::vector<ExtentReader::Finished> finished;
    while (!reader->idle()) reader->poll(true, finished);
    reader->poll(false, finished);
    for (ExtentReader::Finished& one : finished) {
      const ExtentReader::JobId job = one.job;
      EXPECT_TRUE(results.emplace(job, std::move(one)).second) << "job " << job << " finished twice";
    }
    EXPECT_TRUE(queue->flying.empty());
    EXPECT_EQ(reader->background_bytes_in_flight(), 0U);
    return results;
  }

  VirtualClock clock;
  Contents contents;
  std::vector<std::unique_ptr<TemporaryFile>> on_disk;
  std::unique_ptr<FileSet> files;
  std::unique_ptr<SpyQueue> queue;
  std::unique_ptr<ExtentReader> reader;
};

TEST(Widen, CoversWholeBlocks) {
  for (const uint64_t offset : {0UL, 1UL, kBlock - 1, kBlock, kBlock + 1, 3 * kBlock}) {
    for (const uint64_t bytes : {1UL, kBlock - 1, kBlock, kBlock + 1, 2 * kBlock}) {
      const AlignedExtent aligned = widen({0, offset, bytes});
      EXPECT_EQ(aligned.begin % kBlock, 0U);
      EXPECT_EQ(aligned.end % kBlock, 0U);
      EXPECT_EQ(aligned.begin + aligned.payload, offset);
      EXPECT_LT(aligned.payload, kBlock);
      EXPECT_GE(aligned.end, offset + bytes);
      EXPECT_LT(aligned.end, offset + bytes + kBlock);
    }
  }
}

TEST(ExtentReader, ReadsWhatTheExtentsSay) {
  const std::vector<uint64_t> sizes{3 * kReadPieceBytes + 777, 10 * kBlock, 5000};
  const auto near = [](std::mt19937_64& random, uint64_t value) { return value - 2 + random() % 5; };
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    FakeStorageOptions storage{.seed = seed};
    if (seed % 2 == 0) storage.short_read_probability = 0.05;
    Reading setup(sizes, storage, kBackgroundBytesInFlight, seed == 3 ? 2 : kReadQueueCapacity);
    std::mt19937_64 random(seed);
    const auto random_extent = [&] {
      const int file = static_cast<int>(random() % sizes.size());
      const uint64_t size = sizes[static_cast<size_t>(file)];
      const uint64_t borders[] = {kBlock, 2 * kBlock, kReadPieceBytes, 2 * kReadPieceBytes};
      uint64_t offset = random() % 2 == 0 ? random() % size : near(random, borders[random() % 4]);
      offset = std::min(offset, size - 1);
      uint64_t bytes = 0;
      switch (random() % 4) {
        case 0:
          bytes = size - offset;
          break;  // to the end of the file
        case 1:
          bytes = near(random, borders[random() % 4]);
          break;
        case 2:
          bytes = 1 + random() % 100;
          break;
        default:
          bytes = near(random, align_up(offset + kBlock, kBlock) - offset);
      }
      return FileExtent{file, offset, std::min(bytes, size - offset)};
    };
    std::vector<std::vector<Destination>> jobs;
    std::vector<ExtentReader::JobId> ids;
    for (int j = 0; j < 40; ++j) {
      std::vector<Destination>& destinations = jobs.emplace_back();
      std::vector<ExtentRead> reads;
      for (uint64_t i = 1 + random() % 3; i > 0; --i) {
        destinations.emplace_back(random_extent());
        reads.push_back(destinations.back().read());
      }
      ids.push_back(setup.reader->start(reads, static_cast<ReadPriority>(random() % kReadPriorities)));
    }
    const auto results = setup.run();
    ASSERT_EQ(results.size(), jobs.size());
    for (size_t j = 0; j < jobs.size(); ++j) {
      ASSERT_TRUE(results.at(ids[j]).status.ok()) << results.at(ids[j]).status.message();
      EXPECT_FALSE(results.at(ids[j]).cancelled);
      for (const Destination& destination : jobs[j]) EXPECT_TRUE(destination.holds(setup.contents)) << "job " << j;
    }
  }
}

TEST(ExtentReader, ShortReadsAreContinued) {
  Reading setup({5 * kReadPieceBytes}, {.seed = 9, .short_read_probability = 0.6});
  Destination destination({0, 4321, 5 * kReadPieceBytes - 4321});
  const std::vector<ExtentRead> reads{destination.read()};
  setup.reader->start(reads, ReadPriority::kDemand);
  EXPECT_TRUE(setup.run().begin()->second.status.ok());
  EXPECT_TRUE(destination.holds(setup.contents));
  EXPECT_GT(setup.queue->submitted.size(), 7U);
}

TEST(ExtentReader, RetriesAFailedRead) {
  Reading setup({3 * kReadPieceBytes}, {.fail_request_number = 1});
  Destination destination({0, 0, 3 * kReadPieceBytes});
  const std::vector<ExtentRead> reads{destination.read()};
  setup.reader->start(reads, ReadPriority::kPrefetch);
  EXPECT_TRUE(setup.run().begin()->second.status.ok());
  EXPECT_TRUE(destination.holds(setup.contents));
  EXPECT_EQ(setup.reader->retries(), 1U);
}

TEST(ExtentReader, GivesUpAfterSomeAttempts) {
  Reading setup({2 * kReadPieceBytes, 100 * kBlock}, {.fail_from_request_number = 0});
  Destination destination({1, 7 * kBlock + 3, 2 * kBlock});
  const std::vector<ExtentRead> reads{destination.read()};
  setup.reader->start(reads, ReadPriority::kDemand);
  const Status status = setup.run().begin()->second.status;
  EXPECT_EQ(status.kind(), StatusKind::kRuntime);
  EXPECT_NE(status.message().find(setup.files->path(1)), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("offset 28672"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find(std::strerror(EIO)), std::string::npos) << status.message();
  EXPECT_EQ(setup.queue->submitted.size(), static_cast<size_t>(kReadAttempts));
}

// A job that has lost one piece gives up the rest and comes back once, when nothing of it is in flight.
TEST(ExtentReader, AFailedJobReadsNoFurther) {
  Reading setup({64 * kReadPieceBytes}, {.fail_from_request_number = 0}, kBackgroundBytesInFlight, 4);
  Destination destination({0, 0, 64 * kReadPieceBytes});
  const std::vector<ExtentRead> reads{destination.read()};
  setup.reader->start(reads, ReadPriority::kDemand);
  EXPECT_FALSE(setup.run().begin()->second.status.ok());
  EXPECT_LE(setup.queue->submitted.size(), static_cast<size_t>(4 * kReadAttempts));
}

TEST(ExtentReader, AFileThatEndsEarlyIsAFileError) {
  for (const uint64_t bytes : {3 * kBlock, 512 * kBlock}) {
    for (const uint64_t ends_at : {0 * kBlock, 2 * kBlock, 2 * kBlock + 100, 3 * kBlock + 1, 256 * kBlock + 5}) {
      if (ends_at >= 100 + bytes) continue;
      SCOPED_TRACE(::testing::Message() << bytes << " bytes of a file of " << ends_at);
      Reading setup({ends_at});
      Destination destination({0, 100, bytes});
      const std::vector<ExtentRead> reads{destination.read()};
      setup.reader->start(reads, ReadPriority::kDemand);
      const Status status = setup.run().begin()->second.status;
      EXPECT_EQ(status.kind(), StatusKind::kFile) << status.message();
      EXPECT_NE(status.message().find(setup.files->path(0)), std::string::npos) << status.message();
    }
  }
}

TEST(ExtentReader, DemandsAreSubmittedBeforeBackground) {
  constexpr uint64_t kLimit = 2 * kReadPieceBytes;
  Reading setup({64 * kReadPieceBytes}, {.seed = 2}, kLimit);
  std::vector<Destination> destinations;
  const auto start = [&](uint64_t piece, uint64_t pieces, ReadPriority priority) {
    destinations.emplace_back(FileExtent{0, piece * kReadPieceBytes, pieces * kReadPieceBytes});
    const std::vector<ExtentRead> reads{destinations.back().read()};
    return setup.reader->start(reads, priority);
  };
  start(0, 4, ReadPriority::kFill);
  start(10, 4, ReadPriority::kPrefetch);
  const ExtentReader::JobId promoted = start(20, 2, ReadPriority::kFill);
  EXPECT_EQ(setup.queue->submitted.size(), 2U);  // the fill had begun; it is not taken back
  start(30, 3, ReadPriority::kDemand);
  setup.reader->promote(promoted, ReadPriority::kDemand);
  EXPECT_EQ(setup.queue->submitted.size(), 7U);  // the demands did not wait for a poll
  setup.run();
  std::vector<uint64_t> order;
  for (const ReadRequest& request : setup.queue->submitted) order.push_back(request.offset / kReadPieceBytes);
  EXPECT_EQ(order, (std::vector<uint64_t>{0, 1, 30, 31, 32, 20, 21, 10, 11, 12, 13, 2, 3}));
}

// Else a stream of small reads could keep a large one of more priority waiting for good.
TEST(ExtentReader, WhatFitsDoesNotPassWhatIsHeldBack) {
  Reading setup({64 * kReadPieceBytes}, {.seed = 2}, kReadPieceBytes + 8 * kBlock);
  Destination large({0, 0, 2 * kReadPieceBytes});
  Destination small({0, 3 * kReadPieceBytes, kBlock});
  const std::vector<ExtentRead> large_reads{large.read()};
  const std::vector<ExtentRead> small_reads{small.read()};
  setup.reader->start(large_reads, ReadPriority::kPrefetch);
  setup.reader->start(small_reads, ReadPriority::kFill);
  EXPECT_EQ(setup.queue->submitted.size(), 1U);
  setup.run();
  EXPECT_EQ(setup.queue->submitted.back().bytes, kBlock);
}

TEST(ExtentReader, BackgroundStaysWithinItsLimit) {
  for (const uint64_t limit : {uint64_t{kBlock}, uint64_t{3'000'000}, kBackgroundBytesInFlight}) {
    SCOPED_TRACE(::testing::Message() << "limit " << limit);
    constexpr uint64_t kFile = 20 * kReadPieceBytes;
    Reading setup({kFile}, {.seed = 3, .failure_probability = 0.01, .short_read_probability = 0.05}, limit);
    std::mt19937_64 random(limit);
    std::vector<Destination> background;
    std::vector<Destination> demands;
    std::vector<ExtentReader::Finished> finished;
    size_t most = 0;
    for (int i = 0; i < 300; ++i) {
      if (background.size() < 40) {
        const uint64_t bytes = 1 + random() % (3 * kReadPieceBytes);
        background.emplace_back(FileExtent{0, random() % (kFile - bytes), bytes});
        const std::vector<ExtentRead> reads{background.back().read()};
        setup.reader->start(reads, random() % 2 == 0 ? ReadPriority::kPrefetch : ReadPriority::kFill);
      }
      if (i % 10 == 0) {
        demands.emplace_back(FileExtent{0, random() % (kFile - kBlock), kBlock});
        const std::vector<ExtentRead> reads{demands.back().read()};
        setup.reader->start(reads, ReadPriority::kDemand);
      }
      setup.reader->poll(true, finished);
      uint64_t in_flight = 0;
      for (const auto& [tag, request] : setup.queue->flying) {
        for (const Destination& destination : background) {
          const bool own = request.destination >= destination.begin() && request.destination < destination.end();
          if (own) in_flight += request.bytes;
        }
      }
      ASSERT_EQ(in_flight, setup.reader->background_bytes_in_flight());
      ASSERT_LE(in_flight, std::max<uint64_t>(limit, kReadPieceBytes));
      most = std::max(most, in_flight);
    }
    EXPECT_GT(most, std::max<uint64_t>(limit / 2, kBlock));  // and it uses what it has
    setup.run();
  }
}

TEST(ExtentReader, CancelDropsWhatWaitsAndReturnsTheDestination) {
  Reading setup({20 * kReadPieceBytes}, {.seed = 4}, 2 * kReadPieceBytes);
  Destination victim({0, 0, 8 * kReadPieceBytes});
  Destination other({0, 9 * kReadPieceBytes, 4 * kReadPieceBytes});
  const std::vector<ExtentRead> victim_reads{victim.read()};
  const std::vector<ExtentRead> other_reads{other.read()};
  const ExtentReader::JobId job = setup.reader->start(victim_reads, ReadPriority::kPrefetch);
  setup.reader->start(other_reads, ReadPriority::kPrefetch);
  setup.reader->cancel(job);
  std::vector<ExtentReader::Finished> finished;
  setup.reader->poll(false, finished);
  EXPECT_TRUE(finished.empty()) << "two pieces are still being written";
  while (finished.empty()) setup.reader->poll(true, finished);
  ASSERT_EQ(finished[0].job, job);
  EXPECT_TRUE(finished[0].cancelled);
  EXPECT_TRUE(finished[0].status.ok());
  victim.paint();
  setup.run();
  EXPECT_TRUE(victim.untouched());
  EXPECT_TRUE(other.holds(setup.contents));
  EXPECT_EQ(setup.queue->submitted.size(), 2U + 4U);
  setup.reader->cancel(job);  // long gone
  setup.reader->promote(job, ReadPriority::kDemand);
}

TEST(ExtentReader, CancelBeforeAnythingIsSubmitted) {
  Reading setup({20 * kReadPieceBytes}, {.seed = 4}, kReadPieceBytes);
  Destination first({0, 0, kReadPieceBytes});
  Destination second({0, kReadPieceBytes, kReadPieceBytes});
  const std::vector<ExtentRead> first_reads{first.read()};
  const std::vector<ExtentRead> second_reads{second.read()};
  setup.reader->start(first_reads, ReadPriority::kFill);
  const ExtentReader::JobId job = setup.reader->start(second_reads, ReadPriority::kFill);
  setup.reader->cancel(job);
  std::vector<ExtentReader::Finished> finished;
  setup.reader->poll(true, finished);  // news is there already: must not block
  ASSERT_EQ(finished.size(), 1U);
  EXPECT_EQ(finished[0].job, job);
  EXPECT_EQ(setup.clock.now_ns(), 0);
  setup.run();
  EXPECT_TRUE(second.untouched());
}

TEST(ExtentReader, CancelWhileFailing) {
  Reading setup({20 * kReadPieceBytes}, {.seed = 4, .fail_from_request_number = 0});
  Destination destination({0, 0, 6 * kReadPieceBytes});
  const std::vector<ExtentRead> reads{destination.read()};
  const ExtentReader::JobId job = setup.reader->start(reads, ReadPriority::kDemand);
  std::vector<ExtentReader::Finished> finished;
  setup.reader->poll(true, finished);
  setup.reader->cancel(job);
  const auto results = setup.run();
  ASSERT_EQ(results.size() + finished.size(), 1U);
  EXPECT_TRUE(results.at(job).cancelled);
}

TEST(ReadAll, ReadsEverythingOrReportsTheFirstFailure) {
  Reading setup({3 * kReadPieceBytes, 9000}, {.seed = 5, .short_read_probability = 0.1});
  std::vector<Destination> destinations;
  std::vector<ExtentRead> reads;
  for (const FileExtent& extent : {FileExtent{0, 5, 2 * kReadPieceBytes}, FileExtent{1, 0, 9000},
                                   FileExtent{0, 4096, 0}, FileExtent{1, 8999, 1}}) {
    destinations.emplace_back(extent);
    reads.push_back(destinations.back().read());
  }
  uint64_t last = 0;
  const Status status = read_all(reads, *setup.files, *setup.queue, [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    last = done;
    return true;
  });
  ASSERT_TRUE(status.ok()) << status.message();
  for (const Destination& destination : destinations) EXPECT_TRUE(destination.holds(setup.contents));

  Reading broken({3 * kReadPieceBytes, 9000}, {.seed = 5, .fail_from_request_number = 1});
  EXPECT_EQ(read_all(reads, *broken.files, *broken.queue).kind(), StatusKind::kRuntime);
  EXPECT_EQ(broken.queue->in_flight(), 0U);

  Reading stopped({3 * kReadPieceBytes, 9000}, {.seed = 5});
  int calls = 0;
  const auto stop = [&](uint64_t, uint64_t) { return ++calls < 2; };
  EXPECT_EQ(read_all(reads, *stopped.files, *stopped.queue, stop).kind(), StatusKind::kInterrupted);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(stopped.queue->in_flight(), 0U);
}

}  // namespace
}  // namespace drafthorse
