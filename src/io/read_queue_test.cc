// One suite over all queues: whatever serves the reads, the owner must see the same.

#include "io/read_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "io/file_set.h"
#include "io/metered_queue.h"
#include "io/testing/temporary_file.h"

namespace drafthorse {
namespace {

using Contents = std::vector<std::vector<std::byte>>;

struct Storage {
  const FileSet& files;
  const Contents& contents;
  VirtualClock& clock;
};

struct QueueKind {
  std::string name;
  // nullptr where this machine has no such queue.
  std::function<std::unique_ptr<ReadQueue>(const Storage&, size_t capacity)> make;
};

std::unique_ptr<ReadQueue> make_uring(const Storage& storage, size_t capacity) {
  Result<std::unique_ptr<ReadQueue>> queue = make_uring_queue(storage.files, capacity);
  return queue.ok() ? std::move(queue).value() : nullptr;
}
std::unique_ptr<ReadQueue> make_pread(const Storage& storage, size_t capacity) {
  return make_pread_queue(storage.files, 3, capacity);
}
std::unique_ptr<ReadQueue> make_fake(const Storage& storage, size_t capacity) {
  return make_fake_queue(storage.contents, storage.clock, {.seed = 5}, capacity);
}
std::unique_ptr<ReadQueue> make_faultless(const Storage& storage, size_t capacity) {
  return make_fault_injecting_queue(make_pread(storage, capacity), {});
}

// A metered queue and the one that it watches.
class OwningMeteredQueue final : public ReadQueue {
 public:
  OwningMeteredQueue(std::unique_ptr<ReadQueue> inner, const Clock& clock)
      : inner_(std::move(inner)), metered_(*inner_, clock) {}
  std::string_view name() const override { return metered_.name(); }
  size_t capacity() const override { return metered_.capacity(); }
  size_t in_flight() const override { return metered_.in_flight(); }
  void submit(std::span<const ReadRequest> requests) override { metered_.submit(requests); }
  size_t reap(std::span<ReadCompletion> out, bool wait) override { return metered_.reap(out, wait); }

 private:
  std::unique_ptr<ReadQueue> inner_;
  MeteredQueue metered_;
};
std::unique_ptr<ReadQueue> make_metered(const Storage& storage, size_t capacity) {
  return std::make_unique<OwningMeteredQueue>(make_fake(storage, capacity), storage.clock);
}

// Memory that O_DIRECT can read into, with a guard area behind it.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes) : bytes_(bytes) {
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kDirectAlignment, round_up(bytes + kGuardBytes))));
    fill(std::byte{0x11});
  }
  std::byte* data() { return memory_.get(); }
  size_t bytes() const { return bytes_; }
  void fill(std::byte value) { std::fill_n(memory_.get(), round_up(bytes_ + kGuardBytes), value); }
  bool is_filled_with(std::byte value) const {
    return std::all_of(memory_.get(), memory_.get() + bytes_, [&](std::byte b) { return b == value; });
  }

 private:
  static constexpr size_t kGuardBytes = 64;
  static size_t round_up(size_t bytes) { return (bytes + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment; }
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  size_t bytes_;
  std::unique_ptr<std::byte, Free> memory_;
};

std::vector<std::byte> random_content(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> content(bytes);
  for (std::byte& b : content) b = static_cast<std::byte>(random());
  return content;
}

class ReadQueueTest : public ::testing::TestWithParam<QueueKind> {
 protected:
  void SetUp() override {
    const size_t sizes[] = {700'001, 3 * 4096, 0, 5'000};
    std::vector<std::string> paths;
    for (size_t i = 0; i < std::size(sizes); ++i) {
      contents_.push_back(random_content(sizes[i], i + 1));
      on_disk_.push_back(std::make_unique<TemporaryFile>(temporary_path("content"), contents_.back()));
      paths.push_back(on_disk_.back()->path());
    }
    Result<std::unique_ptr<FileSet>> files = FileSet::open(paths);
    ASSERT_TRUE(files.ok()) << files.status().message();
    files_ = std::move(files).value();
  }

  std::unique_ptr<ReadQueue> make(size_t capacity = kReadQueueCapacity) {
    return GetParam().make({*files_, contents_, clock_}, capacity);
  }

  size_t bytes_there(const ReadRequest& request) const {
    const auto& content = contents_[static_cast<size_t>(request.file)];
    return request.offset >= content.size() ? 0 : std::min<size_t>(request.bytes, content.size() - request.offset);
  }

  void expect_right(const ReadRequest& request, const ReadCompletion& completion) const {
    ASSERT_EQ(completion.error, 0);
    ASSERT_EQ(completion.bytes, bytes_there(request)) << "offset " << request.offset << " bytes " << request.bytes;
    if (completion.bytes == 0) return;
    const std::byte* expected = contents_[static_cast<size_t>(request.file)].data() + request.offset;
    EXPECT_EQ(std::memcmp(request.destination, expected, completion.bytes), 0);
  }

