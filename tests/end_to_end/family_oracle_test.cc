// Every family against libllama on generated files, in several types.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "end_to_end/agreement.h"
#include "support/family_cases.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

struct TypeCase {
  const char* name;
  ggml_type type;
  Tolerance tolerance;
};

// Of the difference of two logits a margin of 4 is 2.8 deviations, too few for 40,000 positions.
constexpr double kMargin = 5.5;
constexpr Tolerance kFloatWithTies = {kFloat.relative_rms, kFloat.excluded, 0.04, kMargin};
constexpr Tolerance kQuantizedWide = {kQuantized.relative_rms, kQuantized.excluded, 0, kMargin};

const TypeCase kTypes[] = {
    {"F32", GGML_TYPE_F32, kFloatWithTies},
    {"F16", GGML_TYPE_F16, kFloatWithTies},
    {"Q8_0", GGML_TYPE_Q8_0, kQuantizedWide},
    {"Q4_K", GGML_TYPE_Q4_K, kQuantizedWide},
};

class FamilyOracle : public testing::TestWithParam<FamilyCase> {};

TEST_P(FamilyOracle, AgreesInEveryType) {
  const TempDir folder;
  for (const TypeCase& one : kTypes) {
    TinyModelOptions options = GetParam().options;
    options.type = one.type;
    const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), options);
    ASSERT_TRUE(path.ok()) << path.status().message();
    expect_agreement(fmt::format("{} {}", GetParam().name, one.name), *path, one.tolerance);
  }
}

std::vector<FamilyCase> cases() {
  std::vector<FamilyCase> all = family_cases();
  std::erase_if(all, [](const FamilyCase& one) { return !one.libllama_agrees; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyOracle, testing::ValuesIn(cases()), family_case_name);

// libllama knows no window here: it agrees as long as everything lies within.
TEST(Window, IsAllThatIsSeen) {
  const TempDir folder;
  TinyModelOptions tiny = {.architecture = "phimoe", .n_layer = 1, .n_ff = 64, .n_expert = 2, .window = 16};
  tiny.tied_head = false;
  const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), tiny);
  ASSERT_TRUE(path.ok()) << path.status().message();
  EngineOptions options;
  options.target_path = *path;
  options.context = 128;
  options.ram_bytes = uint64_t{1} << 30;
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  Result<std::unique_ptr<Oracle>> oracle = Oracle::load(*path);
  ASSERT_TRUE(oracle.ok()) << oracle.status().message();
  std::vector<int32_t> tokens = (*oracle)->tokenize(read_prompts(1).front());
  ASSERT_GE(tokens.size(), 20U);
  tokens.resize(20);
  const Logits ours = our_logits(**engine, tokens);
  const Logits theirs = (*oracle)->logits(tokens);
  const auto error = [&](size_t i) { return relative_rms({ours[i]}, {theirs[i]}); };
  for (size_t i = 0; i < 16; ++i) EXPECT_LT(error(i), kFloat.relative_rms) << i;
  for (size_t i = 16; i < 20; ++i) EXPECT_GT(error(i), 10 * kFloat.relative_rms) << i;
  // In one layer a token's logits depend on the last 16 tokens alone.
  std::vector<int32_t> others = tokens;
  others[2] = others[2] == 40 ? 41 : 40;
  const Logits changed = our_logits(**engine, others);
  EXPECT_NE(changed[16], ours[16]);
  EXPECT_NE(changed[17], ours[17]);
  EXPECT_EQ(changed[18], ours[18]);
  EXPECT_EQ(changed[19], ours[19]);
}

}  // namespace
}  // namespace drafthorse
