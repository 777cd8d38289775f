// For every family: the text is the target's own, whatever is done to get it faster. lossless_test.cc does this at
// length for one model; here each family's own way of computing a layer is held to it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "end_to_end/generation.h"
#include "support/family_cases.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

constexpr size_t kPrompts = 3;
constexpr int64_t kTokens = 40;

class FamilyLossless : public testing::TestWithParam<FamilyCase> {
 protected:
  void SetUp() override {
    TinyModelOptions options = GetParam().options;
    options.type = GGML_TYPE_Q8_0;
    target_ = write("target.gguf", options);
    // The same model at fewer bits: it agrees often, and not always.
    options.type = GGML_TYPE_Q4_0;
    draft_ = write("draft.gguf", options);
  }

  std::string write(const std::string& name, const TinyModelOptions& options) {
    const Result<std::string> path = write_tiny_model(folder_.file(name), options);
    EXPECT_TRUE(path.ok()) << path.status().message();
    return path.ok() ? *path : "";
  }

  EngineOptions plain() const {
    EngineOptions options;
    options.target_path = target_;
    options.context = 512;
    options.ram_bytes = uint64_t{4} << 30;
    options.threads = 1;
    return options;
  }

  static Texts texts_of(const EngineOptions& options) { return texts_by(options, kPrompts, kTokens); }

  TempDir folder_;
  std::string target_;
  std::string draft_;
};

TEST_P(FamilyLossless, AnyDepthMemoryThreadsAndInstructionSet) {
  const Texts reference = texts_of(plain());
  size_t tokens = 0;
  for (const auto& text : reference) tokens += text.size();
  EXPECT_GE(tokens, kPrompts * kTokens / 2);
  for (const int depth : {0, 1, 2, 3, 5, 8}) {
    EngineOptions options = plain();
    options.draft_path = draft_;
    options.draft_depth = depth;
    EXPECT_EQ(texts_of(options), reference) << "depth " << depth;
  }
  for (const int slots : {2, 3, 4, 5, 7}) {
    EngineOptions options = plain();
    options.draft_path = draft_;
    options.draft_depth = slots;
    options.expert_slots = slots;
    options.threads = slots % 3 + 1;
    const std::vector<std::string> predictors = predictor_names();
    options.schedule.predictor = predictors[static_cast<size_t>(slots) % predictors.size()];
    options.schedule.eviction = slots % 2 == 0 ? "lru" : "next-use";
    EXPECT_EQ(texts_of(options), reference) << slots << " slots";
  }
  for (const std::string& drafter : drafter_names()) {
    const bool of_residents = drafter == "resident";
    if (of_residents && GetParam().options.n_expert == 0) continue;
    EngineOptions options = plain();
    options.drafter = drafter;
    if (drafter != "ngram" && !of_residents && drafter != "none") options.draft_path = draft_;
    if (of_residents) options.expert_slots = 2 * GetParam().options.n_expert_used;
    if (drafter != "none") options.draft_depth = 3;
    EXPECT_EQ(texts_of(options), reference) << drafter;
  }
  for (const std::string& isa : instruction_set_names()) {
    EngineOptions options = plain();
    options.isa = isa;
    options.threads = 2;
    options.draft_path = draft_;
    options.draft_depth = 4;
    EXPECT_EQ(texts_of(options), reference) << isa;
  }
}

// Prefill in several runs and stages, with experts streaming through few slots, gives what decoding gives.
TEST_P(FamilyLossless, LongPromptsAreBitEqualToDecoding) {
  EngineOptions options = plain();
  options.context = 700;
  options.expert_slots = 5;
  options.threads = 2;
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  std::string text;
  for (const std::string& prompt : read_prompts(40)) text += prompt + "\n\n";
  std::vector<int32_t> tokens = (*engine)->tokenizer().tokenize(text);
  tokens.resize(600);
  ForwardPass& pass = *(*engine)->target().pass;
  KvCache& kv = (*engine)->target().model->kv();
  ASSERT_TRUE(pass.run(tokens, 1).ok());
  const std::vector<float> together(pass.logits(0).begin(), pass.logits(0).end());
  kv.truncate(0);
  for (const int32_t token : tokens) ASSERT_TRUE(pass.run({&token, 1}, 1).ok());
  const std::vector<float> alone(pass.logits(0).begin(), pass.logits(0).end());
  EXPECT_EQ(together, alone);
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyLossless, testing::ValuesIn(family_cases()), family_case_name);

}  // namespace
}  // namespace drafthorse