  Contents contents_;
  std::vector<std::unique_ptr<TemporaryFile>> on_disk_;
  std::unique_ptr<FileSet> files_;
  VirtualClock clock_;
};

#define MAKE_OR_SKIP(queue, ...)                              \
  const std::unique_ptr<ReadQueue> queue = make(__VA_ARGS__); \
  if (!(queue)) GTEST_SKIP() << "not available on this machine"

TEST_P(ReadQueueTest, RandomRequestsReadWhatIsThere) {
  constexpr uint64_t kSeed = 20'240'601;
  RecordProperty("seed", static_cast<int>(kSeed));
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  const auto below = [&](uint64_t limit) { return random() % limit; };

  constexpr size_t kCapacity = 16;
  constexpr size_t kMaxBytes = 64 * 1024;
  constexpr uint64_t kRequests = 1500;
  MAKE_OR_SKIP(queue, kCapacity);
  std::vector<std::unique_ptr<AlignedBuffer>> free_buffers;
  for (size_t i = 0; i < kCapacity; ++i) free_buffers.push_back(std::make_unique<AlignedBuffer>(kMaxBytes + 512));

  struct Flight {
    ReadRequest request;
    std::unique_ptr<AlignedBuffer> buffer;
  };
  std::map<uint64_t, Flight> flying;  // the model: what must still come back
  uint64_t submitted = 0;
  while (submitted < kRequests || !flying.empty()) {
    std::vector<ReadRequest> batch;
    for (uint64_t n = below(6); n > 0 && !free_buffers.empty() && submitted < kRequests; --n) {
      Flight flight{.request = {}, .buffer = std::move(free_buffers.back())};
      free_buffers.pop_back();
      flight.buffer->fill(std::byte{0x11});
      ReadRequest& request = flight.request;
      request.file = static_cast<int>(below(contents_.size()));
      request.offset = below(contents_[static_cast<size_t>(request.file)].size() + 9000);
      request.bytes = static_cast<uint32_t>(1 + below(kMaxBytes));
      request.destination = flight.buffer->data() + below(512);
      if (below(2) == 0) {
        request.offset -= request.offset % kDirectAlignment;
        request.bytes = static_cast<uint32_t>(kDirectAlignment * (1 + below(kMaxBytes / kDirectAlignment)));
        request.destination = flight.buffer->data();
      }
      request.tag = 1'000'000'000'000 + submitted++;
      batch.push_back(request);
      flying.emplace(request.tag, std::move(flight));
    }
    queue->submit(batch);
    ASSERT_EQ(queue->in_flight(), flying.size());

    std::vector<ReadCompletion> out(1 + below(kCapacity));
    const bool wait = below(2) == 0;
    const size_t count = queue->reap(out, wait);
    ASSERT_LE(count, out.size());
    if (wait && !flying.empty()) {
      ASSERT_GT(count, 0U);
    }
    for (const ReadCompletion& completion : std::span(out).first(count)) {
      const auto flight = flying.find(completion.tag);
      ASSERT_NE(flight, flying.end()) << "completed twice or never asked for: " << completion.tag;
      expect_right(flight->second.request, completion);
      const std::byte* behind = flight->second.request.destination + flight->second.request.bytes;
      EXPECT_EQ(*behind, std::byte{0x11}) << "wrote beyond the destination";
      free_buffers.push_back(std::move(flight->second.buffer));
      flying.erase(flight);
    }
    ASSERT_EQ(queue->in_flight(), flying.size());
  }
}

TEST_P(ReadQueueTest, NothingInFlightNeverBlocks) {
  MAKE_OR_SKIP(queue);
  std::vector<ReadCompletion> out(4);
  EXPECT_EQ(queue->reap(out, true), 0U);
  EXPECT_EQ(queue->reap(out, false), 0U);
  EXPECT_EQ(queue->reap({}, true), 0U);
  queue->submit({});
  EXPECT_EQ(queue->in_flight(), 0U);
}

TEST_P(ReadQueueTest, HoldsAsManyAsItsCapacity) {
  constexpr size_t kCapacity = 7;
  MAKE_OR_SKIP(queue, kCapacity);
  ASSERT_EQ(queue->capacity(), kCapacity);
  AlignedBuffer buffer(kCapacity * 4096);
  for (int round = 0; round < 3; ++round) {
    std::vector<ReadRequest> requests;
    for (size_t i = 0; i < kCapacity; ++i) {
      requests.push_back(
          {.file = 0, .offset = i * 4096, .bytes = 4096, .destination = buffer.data() + i * 4096, .tag = i});
    }
    queue->submit(requests);
    EXPECT_EQ(queue->in_flight(), kCapacity);
    std::vector<ReadCompletion> out(2);
    size_t seen = 0;
    while (queue->in_flight() > 0) {
      const size_t count = queue->reap(out, true);
      ASSERT_GT(count, 0U);
      seen += count;
      EXPECT_EQ(queue->in_flight(), kCapacity - seen);
    }
    EXPECT_EQ(seen, kCapacity);
    EXPECT_EQ(std::memcmp(buffer.data(), contents_[0].data(), kCapacity * 4096), 0);
  }
}

