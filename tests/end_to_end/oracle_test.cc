// Against libllama on the same file: the same argmax wherever its margin exceeds the error of the logits.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "end_to_end/agreement.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace drafthorse {
namespace {

// Eight layers of experts add up what rounding activations to bytes does in each.
// The same weights in floats (kFloat, below) show that it is the rounding.
constexpr Tolerance kQuantizedEightLayers = {1.5 * kQuantized.relative_rms, kQuantized.excluded};

TEST(Oracle, TrainedPair) {
  expect_agreement("trained target", DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf", kQuantizedEightLayers);
  expect_agreement("trained dense draft", DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf", kQuantized);
}

struct TypeCase {
  const char* name;
  ggml_type type;
  Tolerance tolerance;
};

const TypeCase kTypes[] = {
    {"F32", GGML_TYPE_F32, kFloat},       {"F16", GGML_TYPE_F16, kFloat},       {"BF16", GGML_TYPE_BF16, kBrainFloat},
    {"Q8_0", GGML_TYPE_Q8_0, kQuantized}, {"Q4_0", GGML_TYPE_Q4_0, kQuantized}, {"Q4_K", GGML_TYPE_Q4_K, kQuantized},
    {"Q6_K", GGML_TYPE_Q6_K, kQuantized},
};

// Real weights have real margins: the trained pair in every type, at a width that K-quants' blocks divide.
TEST(Oracle, TrainedPairInEveryType) {
  const TempDir folder;
  for (const TypeCase& one : kTypes) {
    for (const char* model : {"target", "draft"}) {
      const std::string name = fmt::format("{} {}", model, one.name);
      const std::string path = folder.file(fmt::format("{}-{}.gguf", model, one.name));
      const std::string command =
          fmt::format("'{}' '{}/mixtral/{}.gguf' '{}' --embd 256 --ff 1280 --type {} 2>/dev/null", DRAFTHORSE_WIDEN,
                      DRAFTHORSE_MODELS_DIR, model, path, one.name);
      ASSERT_EQ(std::system(command.c_str()), 0) << command;
      const bool more = ggml_is_quantized(one.type) && model == std::string_view("target");
      expect_agreement(name, path, more ? kQuantizedEightLayers : one.tolerance);
    }
  }
}

TEST(Oracle, TinyModelsInEveryType) {
  const TempDir folder;
  for (const TypeCase& one : kTypes) {
    for (const int experts : {0, 8}) {
      const std::string name = fmt::format("tiny {} {}", experts == 0 ? "dense" : "moe", one.name);
      const Result<std::string> path =
          write_tiny_model(folder.file(name + ".gguf"), {.n_expert = experts, .type = one.type, .tied_head = false});
      ASSERT_TRUE(path.ok()) << path.status().message();
      expect_agreement(name, *path, one.tolerance);
    }
  }
}

TEST(Oracle, EveryLayout) {
  const TempDir folder;
  const auto write = [&](const std::string& name, const TinyModelOptions& options) {
    const Result<std::string> path = write_tiny_model(folder.file(name + ".gguf"), options);
    EXPECT_TRUE(path.ok()) << path.status().message();
    return *path;
  };
  const std::string plain = write("plain", {.type = GGML_TYPE_F16, .tied_head = false});
  expect_agreement("split in three", write("split", {.type = GGML_TYPE_F16, .tied_head = false, .n_shards = 3}), plain,
                   kFloat);
  expect_agreement("fused gate and up",
                   write("fused", {.type = GGML_TYPE_F16, .fused_gate_up = true, .tied_head = false}), plain, kFloat);
  expect_agreement("one tensor per expert",
                   write("own", {.type = GGML_TYPE_F16, .separate_experts = true, .tied_head = false}), plain, kFloat);
  expect_agreement("mixed types", write("mixed", {.type = GGML_TYPE_Q4_K, .mixed_types = true, .tied_head = false}),
                   kQuantized);
  expect_agreement("tied head", write("tied", {.n_expert = 0, .type = GGML_TYPE_F16}), kFloat);
  expect_agreement("frequency factors", write("freqs", {.type = GGML_TYPE_F16, .tied_head = false, .rope_freqs = true}),
                   kFloat);
  expect_agreement("biases", write("bias", {.type = GGML_TYPE_F16, .tied_head = false, .qkv_bias = true}), kFloat);
  expect_agreement("4 of 32 experts",
                   write("many", {.n_expert = 32, .n_expert_used = 4, .type = GGML_TYPE_Q8_0, .tied_head = false}),
                   kQuantized);
}

}  // namespace
}  // namespace drafthorse
