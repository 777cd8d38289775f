// The two queues that break on purpose: virtual storage, and faults over a working queue.

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "io/read_queue.h"

namespace drafthorse {
namespace {

constexpr size_t kFileBytes = 100'000;

std::vector<std::vector<std::byte>> one_file() {
  std::vector<std::byte> content(kFileBytes);
  for (size_t i = 0; i < kFileBytes; ++i) content[i] = static_cast<std::byte>(i % 251);
  return {content};
}

struct Seen {
  uint64_t tag = 0;
  uint32_t bytes = 0;
  int error = 0;
  int64_t at_ns = 0;
  friend bool operator==(const Seen&, const Seen&) = default;
};

// Reads `count` pieces of `bytes` in rounds of at most `batch` and notes what comes back, when, in which order.
std::vector<Seen> read_pieces(ReadQueue& queue, const VirtualClock& clock, uint64_t count, uint32_t bytes,
                              uint64_t batch = 32) {
  std::vector<std::byte> memory(count * bytes);
  std::vector<Seen> seen;
  for (uint64_t next = 0; next < count;) {
    std::vector<ReadRequest> requests;
    for (uint64_t i = 0; i < batch && next < count; ++i, ++next) {
      requests.push_back({.file = 0,
                          .offset = next * 7 % (kFileBytes - bytes),
                          .bytes = bytes,
                          .destination = memory.data() + next * bytes,
                          .tag = next});
    }
    queue.submit(requests);
    std::vector<ReadCompletion> out(8);
    while (queue.in_flight() > 0) {
      const size_t reaped = queue.reap(out, true);
      for (const ReadCompletion& c : std::span(out).first(reaped)) {
        seen.push_back({c.tag, c.bytes, c.error, clock.now_ns()});
      }
    }
  }
  return seen;
}

std::vector<Seen> run_fake(FakeStorageOptions options, uint64_t count = 100, uint32_t bytes = 1000) {
  VirtualClock clock;
  const std::unique_ptr<ReadQueue> queue = make_fake_queue(one_file(), clock, options);
  return read_pieces(*queue, clock, count, bytes);
}

TEST(FakeQueueTest, SameSeedSameStory) {
  const FakeStorageOptions options{.seed = 3, .failure_probability = 0.1, .short_read_probability = 0.2};
  FakeStorageOptions other = options;
  other.seed = 4;
  EXPECT_EQ(run_fake(options), run_fake(options));
  EXPECT_NE(run_fake(options), run_fake(other));
}

TEST(FakeQueueTest, TimePassesOnlyWhenSomebodyWaits) {
  VirtualClock clock;
  const auto queue = make_fake_queue(one_file(), clock, {.latency_ns = 1'000, .bytes_per_s = 1e12});
  std::byte byte{};
  const ReadRequest request{.bytes = 1, .destination = &byte, .tag = 1};
  std::vector<ReadCompletion> out(1);
  for (int i = 0; i < 50; ++i) {
    const int64_t start_ns = clock.now_ns();
    queue->submit(std::span(&request, 1));
    EXPECT_EQ(queue->reap(out, false), 0U);
    clock.advance_by(499);
    EXPECT_EQ(queue->reap(out, false), 0U);
    EXPECT_EQ(queue->reap(out, true), 1U);
    EXPECT_GE(clock.now_ns() - start_ns, 500);
    EXPECT_LE(clock.now_ns() - start_ns, 1'500);
    EXPECT_EQ(byte, std::byte{0});
  }
}

TEST(FakeQueueTest, AllShareTheBandwidth) {
  VirtualClock clock;
  const auto queue = make_fake_queue(one_file(), clock, {.latency_ns = 1'000, .bytes_per_s = 1e6});
  const std::vector<Seen> seen = read_pieces(*queue, clock, 32, 1'000);
  ASSERT_EQ(seen.size(), 32U);
  EXPECT_GE(seen.back().at_ns, 32'000'000);
  EXPECT_LE(seen.back().at_ns, 32'010'000);
}

TEST(FakeQueueTest, CompletionsComeOutOfOrder) {
  const std::vector<Seen> seen = run_fake({.seed = 1, .latency_ns = 1'000'000, .bytes_per_s = 1e12});
  bool reordered = false;
  for (size_t i = 1; i < seen.size(); ++i) reordered |= seen[i].tag < seen[i - 1].tag;
  EXPECT_TRUE(reordered);
}

TEST(FakeQueueTest, FailsTheNumberedRequestOnly) {
  for (const Seen& seen : run_fake({.fail_request_number = 7})) {
    EXPECT_EQ(seen.error, seen.tag == 7 ? EIO : 0);
    EXPECT_EQ(seen.bytes, seen.tag == 7 ? 0U : 1000U);
  }
  for (const Seen& seen : run_fake({.fail_from_request_number = 60})) EXPECT_EQ(seen.error, seen.tag >= 60 ? EIO : 0);
}

TEST(FakeQueueTest, FaultsComeAsOftenAsAskedFor) {
  size_t failed = 0;
  size_t cut = 0;
  for (const Seen& seen : run_fake({.failure_probability = 0.1, .short_read_probability = 0.5}, 2'000, 1'000)) {
    failed += seen.error == EIO;
    cut += seen.error == 0 && seen.bytes < 1'000;
    EXPECT_TRUE(seen.error != 0 || seen.bytes > 0);
  }
  EXPECT_NEAR(static_cast<double>(failed), 200, 60);
  EXPECT_NEAR(static_cast<double>(cut), 900, 120);
}

TEST(FakeQueueTest, DestinationIsNotReadableBeforeTheCompletion) {
  VirtualClock clock;
  const auto queue = make_fake_queue(one_file(), clock, {});
  std::byte byte{0};
  const ReadRequest request{.bytes = 1, .destination = &byte};
  queue->submit(std::span(&request, 1));
  EXPECT_NE(byte, std::byte{0});
  std::vector<ReadCompletion> out(1);
  queue->reap(out, true);
  EXPECT_EQ(byte, std::byte{0});
}

TEST(FakeQueueDeathTest, MoreThanTheCapacityIsABug) {
  VirtualClock clock;
  const auto queue = make_fake_queue(one_file(), clock, {}, 1);
  std::byte bytes[2];
  const ReadRequest requests[] = {{.bytes = 1, .destination = &bytes[0]}, {.bytes = 1, .destination = &bytes[1]}};
  EXPECT_DEATH(queue->submit(requests), "CHECK failed");
}

std::vector<Seen> run_faults(InjectedFaults faults) {
  VirtualClock clock;
  const auto queue = make_fault_injecting_queue(make_fake_queue(one_file(), clock, {}), faults);
  return read_pieces(*queue, clock, 100, 1000);
}

TEST(FaultQueueTest, BreaksWhatIsNumbered) {
  for (const Seen& seen : run_faults({})) EXPECT_EQ(seen.error, 0);
  for (const Seen& seen : run_faults({.fail_at = 40})) EXPECT_EQ(seen.error, seen.tag == 40 ? EIO : 0);
  for (const Seen& seen : run_faults({.fail_at = 40, .fail_count = 3})) {
    EXPECT_EQ(seen.error, seen.tag >= 40 && seen.tag < 43 ? EIO : 0);
  }
  for (const Seen& seen : run_faults({.fail_at = 40, .fail_count = -1}))
    EXPECT_EQ(seen.error, seen.tag >= 40 ? EIO : 0);
  for (const Seen& seen : run_faults({.short_at = 5})) {
    EXPECT_EQ(seen.error, 0);
    EXPECT_EQ(seen.bytes, seen.tag == 5 ? 500U : 1000U);
  }
}

}  // namespace
}  // namespace drafthorse
