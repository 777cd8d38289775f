#include "expert/cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <random>
#include <set>
#include <string>

#include "expert/testing/fake_experts.h"

namespace drafthorse {
namespace {

// Fails every read that touches a broken extent, for as long as it is broken.
class BreakableQueue final : public ReadQueue {
 public:
  explicit BreakableQueue(std::unique_ptr<ReadQueue> inner) : inner_(std::move(inner)), failing_(inner_->capacity()) {}

  std::string_view name() const override { return "breakable"; }
  size_t capacity() const override { return inner_->capacity(); }
  size_t in_flight() const override { return inner_->in_flight(); }
  void submit(std::span<const ReadRequest> requests) override {
    for (const ReadRequest& request : requests) {
      failing_[request.tag] = std::any_of(broken_.begin(), broken_.end(), [&](const FileExtent& extent) {
        return extent.file == request.file && extent.offset < request.offset + request.bytes &&
               request.offset < extent.offset + extent.bytes;
      });
    }
    inner_->submit(requests);
  }
  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    const size_t count = inner_->reap(out, wait);
    for (ReadCompletion& completion : out.first(count)) {
      if (failing_[completion.tag]) completion = {completion.tag, 0, EIO};
    }
    return count;
  }

  void break_extent(const FileExtent& extent) { broken_.push_back(extent); }
  void mend() {
    broken_.clear();
    std::fill(failing_.begin(), failing_.end(), 0);
  }

 private:
  std::unique_ptr<ReadQueue> inner_;
  std::vector<char> failing_;
  std::vector<FileExtent> broken_;
};

// A cache over fake storage, and all it needs.
struct Bench {
  Bench(const FakeExpertsOptions& options, int slots, const FakeStorageOptions& storage,
        std::string_view policy = kDefaultEviction)
      : experts(options, storage.seed), files(experts.open_files()),
        queue(make_fake_queue(experts.contents(), clock, storage)) {
    Result<std::unique_ptr<ExpertCache>> made =
        ExpertCache::create(experts.layout(), slots, make_eviction_policy(policy), *files, queue, clock);
    CHECK(made.ok());
    cache = std::move(made).value();
  }

  void let_reads_finish() {
    cache->poll();
    while (queue.in_flight() > 0) {
      clock.advance_by(1'000'000);
      cache->poll();
    }
  }
  int residents() const {
    int count = 0;
    for (size_t l = 0; l < experts.layout().n_layers(); ++l) {
      const LayerId layer{static_cast<int>(l)};
      for (int e = 0; e < experts.layout().n_experts(layer); ++e) count += cache->resident({layer, ExpertId{e}}) ? 1 : 0;
    }
    return count;
  }
  std::vector<ExpertId> all_of(LayerId layer) const {
    std::vector<ExpertId> all;
    for (int e = 0; e < experts.layout().n_experts(layer); ++e) all.push_back(ExpertId{e});
    return all;
  }
  LayerCacheStats total_stats() const {
    LayerCacheStats total;
    for (const LayerCacheStats& one : cache->stats()) {
      total.hits += one.hits;
      total.in_flight_hits += one.in_flight_hits;
      total.misses += one.misses;
      total.stall_ns += one.stall_ns;
    }
    return total;
  }

  VirtualClock clock;
  FakeExperts experts;
  std::unique_ptr<FileSet> files;
  BreakableQueue queue;
  std::unique_ptr<ExpertCache> cache;
};

// Does whatever a caller may do, in random order, and knows what must come of it.
class RandomCaller {
 public:
  RandomCaller(Bench& bench, uint64_t seed, bool transient_faults)
      : bench_(bench), cache_(*bench.cache), transient_faults_(transient_faults), random_(seed) {}

  void step() {
    if (!layer_.has_value()) {
      if (below(3) == 0) demand();
      else hint();
    } else {
      switch (below(8)) {
        case 0: case 1: take_ready(); break;
        case 2: wait_for(); break;
        case 3: case 4: release_one(); break;
        case 5: if (below(10) == 0) abandon(); break;
        default: hint();
      }
    }
    check();
  }

  void finish_demand() {
    while (layer_.has_value()) {
      while (!held_.empty()) release_one();
      if (layer_.has_value()) take_ready();
      check();
    }
  }

  int64_t demanded() const { return demanded_; }
  int64_t handed_out() const { return handed_out_; }
  int64_t failures() const { return failures_; }

