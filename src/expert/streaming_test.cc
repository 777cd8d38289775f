// A batch's passes over more experts than there are slots, in virtual time: what eviction leaves to be read, and where.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "expert/testing/cache_setup.h"
#include "expert/turn_order.h"

namespace drafthorse {
namespace {

constexpr int kLayers = 6;
constexpr int kExperts = 16;
constexpr int kAhead = 2;  // experts that are read ahead
constexpr int64_t kCompute_ns = 100'000;
constexpr int64_t kTokens = 64;  // of a pass

// Of one pass in the long run.
struct Reads {
  std::vector<double> by_layer;
  double total = 0;
  double stall_s = 0;
  double widest_difference() const {
    const auto [least, most] = std::minmax_element(by_layer.begin(), by_layer.end());
    return *most - *least;
  }
};

constexpr double kLittle = 0.02 * kLayers * kExperts * kCompute_ns * 1e-9;  // of a pass

// Calls the cache as a batch's pass does (ForwardPass::experts_in_order).
class StreamedPasses {
 public:
  StreamedPasses(const std::string& policy, int slots, double share_used)
      : setup_({.experts_per_layer = std::vector<int>(kLayers, kExperts)}, slots,
               {.seed = 11, .latency_ns = 1'000, .bytes_per_s = kBytesPerSecond}, policy),
        share_used_(share_used) {
    setup_.cache->set_window(kTokens);
    setup_.cache->fill();
  }

  Reads run(int passes) {
    for (int i = 0; i < passes; ++i) pass();  // until it repeats
    setup_.cache->reset_stats();
    for (int i = 0; i < passes; ++i) pass();
    Reads out;
    for (const LayerCacheStats& layer : setup_.cache->stats()) {
      out.by_layer.push_back(static_cast<double>(layer.misses + layer.prefetched) / passes);
      out.stall_s += static_cast<double>(layer.stall_ns) * 1e-9 / passes;
    }
    out.total = std::accumulate(out.by_layer.begin(), out.by_layer.end(), 0.0);
    return out;
  }

 private:
  // An expert (its matrices in 4 or 8 KiB each) takes about one and a half times as long to read as to compute: where
  // half of the experts stay, reading the others takes three quarters of a pass.
  static constexpr double kBytesPerSecond = 3.0 * 6144 / (1.5 * kCompute_ns * 1e-9);

  // Where not all are used, the higher ids are those used less often.
  std::vector<ExpertId> used() {
    std::vector<ExpertId> out;
    for (int e = 0; e < kExperts; ++e) {
      const double rate = e < kExperts / 2 ? 1 : share_used_;
      if (std::uniform_real_distribution<>()(random_) < rate) out.push_back(ExpertId{e});
    }
    return out;
  }

  void pass() {
    for (int l = 0; l < kLayers; ++l) {
      const LayerId layer{l};
      const std::vector<ExpertId> experts = used();
      setup_.clock.advance_by(kCompute_ns);
      setup_.cache->poll();
      TurnOrder turn;
      turn.begin(*setup_.cache, layer, experts);
      setup_.cache->begin_turn(layer, experts);
      while (!turn.done()) {
        const ExpertId expert = turn.take(*setup_.cache, layer);
        setup_.cache->demand_portion({&expert, 1});
        read_ahead(layer, turn.awaited());
        ASSERT_TRUE(setup_.cache->wait_for(expert).ok());
        setup_.clock.advance_by(kCompute_ns);
        setup_.cache->release(expert);
        setup_.cache->poll();
        setup_.cache->check_invariants();
      }
      std::vector<int32_t> tokens(kExperts);
      for (const ExpertId expert : experts) tokens[static_cast<size_t>(index(expert))] = kTokens / 8;
      setup_.cache->record_uses(layer, tokens, kTokens);
    }
    setup_.cache->advance(kTokens);
  }

  void read_ahead(LayerId layer, std::span<const ExpertId> awaited) {
    int ahead = 0;
    const auto read = [&](ExpertKey key) {
      if (!setup_.cache->resident(key) || setup_.cache->awaits_turn(key)) ++ahead;
      return ahead <= kAhead && setup_.cache->prefetch(key) != Prefetched::kNoSlot;
    };
    for (const ExpertId expert : awaited) {
      if (!read({layer, expert})) return;
    }
    const int sure = share_used_ < 1 ? kExperts / 2 : kExperts;
    for (int e = 0; e < sure; ++e) {
      if (!read({LayerId{(index(layer) + 1) % kLayers}, ExpertId{e}})) return;
    }
  }

  CacheSetup setup_;
  double share_used_;
  std::mt19937 random_{5};
};

TEST(Streaming, WhatSpreadKeepsIsSpreadOverTheLayers) {
  constexpr int kAll = kLayers * kExperts;
  constexpr double kEven = 4;
  for (const int slots : {12, 30, 48, 60}) {
    SCOPED_TRACE(slots);
    const Reads spread = StreamedPasses("spread", slots, 1).run(40);
    // All stay but what passes by: the one computed and those ahead of it.
    EXPECT_LE(spread.total, kAll - slots + kAhead + 2);
    EXPECT_LE(spread.widest_difference(), kEven);
    for (const char* other : {"circle", "draft-guided"}) {
      SCOPED_TRACE(other);
      const Reads neighbours = StreamedPasses(other, slots, 1).run(40);
      EXPECT_LE(spread.total, neighbours.total + 1.5);
      EXPECT_LE(spread.stall_s, neighbours.stall_s + kLittle);
    }
    // Reading takes less than computing, and what is there is computed while the rest is read: nobody need wait.
    if (slots >= kAll / 2) {
      EXPECT_LE(spread.stall_s, kLittle);
    }
  }
}

// Where some are used by half of the passes only, it is these that are not kept.
TEST(Streaming, SpreadKeepsWhatIsUsed) {
  const int slots = 60;
  const Reads spread = StreamedPasses("spread", slots, 0.5).run(60);
  const Reads circle = StreamedPasses("circle", slots, 0.5).run(60);
  EXPECT_LT(spread.total, 0.95 * circle.total);
}

}  // namespace
}  // namespace drafthorse
