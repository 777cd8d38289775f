// For every family with experts: a draft that is the target itself foretells its routing exactly. Whatever a family's
// router has beside its matrix, biases, groups, norms that add, a prediction must honour.
#include <gtest/gtest.h>

#include "end_to_end/generation.h"
#include "end_to_end/routing_sink.h"
#include "support/family_cases.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

class FamilyPrediction : public testing::TestWithParam<FamilyCase> {};

TEST_P(FamilyPrediction, OfItselfIsExact) {
  const TempDir folder;
  const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), GetParam().options);
  ASSERT_TRUE(path.ok()) << path.status().message();
  const auto k = static_cast<size_t>(GetParam().options.n_expert_used);
  for (const auto& [name, source] :
       {std::pair("cross", ScoreSource::kCrossModel), std::pair("cross-norm", ScoreSource::kCrossModelNorm),
        std::pair("draft-router", ScoreSource::kDraftRouter)}) {
    SCOPED_TRACE(name);
    KeepingSink sink;
    EngineOptions options;
    options.target_path = *path;
    options.draft_path = *path;
    options.drafter = "model";
    options.draft_depth = 3;
    options.context = 512;
    options.ram_bytes = uint64_t{4} << 30;
    options.threads = 1;
    options.schedule.predictor = name;
    options.schedule.record = &sink;
    const Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    for (const std::string& prompt : read_prompts(2)) {
      ASSERT_TRUE(generate(**engine, (*engine)->tokenizer().tokenize(prompt), 32).status.ok());
    }
    const Agreement agreement = agreement_with_truth(sink.cycles, source, k);
    EXPECT_GT(agreement.experts, 0);
    EXPECT_EQ(agreement.named, agreement.experts);
  }
}

std::vector<FamilyCase> cases_with_experts() {
  std::vector<FamilyCase> cases = family_cases();
  std::erase_if(cases, [](const FamilyCase& one) { return one.options.n_expert == 0; });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyPrediction, testing::ValuesIn(cases_with_experts()), family_case_name);

}  // namespace
}  // namespace drafthorse
