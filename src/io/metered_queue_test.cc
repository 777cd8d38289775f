#include "io/metered_queue.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace drafthorse {
namespace {

constexpr uint32_t kPieceBytes = 256 * 1024;

// A thread that reads and computes, over storage that serves at `bytes_per_s`.
class Reader {
 public:
  explicit Reader(const FakeStorageOptions& options)
      : inner_(make_fake_queue({std::vector<std::byte>(kPieceBytes)}, clock, options)), buffer_(kPieceBytes) {}

  void submit(int pieces) {
    std::vector<ReadRequest> requests;
    for (int i = 0; i < pieces; ++i) {
      requests.push_back({0, 0, kPieceBytes, buffer_.data(), next_tag_++});
    }
    queue.submit(requests);
  }
  // What is there, at once.
  void look() {
    std::vector<ReadCompletion> done(8);
    while (queue.reap(done, false) == done.size()) {
    }
  }
  void wait_for_all() {
    std::vector<ReadCompletion> done(8);
    while (queue.in_flight() > 0) queue.reap(done, true);
  }

  VirtualClock clock;

 private:
  std::unique_ptr<ReadQueue> inner_;

 public:
  MeteredQueue queue{*inner_, clock};

 private:
  std::vector<std::byte> buffer_;
  uint64_t next_tag_ = 0;
};

constexpr double kBytesPerS = 2e9;
constexpr int64_t kPiece_ns = static_cast<int64_t>(kPieceBytes / kBytesPerS * 1e9);
constexpr FakeStorageOptions kStorage{.seed = 3, .latency_ns = 0, .bytes_per_s = kBytesPerS};

TEST(MeteredQueue, KnowsNothingAtFirst) {
  Reader reader(kStorage);
  EXPECT_EQ(reader.queue.bytes_per_s(), 0);
  reader.submit(4);
  reader.wait_for_all();
  EXPECT_EQ(reader.queue.bytes_per_s(), 0);  // a megabyte
}

TEST(MeteredQueue, TakesTheRateOfReadsThatAreWaitedFor) {
  Reader reader(kStorage);
  for (int i = 0; i < 20; ++i) {
    reader.submit(16);
    reader.wait_for_all();
    reader.clock.advance_by(50 * kPiece_ns);  // nothing in flight
  }
  EXPECT_NEAR(reader.queue.bytes_per_s(), kBytesPerS, 0.02 * kBytesPerS);
}

// Half of the reads are done by the time anybody waits: they do not count as read in that time.
TEST(MeteredQueue, DoesNotCountWhatWasReadBefore) {
  Reader reader(kStorage);
  for (int i = 0; i < 20; ++i) {
    reader.submit(16);
    reader.clock.advance_by(8 * kPiece_ns + kPiece_ns / 2);
    reader.wait_for_all();
  }
  EXPECT_NEAR(reader.queue.bytes_per_s(), kBytesPerS, 0.05 * kBytesPerS);
}

// Storage that has finished long ago was not slow.
TEST(MeteredQueue, DoesNotCountTimeInWhichItMayHaveBeenIdle) {
  Reader reader(kStorage);
  for (int i = 0; i < 20; ++i) {
    reader.submit(16);
    reader.clock.advance_by(100 * kPiece_ns);
    reader.look();
    reader.submit(16);
    reader.wait_for_all();
  }
  EXPECT_NEAR(reader.queue.bytes_per_s(), kBytesPerS, 0.02 * kBytesPerS);
}

TEST(MeteredQueue, FollowsAChange) {
  VirtualClock clock;
  const auto run = [&clock](MeteredQueue& queue, std::vector<std::byte>& buffer) {
    std::vector<ReadCompletion> done(8);
    for (int i = 0; i < 1000; ++i) {
      for (uint64_t tag = 0; tag < 8; ++tag) {
        const ReadRequest request{0, 0, kPieceBytes, buffer.data(), tag};
        queue.submit({&request, 1});
      }
      while (queue.in_flight() > 0) queue.reap(done, true);
    }
  };
  // A queue whose rate changes is two, one after the other.
  class Switch final : public ReadQueue {
   public:
    Switch(ReadQueue& first, ReadQueue& second) : first_(first), second_(second) {}
    std::string_view name() const override { return "switch"; }
    size_t capacity() const override { return first_.capacity(); }
    size_t in_flight() const override { return now().in_flight(); }
    void submit(std::span<const ReadRequest> requests) override { now().submit(requests); }
    size_t reap(std::span<ReadCompletion> out, bool wait) override { return now().reap(out, wait); }
    bool switched = false;

   private:
    ReadQueue& now() const { return switched ? second_ : first_; }
    ReadQueue& first_;
    ReadQueue& second_;
  };
  const std::vector<std::vector<std::byte>> content{std::vector<std::byte>(kPieceBytes)};
  const auto fast = make_fake_queue(content, clock, kStorage);
  const auto slow = make_fake_queue(content, clock, {.seed = 3, .latency_ns = 0, .bytes_per_s = kBytesPerS / 4});
  Switch both(*fast, *slow);
  MeteredQueue queue(both, clock);
  std::vector<std::byte> buffer(kPieceBytes);
  run(queue, buffer);
  EXPECT_NEAR(queue.bytes_per_s(), kBytesPerS, 0.02 * kBytesPerS);
  both.switched = true;
  run(queue, buffer);
  EXPECT_NEAR(queue.bytes_per_s(), kBytesPerS / 4, 0.05 * kBytesPerS);
}

// Computing, looking and waiting as it comes, with latencies of a few pieces.
TEST(MeteredQueue, RandomUse) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Reader reader({.seed = seed, .latency_ns = 2 * kPiece_ns, .bytes_per_s = kBytesPerS});
    std::mt19937_64 random(seed);
    const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    for (int i = 0; i < 400; ++i) {
      const auto room = static_cast<int64_t>(reader.queue.capacity() - reader.queue.in_flight());
      if (room > 8) reader.submit(static_cast<int>(8 + below(room - 8)));
      reader.clock.advance_by(below(40) * kPiece_ns);
      if (below(2) == 0) reader.look();
      if (below(3) == 0) reader.wait_for_all();
    }
    EXPECT_NEAR(reader.queue.bytes_per_s(), kBytesPerS, 0.1 * kBytesPerS);
  }
}

}  // namespace
}  // namespace drafthorse