 private:
  uint64_t below(uint64_t limit) { return random_() % limit; }
  bool can_fail() const { return transient_faults_ || broken_.has_value(); }
  const ExpertLayout& layout() const { return bench_.experts.layout(); }
  // Reads go by whole blocks, so a neighbour in the file may suffer as well.
  bool touches_broken(ExpertKey key) const {
    if (!broken_.has_value()) return false;
    const ExpertLayer& layer = layout().layers[index(key.layer)];
    const auto& extents = layer.experts[index(key.expert)];
    return std::any_of(extents.begin(), extents.begin() + layer.n_extents, [&](const FileExtent& extent) {
      const AlignedExtent read = widen(extent);
      return extent.file == broken_->file && read.begin < broken_->offset + broken_->bytes && broken_->offset < read.end;
    });
  }
  ExpertKey random_key() {
    while (true) {
      const LayerId layer{static_cast<int>(below(layout().n_layers()))};
      if (layout().n_experts(layer) > 0) {
        return {layer, ExpertId{static_cast<int>(below(static_cast<uint64_t>(layout().n_experts(layer))))}};
      }
    }
  }

  void demand() {
    layer_ = random_key().layer;
    std::vector<ExpertId> experts = bench_.all_of(*layer_);
    std::shuffle(experts.begin(), experts.end(), random_);
    experts.resize(1 + below(experts.size()));
    // demand() takes in what has come; do it before, so that the model sees the same residents.
    cache_.poll();
    int64_t residents = 0;
    for (const ExpertId expert : experts) residents += cache_.resident({*layer_, expert}) ? 1 : 0;
    const int64_t hits = cache_.stats()[index(*layer_)].hits;
    cache_.demand(*layer_, experts);
    EXPECT_EQ(cache_.stats()[index(*layer_)].hits - hits, residents);
    demanded_ += static_cast<int64_t>(experts.size());
    waiting_.insert(experts.begin(), experts.end());
  }

  void hand_out(ExpertId expert) {
    ASSERT_EQ(waiting_.erase(expert), 1U) << "expert " << index(expert) << " handed out twice or never demanded";
    held_.insert(expert);
    ++handed_out_;
  }

  // A slot that is not held is all the cache asks of its caller.
  bool may_wait() const { return !waiting_.empty() && static_cast<int>(held_.size()) < cache_.slots(); }

  void take_ready() {
    if (!may_wait()) return;
    const Result<std::vector<ExpertId>> ready = cache_.take_ready();
    if (!ready.ok()) return fail(ready.status());
    ASSERT_FALSE(ready.value().empty());
    for (const ExpertId expert : ready.value()) hand_out(expert);
  }

  void wait_for() {
    if (!may_wait()) return;
    const ExpertId expert = *std::next(waiting_.begin(), static_cast<std::ptrdiff_t>(below(waiting_.size())));
    const Status status = cache_.wait_for(expert);
    if (!status.ok()) return fail(status);
    hand_out(expert);
  }

  void fail(const Status& status) {
    EXPECT_TRUE(can_fail()) << status.message();
    if (!transient_faults_) {
      EXPECT_EQ(status.kind(), StatusKind::kRuntime);
    }
    const bool touched = std::any_of(waiting_.begin(), waiting_.end(), [&](ExpertId expert) {
      return touches_broken({*layer_, expert});
    });
    EXPECT_TRUE(touched || transient_faults_) << "failed without a broken expert: " << status.message();
    ++failures_;
    abandon();
    bench_.queue.mend();
    broken_.reset();
  }

  void release_one() {
    if (held_.empty()) return;
    const auto one = std::next(held_.begin(), static_cast<std::ptrdiff_t>(below(held_.size())));
    cache_.release(*one);
    held_.erase(one);
    if (held_.empty() && waiting_.empty()) layer_.reset();
  }

  void abandon() {
    cache_.abandon();
    held_.clear();
    waiting_.clear();
    layer_.reset();
  }

