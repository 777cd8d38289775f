#include "support/tiny_model.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "support/oracle.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

constexpr const char* kPrompt = "def area(width, height):\n    \"\"\"Return the product.\"\"\"\n";

Logits logits_of(const std::string& path) {
  auto oracle = Oracle::load(path);
  EXPECT_TRUE(oracle.ok()) << oracle.status().message();
  const std::vector<int32_t> tokens = (*oracle)->tokenize(kPrompt);
  return (*oracle)->logits(tokens);
}

Logits logits_of(const TinyModelOptions& options) {
  const TempDir dir;
  const auto path = write_tiny_model(dir.file("model.gguf"), options);
  EXPECT_TRUE(path.ok()) << path.status().message();
  return logits_of(*path);
}

TEST(TinyModel, LogitsAreNeitherFlatNorDegenerate) {
  for (const bool tied : {true, false}) {
    const Logits logits = logits_of(TinyModelOptions{.tied_head = tied});
    std::set<int32_t> predicted;
    double margins = 0;
    for (const auto& row : logits) {
      predicted.insert(argmax(row));
      margins += top2_margin(row);
    }
    EXPECT_GT(predicted.size(), logits.size() / 2);
    EXPECT_GT(margins / static_cast<double>(logits.size()), 0.05);
    EXPECT_LT(margins / static_cast<double>(logits.size()), 3.0);
  }
}

TEST(TinyModel, SameSeedSameWeightsHoweverStored) {
  const Logits whole = logits_of(TinyModelOptions{.n_layer = 2, .n_expert = 4});
  EXPECT_EQ(whole, logits_of(TinyModelOptions{.n_layer = 2, .n_expert = 4, .n_shards = 3}));
  EXPECT_NE(whole, logits_of(TinyModelOptions{.n_layer = 2, .n_expert = 4, .seed = 2}));
}

TEST(TinyModel, EveryOptionMatters) {
  const TinyModelOptions plain{.n_layer = 2, .n_expert = 4};
  const Logits reference = logits_of(plain);
  TinyModelOptions bias = plain;
  bias.qkv_bias = true;
  EXPECT_NE(reference, logits_of(bias));
  TinyModelOptions factors = plain;
  factors.rope_freqs = true;
  EXPECT_NE(reference, logits_of(factors));
  TinyModelOptions dense = plain;
  dense.n_expert = 0;
  EXPECT_NE(reference, logits_of(dense));
}

TEST(TinyModel, LoadsInEveryType) {
  const Logits reference = logits_of(TinyModelOptions{.n_layer = 2, .n_expert = 4});
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_Q5_K,
                               GGML_TYPE_Q4_K, GGML_TYPE_Q4_0, GGML_TYPE_Q3_K, GGML_TYPE_Q2_K}) {
    const double error =
        relative_rms(logits_of(TinyModelOptions{.n_layer = 2, .n_expert = 4, .type = type}), reference);
    RecordProperty(std::string("relative_rms_") + ggml_type_name(type), std::to_string(error));
    EXPECT_GT(error, 0) << ggml_type_name(type);
    EXPECT_LT(error, 1.2) << ggml_type_name(type);  // unrelated logits: 1.41
  }
  const Logits mixed =
      logits_of(TinyModelOptions{.n_layer = 2, .n_expert = 4, .type = GGML_TYPE_Q4_K, .mixed_types = true});
  EXPECT_LT(relative_rms(mixed, reference), 1);
}

TEST(TinyModel, WritesLayoutsThatOnlyWeRead) {
  const TempDir dir;
  for (const TinyModelOptions& options : {TinyModelOptions{.n_expert = 4, .fused_gate_up = true},
                                          TinyModelOptions{.n_expert = 4, .separate_experts = true}}) {
    const auto path = write_tiny_model(dir.file("model.gguf"), options);
    ASSERT_TRUE(path.ok()) << path.status().message();
    EXPECT_GT(std::filesystem::file_size(*path), 1000000U);
  }
}

TEST(TinyModel, RefusesWhatCannotBe) {
  const TempDir dir;
  const auto refused = [&](const TinyModelOptions& options) {
    return write_tiny_model(dir.file("model.gguf"), options).status().kind() == StatusKind::kUsage;
  };
  EXPECT_TRUE(refused({.n_head = 4, .n_head_kv = 3}));
  EXPECT_TRUE(refused({.n_expert = 0, .fused_gate_up = true}));
  EXPECT_TRUE(refused({.n_embd = 128, .type = GGML_TYPE_Q4_K}));
  EXPECT_EQ(write_tiny_model(dir.file("model.gguf"), {.vocab_path = dir.file("none.gguf")}).status().kind(),
            StatusKind::kFile);
}

TEST(Oracle, GreedyFollowsItsOwnLogits) {
  auto oracle = Oracle::load(DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf");
  ASSERT_TRUE(oracle.ok()) << oracle.status().message();
  const std::vector<int32_t> prompt = (*oracle)->tokenize(kPrompt);
  const std::vector<int32_t> text = (*oracle)->greedy(prompt, 16);
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), text.begin(), text.end());
  const Logits logits = (*oracle)->logits(all);
  for (size_t i = 0; i < text.size(); ++i) EXPECT_EQ(argmax(logits[prompt.size() - 1 + i]), text[i]) << i;
  EXPECT_EQ((*oracle)->detokenize(prompt), kPrompt);
}

TEST(Oracle, RefusesAFileThatIsNone) {
  EXPECT_EQ(Oracle::load("/nonexistent.gguf").status().kind(), StatusKind::kFile);
}

}  // namespace
}  // namespace drafthorse
