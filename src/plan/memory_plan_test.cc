#include "plan/memory_plan.h"

#include <gtest/gtest.h>

#include <random>

#include "base/arena.h"
#include "base/units.h"

namespace drafthorse {
namespace {

MemoryNeeds needs(uint64_t slot_bytes, int total_experts, int least_slots) {
  MemoryNeeds result;
  result.slot_bytes = slot_bytes;
  result.total_experts = total_experts;
  result.least_slots = least_slots;
  result.fixed.add("dense weights", 100 * kMiB + 123);
  result.fixed.add("kv cache", 30 * kMiB);
  return result;
}

TEST(MemoryPlan, TheLeastBudgetIsExact) {
  for (const uint64_t slot_bytes : {uint64_t{4096}, 3 * kMiB, 7 * kMiB + 4096}) {
    const MemoryNeeds of = needs(slot_bytes, 64, 2);
    const Result<MemoryPlan> generous = plan_memory(of, kGiB);
    ASSERT_TRUE(generous.ok());
    const uint64_t least = generous.value().least_budget_bytes;
    const Result<MemoryPlan> enough = plan_memory(of, least);
    ASSERT_TRUE(enough.ok());
    EXPECT_GE(enough.value().slots, 2);
    EXPECT_EQ(enough.value().least_budget_bytes, least);
    const Result<MemoryPlan> short_by_one = plan_memory(of, least - 1);
    ASSERT_FALSE(short_by_one.ok());
    EXPECT_EQ(short_by_one.status().kind(), StatusKind::kMemory);
  }
}

TEST(MemoryPlan, TheRefusalSaysWhatToDo) {
  const MemoryNeeds of = needs(3 * kMiB, 64, 2);
  const Result<MemoryPlan> refused = plan_memory(of, 10 * kMiB);
  ASSERT_FALSE(refused.ok());
  const std::string& message = refused.status().message();
  EXPECT_NE(message.find("--ram 138M"), std::string::npos) << message;  // 130 MiB and a bit, 6 of slots, 1 of slack
  EXPECT_NE(message.find("dense weights"), std::string::npos) << message;
  // What it names must be accepted, by a run whose process is a little larger too.
  EXPECT_TRUE(plan_memory(of, 138 * kMiB).ok());
  MemoryNeeds larger = of;
  larger.fixed.add("process and vocabulary", kMiB);
  EXPECT_TRUE(plan_memory(larger, 138 * kMiB).ok());
}

TEST(MemoryPlan, SlotsFitAndUseTheBudget) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 1000; ++i) {
    const MemoryNeeds of = needs(4096 * (1 + random() % 3000), 1 + static_cast<int>(random() % 500), 1);
    const uint64_t budget = 100 * kMiB + random() % (4 * kGiB);
    const Result<MemoryPlan> plan = plan_memory(of, budget);
    if (!plan.ok()) continue;
    const int slots = plan.value().slots;
    const auto bytes_of = [&](int count) {
      return of.fixed.total() + align_up(static_cast<uint64_t>(count) * of.slot_bytes, kHugePage);
    };
    ASSERT_LE(bytes_of(slots), budget);
    ASSERT_TRUE(slots == of.total_experts || bytes_of(slots + 1) > budget);
    ASSERT_EQ(plan.value().everything_resident, slots == of.total_experts);
  }
}

TEST(MemoryPlan, EverythingResident) {
  const MemoryNeeds of = needs(2 * kMiB, 64, 2);
  const uint64_t all = of.fixed.total() + 64 * 2 * kMiB;
  EXPECT_TRUE(plan_memory(of, all).value().everything_resident);
  EXPECT_EQ(plan_memory(of, 100 * kGiB).value().slots, 64);
  EXPECT_FALSE(plan_memory(of, all - 1).value().everything_resident);
  EXPECT_EQ(plan_memory(of, all - 1).value().slots, 63);
}

TEST(MemoryPlan, ADenseModelNeedsWhatIsFixed) {
  const MemoryNeeds of = needs(0, 0, 0);
  const Result<MemoryPlan> plan = plan_memory(of, of.fixed.total());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan.value().slots, 0);
  EXPECT_TRUE(plan.value().everything_resident);
  EXPECT_EQ(plan.value().least_budget_bytes, of.fixed.total());
  EXPECT_FALSE(plan_memory(of, of.fixed.total() - 1).ok());
}

}  // namespace
}  // namespace drafthorse