TEST_P(ReadQueueTest, PollingBringsWhatIsThere) {
  MAKE_OR_SKIP(queue);
  AlignedBuffer buffer(4096);
  const ReadRequest request{.file = 1, .offset = 4096, .bytes = 4096, .destination = buffer.data(), .tag = 9};
  queue->submit(std::span(&request, 1));
  std::vector<ReadCompletion> out(1);
  while (queue->reap(out, false) == 0) {
    clock_.advance_by(1'000);
    std::this_thread::yield();
  }
  EXPECT_EQ(out[0].tag, 9U);
  expect_right(request, out[0]);
}

TEST_P(ReadQueueTest, AlignedReadAtTheEndOfAFileIsShort) {
  MAKE_OR_SKIP(queue);
  AlignedBuffer buffer(8192);
  const ReadRequest requests[] = {
      {.file = 3, .offset = 4096, .bytes = 4096, .destination = buffer.data(), .tag = 0},
      {.file = 3, .offset = 8192, .bytes = 4096, .destination = buffer.data() + 4096, .tag = 1},
  };
  queue->submit(requests);
  std::vector<ReadCompletion> out(1);
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(queue->reap(out, true), 1U);
    EXPECT_EQ(out[0].error, 0);
    EXPECT_EQ(out[0].bytes, out[0].tag == 0 ? 5'000U - 4'096U : 0U);
  }
}

TEST_P(ReadQueueTest, SameTagTwiceIsTheCallersBusiness) {
  MAKE_OR_SKIP(queue);
  AlignedBuffer buffer(200);
  const ReadRequest requests[] = {{.file = 0, .offset = 1, .bytes = 100, .destination = buffer.data(), .tag = 3},
                                  {.file = 0, .offset = 1, .bytes = 100, .destination = buffer.data() + 100, .tag = 3}};
  queue->submit(requests);
  std::vector<ReadCompletion> out(2);
  size_t count = 0;
  while (count < 2) count += queue->reap(std::span(out).subspan(count), true);
  EXPECT_EQ(out[0].tag, 3U);
  EXPECT_EQ(out[1].tag, 3U);
  EXPECT_EQ(queue->in_flight(), 0U);
}

TEST_P(ReadQueueTest, NothingIsWrittenAfterDestruction) {
  for (int round = 0; round < 20; ++round) {
    AlignedBuffer buffer(kReadQueueCapacity * 8192);
    {
      MAKE_OR_SKIP(queue);
      std::vector<ReadRequest> requests;
      for (size_t i = 0; i < kReadQueueCapacity; ++i) {
        requests.push_back(
            {.file = 0, .offset = i * 8192, .bytes = 8192, .destination = buffer.data() + i * 8192, .tag = i});
      }
      queue->submit(requests);
      std::vector<ReadCompletion> out(3);
      if (round % 2 == 0) queue->reap(out, true);
    }
    buffer.fill(std::byte{0x77});
    // The device gets something else to do, so that a late write would have had its chance.
    AlignedBuffer other(8192);
    MAKE_OR_SKIP(queue);
    const ReadRequest request{.file = 0, .offset = 8192, .bytes = 8192, .destination = other.data()};
    queue->submit(std::span(&request, 1));
    std::vector<ReadCompletion> out(1);
    ASSERT_EQ(queue->reap(out, true), 1U);
    ASSERT_TRUE(buffer.is_filled_with(std::byte{0x77}));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReadQueueTest,
                         ::testing::Values(QueueKind{"Uring", make_uring}, QueueKind{"Pread", make_pread},
                                           QueueKind{"Fake", make_fake}, QueueKind{"FaultInjecting", make_faultless},
                                           QueueKind{"Metered", make_metered}),
                         [](const auto& tested) { return tested.param.name; });

TEST(MakeReadQueueTest, FallsBackToPreadAndSaysWhy) {
  const TemporaryFile file(temporary_path("content"), random_content(4096, 1));
  const Result<std::unique_ptr<FileSet>> files = FileSet::open({file.path()});
  ASSERT_TRUE(files.ok()) << files.status().message();
  {
    Status refused;
    const std::unique_ptr<ReadQueue> queue = make_read_queue(**files, &refused);
    EXPECT_EQ(queue->name(), refused.ok() ? "io_uring" : "pread") << refused.message();
  }
  // No kernel has a ring of so many.
  constexpr size_t kTooMany = size_t{1} << 17;
  Status refused;
  const std::unique_ptr<ReadQueue> queue = make_read_queue(**files, &refused, kTooMany);
  EXPECT_EQ(queue->name(), "pread");
  EXPECT_EQ(queue->capacity(), kTooMany);
  EXPECT_FALSE(refused.ok());
}

}  // namespace
}  // namespace drafthorse
