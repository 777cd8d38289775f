#include "expert/device_slots.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace drafthorse {
namespace {

// Four layers, the second without experts, the last of another kind.
ExpertLayout layout() {
  ExpertLayout out;
  for (const int experts : {6, 0, 6, 4}) out.layers.emplace_back().experts.resize(static_cast<size_t>(experts));
  return out;
}
constexpr int kKinds[] = {0, -1, 0, 1};

ExpertKey key(int layer, int expert) { return {LayerId{layer}, ExpertId{expert}}; }

class Slots : public testing::Test {
 protected:
  DeviceSlots make(std::vector<int> slots, const char* policy = "lru") {
    return {layout_, kKinds, slots, make_eviction_policy(policy)};
  }
  ExpertLayout layout_ = layout();
};

TEST_F(Slots, AreClaimedWithinTheirKind) {
  DeviceSlots slots = make({2, 1});
  EXPECT_EQ(slots.slots(), 3);
  EXPECT_EQ(slots.claim(key(0, 1)), 0);
  EXPECT_EQ(slots.claim(key(2, 1)), 1);
  EXPECT_EQ(slots.claim(key(3, 1)), 0);
  EXPECT_TRUE(slots.full(LayerId{0}));
  EXPECT_EQ(slots.held(), 3);
  slots.check_invariants();
}

TEST_F(Slots, WhatIsPinnedStays) {
  DeviceSlots slots = make({2, 1});
  ASSERT_TRUE(slots.claim(key(0, 1)));
  ASSERT_TRUE(slots.claim(key(0, 2)));
  EXPECT_FALSE(slots.claim(key(0, 3)));
  slots.unpin_all();
  slots.use(key(0, 1));
  EXPECT_EQ(slots.claim(key(0, 3)), 1);  // of 1 and 2 only 2 may go
  EXPECT_TRUE(slots.find(key(0, 1)));
  EXPECT_FALSE(slots.find(key(0, 2)));
  EXPECT_EQ(slots.evictions(), 1);
  slots.check_invariants();
}

TEST_F(Slots, TheLeastRecentlyUsedGoes) {
  DeviceSlots slots = make({3, 1});
  for (const int expert : {0, 1, 2}) ASSERT_TRUE(slots.claim(key(0, expert)));
  slots.unpin_all();
  slots.use(key(0, 0));
  slots.unpin_all();
  ASSERT_TRUE(slots.claim(key(2, 0)));
  EXPECT_FALSE(slots.find(key(0, 1)));
}

TEST_F(Slots, NothingGoesForWhatIsWorthLess) {
  DeviceSlots slots = make({1, 1});
  ASSERT_TRUE(slots.claim(key(0, 0)));
  slots.unpin_all();
  EXPECT_EQ(slots.admits(key(0, 1), Admission::kIfWorthMore), Prefetched::kNotWorth);  // never used
  EXPECT_FALSE(slots.claim_ahead(key(0, 1), Admission::kIfWorthMore));
  EXPECT_TRUE(slots.find(key(0, 0)));
  EXPECT_TRUE(slots.claim_ahead(key(0, 1), Admission::kAlways));
}

TEST_F(Slots, WhatCameAheadStaysUntilItsTurn) {
  DeviceSlots slots = make({2, 1});
  std::vector<ExpertKey> gone;
  slots.set_evicted([&](ExpertKey one) { gone.push_back(one); });
  slots.begin_turn(LayerId{0});
  ASSERT_TRUE(slots.claim(key(0, 0)));
  ASSERT_TRUE(slots.claim_ahead(key(2, 1), Admission::kAlways));
  EXPECT_EQ(slots.admits(key(2, 1), Admission::kAlways), Prefetched::kThere);
  EXPECT_EQ(slots.admits(key(2, 2), Admission::kAlways), Prefetched::kNoSlot);  // one pinned, one ahead itself
  slots.unpin_all();
  slots.use(key(0, 0));
  slots.unpin_all();
  ASSERT_TRUE(slots.claim_ahead(key(2, 2), Admission::kAlways));
  EXPECT_EQ(gone, std::vector<ExpertKey>{key(0, 0)});  // although it was used last
  EXPECT_TRUE(slots.came_ahead(key(2, 1)));
  slots.begin_turn(LayerId{2});
  slots.use(key(2, 1));
  EXPECT_FALSE(slots.came_ahead(key(2, 1)));
  EXPECT_TRUE(slots.came_ahead(key(2, 2)));
  // Its turn is over without a use: anything may take its slot now.
  EXPECT_TRUE(slots.claim_ahead(key(0, 3), Admission::kAlways));
  EXPECT_FALSE(slots.find(key(2, 2)));
  slots.check_invariants();
}

TEST_F(Slots, ADemandTakesWhatCameAheadLast) {
  DeviceSlots slots = make({2, 1});
  ASSERT_TRUE(slots.claim(key(0, 0)));
  ASSERT_TRUE(slots.claim_ahead(key(2, 1), Admission::kAlways));
  slots.unpin_all();
  ASSERT_TRUE(slots.claim(key(0, 1)));
  EXPECT_TRUE(slots.find(key(2, 1)));
  ASSERT_TRUE(slots.claim(key(0, 2)));
  EXPECT_FALSE(slots.find(key(2, 1)));
  slots.check_invariants();
}

// Any order of calls, with any policy, against a plain model.
TEST_F(Slots, AgreeWithAPlainModel) {
  for (const std::string& policy : eviction_policy_names()) {
    DeviceSlots slots = make({4, 2}, policy.c_str());
    std::set<ExpertKey> there;
    std::set<ExpertKey> pinned;
    std::mt19937 random(11);
    for (int step = 0; step < 5000; ++step) {
      const int layer = std::vector<int>{0, 2, 3}[random() % 3];
      const ExpertKey one =
          key(layer, static_cast<int>(random() % layout_.layers[static_cast<size_t>(layer)].experts.size()));
      if (random() % 4 == 0) slots.begin_turn(one.layer);
      ASSERT_EQ(slots.find(one).has_value(), there.contains(one));
      if (random() % 7 == 0) {
        slots.unpin_all();
        pinned.clear();
      } else if (there.contains(one)) {
        slots.use(one);
        pinned.insert(one);
      } else if (random() % 3 == 0) {
        const Prefetched expected = slots.admits(one, Admission::kIfWorthMore);
        const bool came = slots.claim_ahead(one, Admission::kIfWorthMore).has_value();
        ASSERT_EQ(came, expected == Prefetched::kStarted);
        std::erase_if(there, [&](ExpertKey other) { return !slots.find(other); });
        if (came) there.insert(one);
      } else if (slots.claim(one)) {
        std::erase_if(there, [&](ExpertKey other) { return !slots.find(other); });
        there.insert(one);
        pinned.insert(one);
      }
      for (const ExpertKey held : pinned) ASSERT_TRUE(slots.find(held)) << policy;
      ASSERT_EQ(slots.held(), static_cast<int>(there.size()));
      slots.check_invariants();
    }
  }
}

}  // namespace
}  // namespace drafthorse