  void hint() {
    switch (below(8)) {
      case 0: cache_.fill(); break;
      case 1: cache_.poll(); break;
      case 2: bench_.clock.advance_by(static_cast<int64_t>(below(300'000))); break;
      case 3: record_uses(); break;
      case 4:
        if (!broken_.has_value() && below(20) == 0) {
          const ExpertKey key = random_key();
          broken_ = layout().layers[index(key.layer)].experts[index(key.expert)][1];
          bench_.queue.break_extent(*broken_);
        }
        break;
      default:
        for (uint64_t i = below(6); i > 0; --i) cache_.prefetch(random_key());
    }
  }

  void record_uses() {
    const LayerId layer = random_key().layer;
    std::vector<int32_t> used(static_cast<size_t>(layout().n_experts(layer)));
    for (int32_t& count : used) count = static_cast<int32_t>(below(4));
    cache_.record_uses(layer, used, 3);
    cache_.advance(3);
  }

  void check() {
    cache_.check_invariants();
    for (const ExpertId expert : held_) {
      const ExpertKey key{*layer_, expert};
      ASSERT_TRUE(cache_.resident(key));
      ASSERT_TRUE(bench_.experts.matches(key, cache_.weights(expert))) << "expert " << index(expert);
    }
    ASSERT_LE(bench_.residents(), cache_.slots());
    const LayerCacheStats total = bench_.total_stats();
    ASSERT_EQ(total.hits + total.in_flight_hits + total.misses, demanded_);
  }

  Bench& bench_;
  ExpertCache& cache_;
  const bool transient_faults_;
  std::mt19937_64 random_;
  std::optional<LayerId> layer_;  // of the demand under way
  std::set<ExpertId> waiting_;    // demanded, not handed out
  std::set<ExpertId> held_;       // handed out, not released
  std::optional<FileExtent> broken_;
  int64_t demanded_ = 0;
  int64_t handed_out_ = 0;
  int64_t failures_ = 0;
};

struct RandomCase {
  std::string name;
  FakeExpertsOptions experts;
  int slots = 2;
  bool transient_faults = false;
  int steps = 3000;
};

class CacheRandomTest : public ::testing::TestWithParam<RandomCase> {};

TEST_P(CacheRandomTest, HoldsAgainstTheModel) {
  const RandomCase& with = GetParam();
  int64_t failures = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(::testing::Message() << with.name << ", seed " << seed);
    FakeStorageOptions storage{.seed = seed};
    if (with.transient_faults) {
      storage.failure_probability = 0.05;
      storage.short_read_probability = 0.1;
    }
    const std::vector<std::string> policies = eviction_policy_names();
    Bench bench(with.experts, with.slots, storage, policies[seed % policies.size()]);
    RandomCaller caller(bench, seed, with.transient_faults);
    for (int i = 0; i < with.steps; ++i) {
      caller.step();
      if (::testing::Test::HasFailure()) return;
    }
    caller.finish_demand();
    EXPECT_GT(caller.handed_out(), 20);
    failures += caller.failures();

    // No slot may have been lost on the way: as many experts fit as at the start.
    bench.queue.mend();
    bench.let_reads_finish();
    for (size_t l = 0; l < bench.experts.layout().n_layers(); ++l) {
      const std::vector<ExpertId> all = bench.all_of(LayerId{static_cast<int>(l)});
      if (all.empty()) continue;
      bench.cache->demand(LayerId{static_cast<int>(l)}, all);
      for (size_t out = 0; out < all.size();) {
        const Result<std::vector<ExpertId>> ready = bench.cache->take_ready();
        if (!ready.ok()) {
          EXPECT_TRUE(with.transient_faults);
          bench.cache->abandon();
          break;
        }
        for (const ExpertId expert : ready.value()) bench.cache->release(expert);
        out += ready.value().size();
      }
    }
    // Transient faults may cost a read, not a slot.
    for (int i = 0; i < (with.transient_faults ? 5 : 0); ++i) {
      bench.cache->fill();
      bench.let_reads_finish();
    }
    EXPECT_EQ(bench.residents(), with.slots);
  }
  EXPECT_GT(failures, 0) << "no seed broke anything: the test is too tame";
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, CacheRandomTest,
    ::testing::Values(
        RandomCase{.name = "few_slots", .experts = {.experts_per_layer = {8, 8, 8}}, .slots = 2},
        RandomCase{.name = "few_slots_one_layer", .experts = {.experts_per_layer = {12}, .fused = true}, .slots = 3},
        RandomCase{.name = "some_slots", .experts = {.experts_per_layer = {8, 0, 8, 6, 0}, .n_files = 3}, .slots = 9},
        RandomCase{.name = "all_but_one", .experts = {.experts_per_layer = {4, 4, 4}, .fused = true}, .slots = 11},
        RandomCase{.name = "every_expert", .experts = {.experts_per_layer = {0, 5, 5}, .n_files = 2}, .slots = 10},
        RandomCase{.name = "pieces", .experts = {.experts_per_layer = {4, 4}, .n_embd = 512, .n_ff = 600, .n_files = 2},
                   .slots = 3, .steps = 300},
        RandomCase{.name = "faulty", .experts = {.experts_per_layer = {8, 0, 8}, .n_ff = 200, .n_files = 2}, .slots = 5,
                   .transient_faults = true},
        RandomCase{.name = "faulty_few_slots", .experts = {.experts_per_layer = {6, 6}, .fused = true}, .slots = 2,
                   .transient_faults = true}),
    [](const auto& one) { return one.param.name; });

// --- what the random caller cannot see

TEST(ExpertCache, FailedReadSurfacesAndTheNextDemandWorks) {
  for (const bool by_order : {false, true}) {
    Bench bench({.experts_per_layer = {6}}, 4, {.seed = 3});
    const FileExtent& broken = bench.experts.layout().layers[0].experts[2][2];
    bench.queue.break_extent(broken);
    const std::vector<ExpertId> wanted{ExpertId{1}, ExpertId{2}};
    bench.cache->demand(LayerId{0}, wanted);
    Status failure;
    if (by_order) {
      failure = bench.cache->wait_for(ExpertId{2});
    } else {
      while (failure.ok()) {
        Result<std::vector<ExpertId>> ready = bench.cache->take_ready();
        if (!ready.ok()) failure = ready.status();
        else for (const ExpertId expert : ready.value()) bench.cache->release(expert);
      }
    }
    EXPECT_EQ(failure.kind(), StatusKind::kRuntime);
    EXPECT_NE(failure.message().find(bench.files->path(0)), std::string::npos) << failure.message();
    bench.cache->abandon();
    bench.cache->check_invariants();
    EXPECT_FALSE(bench.cache->resident({LayerId{0}, ExpertId{2}}));

    bench.queue.mend();
    bench.cache->demand(LayerId{0}, wanted);
    ASSERT_TRUE(bench.cache->wait_for(ExpertId{2}).ok());
    EXPECT_TRUE(bench.experts.matches({LayerId{0}, ExpertId{2}}, bench.cache->weights(ExpertId{2})));
    bench.cache->abandon();
  }
}

TEST(ExpertCache, FailedPrefetchIsNoError) {
  Bench bench({.experts_per_layer = {4}}, 3, {.seed = 4});
  bench.queue.break_extent(bench.experts.layout().layers[0].experts[1][0]);
  bench.cache->prefetch({LayerId{0}, ExpertId{1}});
  bench.let_reads_finish();
  EXPECT_FALSE(bench.cache->resident({LayerId{0}, ExpertId{1}}));
  bench.queue.mend();
  const std::vector<ExpertId> wanted{ExpertId{1}};
  bench.cache->demand(LayerId{0}, wanted);
  EXPECT_TRUE(bench.cache->wait_for(ExpertId{1}).ok());
  bench.cache->release(ExpertId{1});
}

// The pinned residents of a demand may fill all slots while the expert waited for first is absent.
TEST(ExpertCache, WaitingInOrderPassesResidentsThatFillAllSlots) {
  Bench bench({.experts_per_layer = {6}}, 2, {.seed = 5});
  const auto run = [&](const std::vector<ExpertId>& experts) {
    bench.cache->demand(LayerId{0}, experts);
    for (const ExpertId expert : experts) {
      ASSERT_TRUE(bench.cache->wait_for(expert).ok());
      ASSERT_TRUE(bench.experts.matches({LayerId{0}, expert}, bench.cache->weights(expert)));
      bench.cache->release(expert);
      bench.cache->check_invariants();
    }
  };
  run({ExpertId{4}, ExpertId{5}});
  run({ExpertId{0}, ExpertId{1}, ExpertId{4}, ExpertId{5}});
}

TEST(ExpertCache, FillTakesFreeSlotsOnlyAndReportsFailure) {
  Bench bench({.experts_per_layer = {0, 4, 4}}, 6, {.seed = 6});
  int last = 0;
  ASSERT_TRUE(bench.cache->fill_and_wait([&](int done, int slots) {
    EXPECT_GE(done, last);
    EXPECT_EQ(slots, 6);
    last = done;
  }).ok());
  EXPECT_EQ(last, 6);
  EXPECT_EQ(bench.residents(), 6);
  EXPECT_EQ(bench.cache->stats()[1].evictions + bench.cache->stats()[2].evictions, 0);

  Bench broken({.experts_per_layer = {6}}, 4, {.seed = 6});
  broken.queue.break_extent(broken.experts.layout().layers[0].experts[1][1]);
  EXPECT_FALSE(broken.cache->fill_and_wait({}).ok());
  broken.cache->check_invariants();
  broken.queue.mend();
  broken.let_reads_finish();
  EXPECT_TRUE(broken.cache->fill_and_wait({}).ok());
  EXPECT_EQ(broken.residents(), 4);
}

// Whatever was prefetched, a demand waits for at most the background's share of the link and for itself.
TEST(ExpertCache, DemandOvertakesBackgroundReads) {
  constexpr uint64_t kLimit = 2 * kReadPieceBytes;
  constexpr double kBytesPerSecond = 1e9;
  constexpr int64_t kLatency = 100'000;
  for (const bool fill : {false, true}) {
    for (const bool in_flight : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "fill " << fill << ", in flight " << in_flight);
      Bench bench({.experts_per_layer = {12, 12}, .n_embd = 256, .n_ff = 600}, 24,
                  {.seed = 7, .latency_ns = kLatency, .bytes_per_s = kBytesPerSecond});
      bench.cache->set_background_limit(kLimit);
      if (fill) bench.cache->fill();
      for (int e = 0; e < 8; ++e) bench.cache->prefetch({LayerId{0}, ExpertId{e}});
      const std::vector<ExpertId> wanted{ExpertId{in_flight ? 7 : 11}};
      const int64_t start = bench.clock.now_ns();
      bench.cache->demand(LayerId{0}, wanted);
      ASSERT_TRUE(bench.cache->wait_for(wanted[0]).ok());
      const int64_t took = bench.clock.now_ns() - start;
      EXPECT_EQ(bench.cache->stats()[0].in_flight_hits, in_flight ? 1 : 0);
      const auto own = static_cast<double>(ExpertCache::slot_bytes(bench.experts.layout()));
      const double bound = (static_cast<double>(kLimit) + own) / kBytesPerSecond * 1e9 + 1.5 * kLatency;
      EXPECT_LE(static_cast<double>(took), bound);
      EXPECT_EQ(bench.cache->stats()[0].stall_ns, took);
      bench.cache->release(wanted[0]);
    }
  }
}

// A prefetch neither drives out what another read ahead nor anything pinned.
TEST(ExpertCache, PrefetchIsAHint) {
  Bench bench({.experts_per_layer = {8, 8}}, 3, {.seed = 8});
  for (int e = 0; e < 3; ++e) bench.cache->prefetch({LayerId{1}, ExpertId{e}});
  bench.let_reads_finish();
  bench.cache->prefetch({LayerId{1}, ExpertId{5}});
  bench.let_reads_finish();
  for (int e = 0; e < 3; ++e) EXPECT_TRUE(bench.cache->resident({LayerId{1}, ExpertId{e}}));
  // A demand may take them, but no more than it needs.
  const std::vector<ExpertId> wanted{ExpertId{0}};
  bench.cache->demand(LayerId{0}, wanted);
  ASSERT_TRUE(bench.cache->wait_for(ExpertId{0}).ok());
  EXPECT_EQ(bench.residents(), 3);
  bench.cache->prefetch({LayerId{1}, ExpertId{6}});
  bench.let_reads_finish();
  EXPECT_TRUE(bench.cache->resident({LayerId{0}, ExpertId{0}}));
  EXPECT_FALSE(bench.cache->resident({LayerId{1}, ExpertId{6}}));
  bench.cache->release(ExpertId{0});
  bench.cache->prefetch({LayerId{1}, ExpertId{6}});
  bench.let_reads_finish();
  EXPECT_TRUE(bench.cache->resident({LayerId{1}, ExpertId{6}}));
}

// Destroying the cache while reads are under way must not leave them writing into its memory.
TEST(ExpertCache, DestructionDrainsReads) {
  Bench bench({.experts_per_layer = {8, 8}}, 6, {.seed = 9});
  bench.cache->fill();
  bench.cache->prefetch({LayerId{1}, ExpertId{2}});
  const std::vector<ExpertId> wanted{ExpertId{7}, ExpertId{3}};
  bench.cache->demand(LayerId{0}, wanted);
  bench.cache->abandon();
  bench.cache->demand(LayerId{0}, wanted);
  EXPECT_GT(bench.queue.in_flight(), 0U);
  bench.cache.reset();
  EXPECT_EQ(bench.queue.in_flight(), 0U);
}

}  // namespace
}  // namespace drafthorse
