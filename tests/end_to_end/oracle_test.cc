// Against libllama on the same file: the same argmax wherever its margin exceeds the error of the logits.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <iostream>

#include "end_to_end/generation.h"
#include "support/oracle.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace drafthorse {
namespace {

// How far two correct implementations may be apart. libllama rounds attention's weights to F16, ours does not; where
// activations are rounded again before each product, to BF16 or to 8-bit blocks, that first difference tips some of
// those roundings the other way, in every layer more. Errors are relative RMS of the logits; excluded is the share of
// positions whose margin is too small to tell.
struct Tolerance {
  double relative_rms;
  double excluded;
};
constexpr Tolerance kFloat = {2e-3, 0.05};
constexpr Tolerance kBrainFloat = {1e-2, 0.05};
constexpr Tolerance kQuantized = {2e-2, 0.2};

constexpr double kErrorMargin = 4;  // RMS errors of its position that a margin must exceed to be decisive
constexpr int32_t kTokens = 64;     // the oracle's own, after each prompt

struct Comparison {
  double relative_rms = 0;  // of the logits' difference, over all positions
  int positions = 0;
  int excluded = 0;   // margin within kErrorMargin RMS errors of the logits
  int different = 0;  // of the others, argmax differs
};

// Teacher-forced, each token a pass of its own.
Logits our_logits(Engine& engine, std::span<const int32_t> tokens) {
  Logits logits;
  engine.target().model->kv().truncate(0);
  for (const int32_t token : tokens) {
    const Status status = engine.target().pass->run({&token, 1}, 1);
    EXPECT_TRUE(status.ok()) << status.message();
    const std::span<const float> row = engine.target().pass->logits(0);
    logits.emplace_back(row.begin(), row.end());
  }
  return logits;
}

Comparison compare(const Logits& ours, const Logits& theirs) {
  Comparison result;
  double error = 0;
  double power = 0;
  const auto argmax = [](const std::vector<float>& row) {
    return std::max_element(row.begin(), row.end()) - row.begin();
  };
  for (size_t i = 0; i < theirs.size(); ++i) {
    double position_error = 0;
    for (size_t v = 0; v < theirs[i].size(); ++v) {
      const double difference = double{ours[i][v]} - double{theirs[i][v]};
      position_error += difference * difference;
      power += double{theirs[i][v]} * double{theirs[i][v]};
    }
    error += position_error;
    // A quantised activation rounded the other way, or another expert at a near tie, shifts a position's logits as a
    // whole, so each position has an error of its own.
    const double rms = std::sqrt(position_error / static_cast<double>(theirs[i].size()));
    std::vector<float> sorted = theirs[i];
    std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
    ++result.positions;
    if (sorted[0] - sorted[1] <= kErrorMargin * rms)
      ++result.excluded;
    else if (argmax(ours[i]) != argmax(theirs[i]))
      ++result.different;
  }
  result.relative_rms = std::sqrt(error / power);
  return result;
}

// Opens `path` in both, compares on `tokens` and holds the error to `tolerance`.
void expect_agreement(const std::string& what, const std::string& ours_path, const std::string& oracle_path,
                      const Tolerance& tolerance) {
  EngineOptions options;
  options.target_path = ours_path;
  options.context = 512;
  options.ram_bytes = uint64_t{4} << 30;
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  ASSERT_TRUE(engine.ok()) << what << ": " << engine.status().message();
  Result<std::unique_ptr<Oracle>> oracle = Oracle::load(oracle_path);
  ASSERT_TRUE(oracle.ok()) << what << ": " << oracle.status().message();
  Logits ours;
  Logits theirs;
  for (const std::string& prompt : read_prompts(8)) {
    const std::vector<int32_t> start = (*oracle)->tokenize(prompt);
    EXPECT_EQ(start, (*engine)->tokenizer().tokenize(prompt));
    std::vector<int32_t> tokens = start;
    const std::vector<int32_t> rest = (*oracle)->greedy(start, kTokens);
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    Logits our_rows = our_logits(**engine, tokens);
    Logits their_rows = (*oracle)->logits(tokens);
    for (size_t i = start.size() - 1; i + 1 < tokens.size(); ++i) {
      ours.push_back(std::move(our_rows[i]));
      theirs.push_back(std::move(their_rows[i]));
    }
  }
  const Comparison result = compare(ours, theirs);
  std::cout << fmt::format("{:<34} relative RMS {:.1e}, {} positions, {:.1f} % excluded, {} different\n", what,
                           result.relative_rms, result.positions, 100.0 * result.excluded / result.positions,
                           result.different);
  EXPECT_EQ(result.different, 0) << what;
  EXPECT_LE(result.excluded, tolerance.excluded * result.positions) << what;
  EXPECT_LE(result.relative_rms, tolerance.relative_rms) << what;
}

void expect_agreement(const std::string& what, const std::string& path, const Tolerance& tolerance) {
  expect_agreement(what, path, path, tolerance);
}

TEST(Oracle, TrainedPair) {
  expect_agreement("trained target", DRAFTHORSE_MODELS_DIR "/target.gguf", kFloat);
  expect_agreement("trained dense draft", DRAFTHORSE_MODELS_DIR "/draft.gguf", kFloat);
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
      const std::string command = fmt::format("'{}' '{}/{}.gguf' '{}' --embd 256 --ff 512 --type {} 2>/dev/null",
                                              DRAFTHORSE_WIDEN, DRAFTHORSE_MODELS_DIR, model, path, one.name);
      ASSERT_EQ(std::system(command.c_str()), 0) << command;
      expect_agreement(name, path, one.tolerance);
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
