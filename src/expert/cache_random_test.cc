// Random sequences of everything a caller may do, against a model that knows what must come of it.

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "expert/testing/cache_setup.h"

namespace drafthorse {
namespace {

// Does whatever a caller may do, in random order, and knows what must come of it.
class RandomCaller {
 public:
  RandomCaller(CacheSetup& setup, uint64_t seed, bool transient_faults)
      : setup_(setup), cache_(*setup.cache), transient_faults_(transient_faults), random_(seed) {}

  void step() {
    if (!layer_.has_value()) {
      if (below(3) == 0)
        demand();
      else
        hint();
    } else {
      switch (below(8)) {
        case 0:
        case 1:
          take_ready();
          break;
        case 2:
          wait_for();
          break;
        case 3:
        case 4:
          release_one();
          break;
        case 5:
          if (below(10) == 0) abandon();
          break;
        default:
          hint();
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
  const ExpertLayout& layout() const { return setup_.experts.layout(); }
  // Reads go by whole blocks, so a neighbour in the file may suffer as well.
  bool touches_broken(ExpertKey key) const {
    if (!broken_.has_value()) return false;
    const ExpertLayer& layer = layout().layers[index(key.layer)];
    const auto& extents = layer.experts[index(key.expert)];
    return std::any_of(extents.begin(), extents.begin() + layer.n_extents, [&](const FileExtent& extent) {
      const AlignedExtent read = widen(extent);
      return extent.file == broken_->file && read.begin < broken_->offset + broken_->bytes &&
             broken_->offset < read.end;
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
    std::vector<ExpertId> experts = setup_.all_of(*layer_);
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
    setup_.queue.mend();
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
      case 0:
        cache_.fill();
        break;
      case 1:
        cache_.poll();
        break;
      case 2:
        setup_.clock.advance_by(static_cast<int64_t>(below(300'000)));
        break;
      case 3:
        record_uses();
        break;
      case 4:
        if (!broken_.has_value() && below(20) == 0) {
          const ExpertKey key = random_key();
          broken_ = layout().layers[index(key.layer)].experts[index(key.expert)][1];
          setup_.queue.break_extent(*broken_);
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
      ASSERT_TRUE(setup_.experts.matches(key, cache_.weights(expert))) << "expert " << index(expert);
    }
    ASSERT_LE(setup_.residents(), cache_.slots());
    const LayerCacheStats total = setup_.total_stats();
    ASSERT_EQ(total.hits + total.in_flight_hits + total.misses, demanded_);
  }

  CacheSetup& setup_;
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
  int steps = 2000;
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
    CacheSetup setup(with.experts, with.slots, storage, policies[seed % policies.size()]);
    RandomCaller caller(setup, seed, with.transient_faults);
    for (int i = 0; i < with.steps; ++i) {
      caller.step();
      if (::testing::Test::HasFailure()) return;
    }
    caller.finish_demand();
    EXPECT_GT(caller.handed_out(), 20);
    failures += caller.failures();

    // No slot may have been lost on the way: as many experts fit as at the start.
    setup.queue.mend();
    setup.let_reads_finish();
    for (size_t l = 0; l < setup.experts.layout().n_layers(); ++l) {
      const std::vector<ExpertId> all = setup.all_of(LayerId{static_cast<int>(l)});
      if (all.empty()) continue;
      setup.cache->demand(LayerId{static_cast<int>(l)}, all);
      for (size_t out = 0; out < all.size();) {
        const Result<std::vector<ExpertId>> ready = setup.cache->take_ready();
        if (!ready.ok()) {
          EXPECT_TRUE(with.transient_faults);
          setup.cache->abandon();
          break;
        }
        for (const ExpertId expert : ready.value()) setup.cache->release(expert);
        out += ready.value().size();
      }
    }
    // Transient faults may cost a read, not a slot.
    for (int i = 0; i < (with.transient_faults ? 5 : 0); ++i) {
      setup.cache->fill();
      setup.let_reads_finish();
    }
    EXPECT_EQ(setup.residents(), with.slots);
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
        RandomCase{.name = "pieces",
                   .experts = {.experts_per_layer = {4, 4}, .n_embd = 512, .n_ff = 600, .n_files = 2},
                   .slots = 3,
                   .steps = 300},
        RandomCase{.name = "faulty",
                   .experts = {.experts_per_layer = {8, 0, 8}, .n_ff = 200, .n_files = 2},
                   .slots = 5,
                   .transient_faults = true},
        RandomCase{.name = "faulty_few_slots",
                   .experts = {.experts_per_layer = {6, 6}, .fused = true},
                   .slots = 2,
                   .transient_faults = true}),
    [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace drafthorse
