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

INSTANTIATE_TEST_SUITE_P(Families, FamilyOracle, testing::ValuesIn(family_cases()), family_case_name);

}  // namespace
}  // namespace drafthorse
