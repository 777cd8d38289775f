#include "simulate/batch_hardware.h"

#include <gtest/gtest.h>

namespace drafthorse {
namespace {

BatchPlanInput input_for(std::string_view hardware, const BatchStack& stack, const BatchJob& job) {
  BatchPlanInput input =
      batch_plan_input(*find_batch_hardware(hardware), mixtral_8x7b(), eagle_for_mixtral(), stack, job);
  input.acceptance = {kPaperAcceptance};
  return input;
}

BatchCandidate iteration(std::string_view hardware, const BatchStack& stack, int depth) {
  const BatchPlanInput input = input_for(hardware, stack, kPaperIterationJob);
  const int64_t sequences = sequences_that_fit(input.memory, input.job, depth + 1);
  return evaluate(input, Pipeline::kTwoMicroBatches, sequences, depth);
}

double of(const BatchCandidate& one, Component component) { return one.decode.busy[static_cast<size_t>(component)]; }

TEST(BatchHardware, ModelsHaveTheirSizes) {
  EXPECT_NEAR(static_cast<double>(weight_bytes(mixtral_8x7b())), 2 * 46.7e9, 0.002 * 2 * 46.7e9);
  EXPECT_NEAR(static_cast<double>(weight_bytes(mistral_7b())), 2 * 7.24e9, 0.002 * 2 * 7.24e9);
  EXPECT_EQ(kv_bytes_per_token(mixtral_8x7b()), 131072U);
  EXPECT_EQ(kv_bytes_per_token(eagle_for_mixtral()), 4096U);
  EXPECT_EQ(find_batch_hardware("a31"), nullptr);
}

TEST(BatchHardware, ClosedFormGivesThePapersBatches) {
  const BatchJob job = {566, 1024, 0};
  const auto fit = [&](std::string_view name) {
    return sequences_that_fit(input_for(name, {}, job).memory, job, kPaperIterationDepth + 1);
  };
  EXPECT_EQ(fit("a30"), 824);
  EXPECT_EQ(fit("rtx4090d"), 515);
}

// What is set by the table comes out as the table has it, and so does what is not: the pipeline's length.
TEST(BatchHardware, PipelineTakesWhatThePapersTook) {
  const PaperIteration paper;
  const BatchCandidate one = iteration("a30", paper_stack(), kPaperIterationDepth);
  EXPECT_NEAR(of(one, Component::kAttention), paper.attention_s, 0.02 * paper.attention_s);
  EXPECT_NEAR(of(one, Component::kExperts) + of(one, Component::kDense), paper.experts_s, 0.02 * paper.experts_s);
  // Loads at the iteration's beginning belong to the one before.
  EXPECT_NEAR(of(one, Component::kLoad), paper.link_s, 0.07 * paper.link_s);
  EXPECT_NEAR(one.decode.target_s, paper.target_s, 0.02 * paper.target_s);
  EXPECT_NEAR(one.decode.seconds, paper.whole_s, 0.02 * paper.whole_s);
  EXPECT_EQ(one.decode.limit, Component::kAttention);
}

TEST(BatchHardware, SpeculationGainsWhatThePaperSays) {
  for (const BatchHardware& hardware : batch_hardware()) {
    const double gain = iteration(hardware.name, paper_stack(), kPaperIterationDepth).decode_tokens_per_s /
                        iteration(hardware.name, paper_stack(), 0).decode_tokens_per_s;
    const double theirs = paper_speculation_gain(hardware.name).value();
    EXPECT_NEAR(gain, theirs, (hardware.name == "a30" ? 0.02 : 0.1) * theirs) << hardware.name;
  }
  EXPECT_FALSE(paper_speculation_gain("this").has_value());
}

TEST(BatchHardware, TheLinkBindsAtTheDataSheetsSpeeds) {
  for (const BatchHardware& hardware : batch_hardware()) {
    for (const int depth : {0, kPaperIterationDepth}) {
      const BatchCandidate one = iteration(hardware.name, {}, depth);
      EXPECT_EQ(one.decode.limit, Component::kLoad) << hardware.name;
      // 256 experts of 352 MB.
      EXPECT_NEAR(one.decode.loaded_bytes, 90.2e9, 0.1e9);
      EXPECT_NEAR(one.decode.seconds, one.decode.loaded_bytes / hardware.link_bytes_per_s, 0.05 * one.decode.seconds);
    }
  }
}

// A draft with a KV cache as large as the target's does not fit on the device: most requests' attention goes to the
// processor, more of them the longer they are.
TEST(BatchHardware, LargeDraftsAreSplit) {
  double before = 1;
  for (const int prompt : {64, 256, 1024}) {
    BatchPlanInput input =
        batch_plan_input(*find_batch_hardware("a30"), mixtral_8x7b(), eagle_for_mixtral(), {}, {prompt, 128, 0});
    input.device->draft_kv_bytes_per_token = kv_bytes_per_token(mistral_7b());
    input.acceptance = {0.8};
    const double share = evaluate(input, Pipeline::kTwoMicroBatches, 400, 4).device_share;
    EXPECT_LE(share, before);
    before = share;
  }
  EXPECT_GT(before, 0);
  EXPECT_LT(before, 0.5);
}

}  // namespace
}  // namespace drafthorse
