#include "plan/cutoff.h"

#include <gtest/gtest.h>

#include <random>

namespace drafthorse {
namespace {

CutoffInput mixtral_on_a_4090() {
  // The paper's: 32 layers, one critical expert each, 336 MiB at 24 GB/s, a draft of 32 layers in 300 ms.
  CutoffInput input;
  input.fetched_by_layer.assign(32, 1.0);
  input.draft_layers = 32;
  input.draft_s_per_layer = 0.3 / 32;
  input.load_s_per_expert = 336.0 * 1024 * 1024 / 24e9;
  input.slots_to_spare = 1000;
  return input;
}

TEST(Cutoff, PapersMixtral) {
  // 0.3 s hold 20.4 loads of 14.7 ms: the best cutoff they measured is 20 of 32.
  EXPECT_EQ(choose_cutoff(mixtral_on_a_4090()).layers, 20);
}

TEST(Cutoff, MemoryBinds) {
  CutoffInput input = mixtral_on_a_4090();
  input.slots_to_spare = 5;
  const Cutoff cutoff = choose_cutoff(input);
  EXPECT_EQ(cutoff.layers, 5);
  EXPECT_TRUE(cutoff.memory_binds);
}

TEST(Cutoff, ResidentLayersCostNothing) {
  CutoffInput input = mixtral_on_a_4090();
  for (int i = 0; i < 12; ++i) input.fetched_by_layer[i] = 0;
  // All but the last, whose scores come too late.
  EXPECT_EQ(choose_cutoff(input).layers, 31);
}

TEST(Cutoff, ScoresOfLateLayersComeLate) {
  CutoffInput input = mixtral_on_a_4090();
  input.load_s_per_expert = input.draft_s_per_layer * 0.9;  // loading keeps up, but the last layer's ends too late
  input.fetched_by_layer.back() = 2;
  EXPECT_EQ(choose_cutoff(input).layers, 31);
}

TEST(Cutoff, NothingToDraftNothingToFetch) {
  CutoffInput input = mixtral_on_a_4090();
  input.draft_tokens = 0;
  EXPECT_EQ(choose_cutoff(input).layers, 0);
  EXPECT_EQ(choose_cutoff({}).layers, 0);
}

// No L beyond the chosen one satisfies the formula, and the chosen one does.
TEST(Cutoff, IsTheLargest) {
  constexpr uint64_t kSeed = 4;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int round = 0; round < 2000; ++round) {
    CutoffInput input;
    const int layers = 1 + static_cast<int>(random() % 40);
    for (int i = 0; i < layers; ++i) input.fetched_by_layer.push_back(static_cast<double>(random() % 4));
    input.draft_layers = 1 + static_cast<int>(random() % 40);
    input.draft_tokens = 1 + static_cast<int>(random() % 8);
    input.draft_s_per_layer = 0.01 * uniform(random);
    input.load_s_per_expert = 0.02 * uniform(random);
    input.slots_to_spare = 100 * uniform(random);
    const auto holds = [&](int count) {
      double n = 0;
      for (int i = 0; i < count; ++i) n += input.fetched_by_layer[i];
      const double k = input.fetched_by_layer[count - 1];
      const double left =
          std::max((count - 1) * input.draft_s_per_layer + k * input.load_s_per_expert, n * input.load_s_per_expert);
      return n <= input.slots_to_spare && left <= input.draft_tokens * input.draft_layers * input.draft_s_per_layer;
    };
    const int chosen = choose_cutoff(input).layers;
    if (chosen > 0) {
      ASSERT_TRUE(holds(chosen)) << round;
    }
    for (int more = chosen + 1; more <= layers; ++more) ASSERT_FALSE(holds(more)) << round;
  }
}

}  // namespace
}  // namespace drafthorse
