// Every family on a device: against libllama, and its texts at any depth.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "end_to_end/agreement.h"
#include "end_to_end/on_device.h"
#include "support/family_cases.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

class FamilyOnDevice : public OnDevice, public testing::WithParamInterface<FamilyCase> {};

TEST_P(FamilyOnDevice, AgreesWithTheOracle) {
  const TempDir folder;
  struct TypeCase {
    const char* name;
    ggml_type type;
    Tolerance tolerance;
  };
  constexpr double kMargin = 5.5;
  for (const TypeCase& one :
       {TypeCase{"F32", GGML_TYPE_F32, {kFloat.relative_rms, kFloat.excluded, 0.04, kMargin}},
        TypeCase{"Q4_K", GGML_TYPE_Q4_K, {kQuantized.relative_rms, kQuantized.excluded, 0, kMargin}}}) {
    TinyModelOptions tiny = GetParam().options;
    tiny.type = one.type;
    const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), tiny);
    ASSERT_TRUE(path.ok()) << path.status().message();
    EngineOptions engine = options("auto");
    engine.target_path = *path;
    engine.context = 512;
    engine.device_slots = 6;
    expect_agreement(fmt::format("{} {}", GetParam().name, one.name), engine, *path, one.tolerance);
  }
}

// And in fixed mode the same text at any depth, with few slots.
TEST_P(FamilyOnDevice, FixedTextIsTheSame) {
  const TempDir folder;
  TinyModelOptions tiny = GetParam().options;
  tiny.type = GGML_TYPE_Q8_0;
  const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), tiny);
  ASSERT_TRUE(path.ok()) << path.status().message();
  for (const char* kv : {"f16", "q8_0"}) {
    std::vector<std::vector<int32_t>> texts;
    for (const int depth : {0, 3, 8}) {
      EngineOptions engine = drafting("ngram", depth);
      engine.target_path = *path;
      engine.kv_type = kv;
      if (depth > 0) engine.device_slots = depth;
      Result<std::unique_ptr<Engine>> opened = Engine::open(engine, {});
      // Some tiny heads are no whole blocks.
      if (!opened.ok() && opened.status().message().find("cannot be cached as q8_0") != std::string::npos) break;
      ASSERT_TRUE(opened.ok()) << opened.status().message();
      const Generated result = generate(**opened, (*opened)->tokenizer().tokenize(read_prompts(1).front()), 48);
      ASSERT_TRUE(result.status.ok()) << result.status.message();
      texts.push_back(result.tokens);
      EXPECT_EQ(texts.back(), texts.front()) << "depth " << depth << ", " << kv;
    }
  }
}

std::vector<FamilyCase> agreeing_cases() {
  std::vector<FamilyCase> all = family_cases();
  std::erase_if(all, [](const FamilyCase& one) { return !one.libllama_agrees; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyOnDevice, testing::ValuesIn(agreeing_cases()), family_case_name);

}  // namespace
}  // namespace drafthorse
