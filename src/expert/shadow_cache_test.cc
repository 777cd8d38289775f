#include "expert/shadow_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "expert/testing/cache_setup.h"

namespace drafthorse {
namespace {

constexpr int kUsed = 2;

// Texts whose next token often uses what the last one did.
class Routing {
 public:
  Routing(std::vector<int> experts, uint64_t seed) : experts_(std::move(experts)), random_(seed) {
    last_.resize(experts_.size());
  }

  std::vector<ExpertId> next(size_t layer) {
    std::vector<ExpertId>& used = last_[layer];
    while (used.size() < kUsed || chance() < 0.6) {
      const auto fresh = ExpertId{static_cast<int32_t>(static_cast<double>(experts_[layer]) * chance() * chance())};
      if (std::find(used.begin(), used.end(), fresh) != used.end()) continue;
      if (used.size() == kUsed) used.erase(used.begin());
      used.push_back(fresh);
    }
    return used;
  }

 private:
  double chance() { return std::uniform_real_distribution<double>(0, 1)(random_); }

  std::vector<int> experts_;
  std::mt19937_64 random_;
  std::vector<std::vector<ExpertId>> last_;
};

int64_t demand_and_release(CacheSetup& setup, LayerId layer, const std::vector<ExpertId>& experts) {
  const int64_t before = setup.cache->stats()[index(layer)].misses;
  setup.cache->demand(layer, experts);
  while (true) {
    Result<std::vector<ExpertId>> ready = setup.cache->take_ready();
    EXPECT_TRUE(ready.ok());
    if (!ready.ok() || ready.value().empty()) break;
    for (const ExpertId expert : ready.value()) setup.cache->release(expert);
  }
  return setup.cache->stats()[index(layer)].misses - before;
}

void commit(CacheSetup& setup, const std::vector<std::vector<ExpertId>>& token) {
  for (size_t l = 0; l < token.size(); ++l) {
    const LayerId layer{static_cast<int32_t>(l)};
    std::vector<int32_t> used(static_cast<size_t>(setup.experts.layout().n_experts(layer)));
    for (const ExpertId expert : token[l]) ++used[static_cast<size_t>(index(expert))];
    setup.cache->record_uses(layer, used, 1, std::vector<char>(used.begin(), used.end()));
  }
  setup.cache->advance(1);
}

// The same misses as a real cache of that size, layer by layer, under every policy.
TEST(ShadowCache, MissesWhatACacheOfItsSizeMisses) {
  const std::vector<int> experts = {0, 8, 6, 8};
  for (const std::string& policy : eviction_policy_names()) {
    for (const int slots : {4, 7, 12, 21}) {
      for (const uint64_t seed : {1U, 2U, 3U}) {
        SCOPED_TRACE(policy + ", slots " + std::to_string(slots) + ", seed " + std::to_string(seed));
        CacheSetup setup({.experts_per_layer = experts}, slots, {.seed = seed}, policy);
        ShadowCache shadow(experts, slots, make_eviction_policy(policy));
        Routing routing(experts, seed);
        int64_t misses = 0;
        for (int token = 0; token < 60; ++token) {
          std::vector<std::vector<ExpertId>> used(experts.size());
          for (size_t l = 0; l < experts.size(); ++l) {
            if (experts[l] == 0) continue;
            const LayerId layer{static_cast<int32_t>(l)};
            used[l] = routing.next(l);
            const int64_t real = demand_and_release(setup, layer, used[l]);
            ASSERT_EQ(shadow.demand(layer, used[l]), real) << "token " << token << ", layer " << l;
            misses += real;
          }
          commit(setup, used);
          shadow.end_token();
        }
        EXPECT_GT(misses, 0);
      }
    }
  }
}

TEST(ShadowCache, SeedsAreThereAndNoMoreThanSlots) {
  const std::vector<int> experts = {4};
  ShadowCache shadow(experts, 2, make_eviction_policy("lru"));
  EXPECT_TRUE(shadow.seed({LayerId{0}, ExpertId{3}}));
  EXPECT_TRUE(shadow.seed({LayerId{0}, ExpertId{3}}));
  EXPECT_TRUE(shadow.seed({LayerId{0}, ExpertId{1}}));
  EXPECT_FALSE(shadow.seed({LayerId{0}, ExpertId{0}}));
  const std::vector<ExpertId> wanted = {ExpertId{1}, ExpertId{0}};
  EXPECT_EQ(shadow.demand(LayerId{0}, wanted), 1);
  EXPECT_TRUE(shadow.holds({LayerId{0}, ExpertId{0}}));
  EXPECT_FALSE(shadow.holds({LayerId{0}, ExpertId{3}}));
}

TEST(ShadowCache, ADemandLargerThanItsSlotsIsCountedAndDoesNotFail) {
  const std::vector<int> experts = {4};
  ShadowCache shadow(experts, 2, make_eviction_policy("next-use"));
  const std::vector<ExpertId> all = {ExpertId{0}, ExpertId{1}, ExpertId{2}, ExpertId{3}};
  EXPECT_EQ(shadow.demand(LayerId{0}, all), 4);
  EXPECT_EQ(shadow.demand(LayerId{0}, all), 2);
}

// What comes free elsewhere becomes slots: nothing that was there is lost, and no more is missed than fits.
TEST(ExpertCache, GrowsInPlace) {
  FakeExperts experts({.experts_per_layer = {6, 6}}, 9);
  const std::unique_ptr<FileSet> files = experts.open_files();
  VirtualClock clock;
  const std::unique_ptr<ReadQueue> queue = make_fake_queue(experts.contents(), clock, {.seed = 9});
  Result<std::unique_ptr<ExpertCache>> made = ExpertCache::create(
      experts.layout(), 3, make_eviction_policy("lru"), *files, *queue, clock, ExpertCache::Memory{}, 12);
  ASSERT_TRUE(made.ok());
  ExpertCache& cache = *made.value();
  ASSERT_TRUE(cache.fill_and_wait({}).ok());
  EXPECT_EQ(cache.slots(), 3);
  EXPECT_EQ(cache.residents(), 3);
  cache.grow(5);
  cache.check_invariants();
  EXPECT_EQ(cache.slots(), 5);
  EXPECT_EQ(cache.residents(), 3);
  ASSERT_TRUE(cache.fill_and_wait({}).ok());
  EXPECT_EQ(cache.residents(), 5);
  // While a demand that did not fit waits for slots.
  std::vector<ExpertId> all;
  for (int32_t e = 0; e < 6; ++e) all.push_back(ExpertId{e});
  cache.demand(LayerId{1}, all);
  cache.grow(12);
  cache.check_invariants();
  size_t out = 0;
  while (out < all.size()) {
    Result<std::vector<ExpertId>> ready = cache.take_ready();
    ASSERT_TRUE(ready.ok());
    out += ready.value().size();
  }
  for (const ExpertId expert : all) {
    EXPECT_TRUE(experts.matches({LayerId{1}, expert}, cache.weights(expert)));
    cache.release(expert);
  }
  ASSERT_TRUE(cache.fill_and_wait({}).ok());
  EXPECT_EQ(cache.residents(), 12);
  cache.check_invariants();
}

}  // namespace
}  // namespace drafthorse
