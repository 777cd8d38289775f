#include "plan/compute_time.h"

#include <gtest/gtest.h>

namespace drafthorse {
namespace {

// 1 GB/s of disk, kernels that read 10 GB/s for one token and add half of that time for each further one.
MachineProfile machine() {
  MachineProfile profile;
  profile.disk = {{1 << 20, 1, 0.5e9}, {1 << 20, 64, 1e9}, {1 << 16, 64, 0.2e9}};
  profile.ram_bytes_per_s = 20e9;
  profile.kernels = {{"q8_0", 1.0, {{1, 1e-10}, {2, 1.5e-10}, {4, 2.5e-10}}, {{1, 1e-10}, {2, 1.5e-10}, {4, 2.5e-10}}}};
  return profile;
}

// One dense layer and two of 16 experts.
ModelWork model() {
  ModelWork work;
  work.layers.push_back({{{"q8_0", 2e7}}, {}, 0});
  for (int i = 0; i < 2; ++i) work.layers.push_back({{{"q8_0", 1e7}}, {{"q8_0", 1e7}, {"q8_0", 2e7}}, 16});
  work.head = {"q8_0", 1e7};
  work.n_expert_used = 2;
  work.n_embd = 1024;
  return work;
}

TEST(Profile, IsReadBetweenItsPoints) {
  const std::vector<KernelRate> rates = {{1, 1.0}, {2, 2.0}, {4, 3.0}};
  EXPECT_DOUBLE_EQ(interpolate(rates, 1), 1.0);
  EXPECT_DOUBLE_EQ(interpolate(rates, 1.5), 1.5);
  EXPECT_DOUBLE_EQ(interpolate(rates, 3), 2.5);
  EXPECT_DOUBLE_EQ(interpolate(rates, 8), 5.0);
  EXPECT_DOUBLE_EQ(disk_rate(machine(), 1), 0.5e9);
  EXPECT_DOUBLE_EQ(disk_rate(machine(), 64), 1e9);
  EXPECT_NEAR(disk_rate(machine(), 32.5), 0.75e9, 1);
  EXPECT_DOUBLE_EQ(disk_rate(machine(), 1000), 1e9);
}

TEST(ComputeTime, IsWeightsTimesTheirRate) {
  const MachineProfile profile = machine();
  const ModelWork work = model();
  const ComputeTime time(profile, work, 100);
  ASSERT_TRUE(time.check().ok());
  EXPECT_EQ(work.moe_layers(), 2);
  EXPECT_NEAR(time.stages_s(1), 4e7 * 1e-10, 1e-9);
  EXPECT_NEAR(time.stages_s(4), 4e7 * 2.5e-10, 1e-9);
  EXPECT_NEAR(time.expert_s(1), 3e7 * 1e-10, 1e-9);
  EXPECT_NEAR(time.expert_s(3), 3e7 * 2e-10, 1e-9);
  EXPECT_NEAR(time.head_s(2), 1e7 * 1.5e-10, 1e-9);
  EXPECT_NEAR(time.token_s(), (4e7 + 4 * 3e7 + 1e7) * 1e-10, 1e-9);
  EXPECT_NEAR(time.memory_s(4), (4e7 + 4 * 3e7 + 1e7) / 20e9, 1e-9);
}

TEST(ComputeTime, AttentionGrowsWithTheText) {
  MachineProfile profile = machine();
  profile.attention_s_per_key_float = 1e-9;
  ModelWork work = model();
  work.attention_width = 1000;
  const ComputeTime near(profile, work, 100);
  const ComputeTime far(profile, work, 1100);
  EXPECT_NEAR(far.stages_s(2) - near.stages_s(2), 3 * 2 * 1e-9 * 1000 * 1000, 1e-9);
}

TEST(ComputeTime, RefusesTypesThatWereNotMeasured) {
  const MachineProfile profile = machine();
  ModelWork work = model();
  work.layers[2].expert[0].type = "iq1_s";
  const Status status = ComputeTime(profile, work, 100).check();
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("iq1_s"), std::string::npos);
}

}  // namespace
}  // namespace drafthorse
