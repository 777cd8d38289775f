#include "widen/widen.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include "support/oracle.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace drafthorse {
namespace {

constexpr const char* kTrainedTarget = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
constexpr const char* kTrainedDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";

constexpr std::array kPrompts = {
    "def mean(values):\n    \"\"\"Return the average of a list of numbers.\"\"\"\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import os\nimport sys\n\ndef main(argv):\n    if len(argv) < 2:\n",
};
constexpr int32_t kTextTokens = 64;

std::unique_ptr<Oracle> load(const std::string& path) {
  auto oracle = Oracle::load(path);
  EXPECT_TRUE(oracle.ok()) << oracle.status().message();
  return oracle.ok() ? std::move(oracle).value() : nullptr;
}

// The text each prompt has in a model, prompt included.
std::vector<std::vector<int32_t>> texts_of(Oracle& oracle) {
  std::vector<std::vector<int32_t>> texts;
  for (const char* prompt : kPrompts) {
    std::vector<int32_t> text = oracle.tokenize(prompt);
    const std::vector<int32_t> more = oracle.greedy(text, kTextTokens);
    text.insert(text.end(), more.begin(), more.end());
    texts.push_back(std::move(text));
  }
  return texts;
}

struct Agreement {
  double same_argmax = 0;  // share of positions
  double relative_rms = 0;
};

// Teacher-forced along the original's own texts.
Agreement compare(Oracle& original, Oracle& widened) {
  Logits expected;
  Logits got;
  for (const std::vector<int32_t>& text : texts_of(original)) {
    for (auto& row : original.logits(text)) expected.push_back(std::move(row));
    for (auto& row : widened.logits(text)) got.push_back(std::move(row));
  }
  return {share_of_equal_argmax(got, expected), relative_rms(got, expected)};
}

class Widen : public ::testing::Test {
 protected:
  // The trained pair in F16, which holds its Q8_0 to within F16's own rounding: over Q8_0 weights activations are
  // rounded to bytes, and no two ways to compute would agree closely enough to judge by.
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempDir>();
    kTarget = folder_->file("target-f16.gguf");
    kDraft = folder_->file("draft-f16.gguf");
    ASSERT_TRUE(widen(kTrainedTarget, kTarget, {.type = GGML_TYPE_F16}).ok());
    ASSERT_TRUE(widen(kTrainedDraft, kDraft, {.type = GGML_TYPE_F16}).ok());
  }
  static void TearDownTestSuite() { folder_.reset(); }

  // The path of `source` widened, or an empty one with a failure recorded.
  std::string widened(const std::string& source, const WidenOptions& options) {
    const std::string path = dir_.file("widened.gguf");
    const auto report = widen(source, path, options);
    EXPECT_TRUE(report.ok()) << report.status().message();
    if (!report.ok()) return {};
    EXPECT_EQ(std::filesystem::file_size(path), report->file_bytes);
    EXPECT_FALSE(std::filesystem::exists(path + ".part"));
    return path;
  }

  void expect_same_function(const std::string& source, const WidenOptions& options) {
    const auto original = load(source);
    const auto wide = load(widened(source, options));
    ASSERT_TRUE(original && wide);
    EXPECT_EQ(texts_of(*wide), texts_of(*original));
    // F32 sums in another order over weights that were exact before: far below any margin.
    EXPECT_LT(compare(*original, *wide).relative_rms, 2e-3);
  }

  void expect_refusal(const std::string& source, const WidenOptions& options, StatusKind kind, const char* word) {
    const std::string path = dir_.file("refused.gguf");
    const auto report = widen(source, path, options);
    EXPECT_EQ(report.status().kind(), kind);
    EXPECT_NE(report.status().message().find(word), std::string::npos) << report.status().message();
    EXPECT_FALSE(std::filesystem::exists(path));
    EXPECT_FALSE(std::filesystem::exists(path + ".part"));
  }

  TempDir dir_;
  static std::unique_ptr<TempDir> folder_;
  static std::string kTarget;
  static std::string kDraft;
};
std::unique_ptr<TempDir> Widen::folder_;
std::string Widen::kTarget;
std::string Widen::kDraft;

TEST_F(Widen, TargetKeepsItsText) {
  expect_same_function(kTarget, {.n_embd = 256, .n_ff = 640, .type = GGML_TYPE_F32});
}

TEST_F(Widen, FactorsNeedNotBePowersOfTwo) {
  expect_same_function(kTarget, {.n_embd = 384, .n_ff = 1280, .type = GGML_TYPE_F32});
}

TEST_F(Widen, DenseDraftKeepsItsText) {
  expect_same_function(kDraft, {.n_embd = 512, .n_ff = 512, .type = GGML_TYPE_F32});
}

TEST_F(Widen, ExtraLayersKeepTheText) {
  expect_same_function(kTarget, {.n_embd = 256, .type = GGML_TYPE_F32, .n_extra_layers = 3});
}

// Several query heads share a KV head, and biases, rope factors and an untied head are there: what the trained pair
// does not have.
TEST_F(Widen, GroupedHeadsBiasesAndFactorsKeepTheirFunction) {
  TinyModelOptions tiny{.n_layer = 2, .n_head = 6, .n_head_kv = 2, .n_expert = 4};
  tiny.tied_head = false;
  tiny.rope_freqs = true;
  tiny.qkv_bias = true;
  const auto source = write_tiny_model(dir_.file("tiny.gguf"), tiny);
  ASSERT_TRUE(source.ok());
  const auto original = load(*source);
  const auto wide = load(widened(*source, {.n_embd = 512, .n_ff = 1024, .type = GGML_TYPE_F32}));
  ASSERT_TRUE(original && wide);
  const std::vector<int32_t> tokens = original->tokenize(kPrompts[0]);
  EXPECT_LT(relative_rms(wide->logits(tokens), original->logits(tokens)), 2e-3);
}

TEST_F(Widen, OneTensorPerExpertIsWidenedLikeStackedOnes) {
  TinyModelOptions tiny{.n_layer = 1, .n_expert = 2};
  tiny.separate_experts = true;
  const auto source = write_tiny_model(dir_.file("tiny.gguf"), tiny);
  ASSERT_TRUE(source.ok());
  const auto wide = GgufSource::open(widened(*source, {.n_ff = 1024, .type = GGML_TYPE_Q8_0}));
  ASSERT_TRUE(wide.ok()) << wide.status().message();
  const SourceTensor* down = (*wide)->find("blk.0.ffn_down.1.weight");
  ASSERT_NE(down, nullptr);
  EXPECT_EQ(down->n_columns, 1024);
  EXPECT_EQ(down->n_rows, 256);
}

TEST_F(Widen, TypesKeepMostOfTheText) {
  struct Floor {
    ggml_type type;
    double same_argmax;
  };
  // Measured along three texts: F16 1.00, BF16 1.00, Q8_0 .99, Q4_K .92, Q4_0 .90, Q2_K .63. The trained pair is small
  // and feels every bit; what wide models lose less is NoiseLetsRoundingErrorsAverageOut's matter.
  constexpr std::array kFloors = {
      Floor{GGML_TYPE_F16, 0.99},  Floor{GGML_TYPE_BF16, 0.97}, Floor{GGML_TYPE_Q8_0, 0.95},
      Floor{GGML_TYPE_Q4_K, 0.88}, Floor{GGML_TYPE_Q4_0, 0.82}, Floor{GGML_TYPE_Q2_K, 0.6},
  };
  const auto original = load(kTarget);
  for (const Floor& floor : kFloors) {
    const auto wide = load(widened(kTarget, {.n_embd = 256, .n_ff = 1280, .type = floor.type}));
    ASSERT_TRUE(original && wide);
    const Agreement agreement = compare(*original, *wide);
    RecordProperty(std::string("same_argmax_") + ggml_type_name(floor.type), std::to_string(agreement.same_argmax));
    std::printf("%-5s same argmax %.4f, relative RMS %.4f\n", ggml_type_name(floor.type), agreement.same_argmax,
                agreement.relative_rms);
    EXPECT_GE(agreement.same_argmax, floor.same_argmax) << ggml_type_name(floor.type);
  }
}

TEST_F(Widen, NoiseCancels) {
  expect_same_function(kTarget, {.n_embd = 512, .n_ff = 960, .type = GGML_TYPE_F32, .noise = 0.5});
}

// Exact copies round alike, noisy ones do not: with 8 copies and 4 the quantised model comes closer.
TEST_F(Widen, NoiseLetsRoundingErrorsAverageOut) {
  const auto original = load(kTarget);
  WidenOptions options{.n_embd = 1024, .n_ff = 1280, .type = GGML_TYPE_Q4_0, .rest_type = GGML_TYPE_Q8_0};
  const auto alike = load(widened(kTarget, options));
  ASSERT_TRUE(original && alike);
  const Agreement plain = compare(*original, *alike);
  options.noise = 0.5;
  const auto own = load(widened(kTarget, options));
  ASSERT_TRUE(own);
  const Agreement noisy = compare(*original, *own);
  std::printf("q4_0 at 1024 channels: same argmax %.4f without noise, %.4f with\n", plain.same_argmax,
              noisy.same_argmax);
  EXPECT_LT(noisy.relative_rms, 0.7 * plain.relative_rms);
  EXPECT_GE(noisy.same_argmax, 0.9);
}

TEST_F(Widen, TheRestMayHaveItsOwnType) {
  const auto wide = GgufSource::open(
      widened(kTarget, {.n_embd = 256, .n_ff = 1280, .type = GGML_TYPE_Q4_K, .rest_type = GGML_TYPE_Q8_0}));
  ASSERT_TRUE(wide.ok()) << wide.status().message();
  for (const char* name : {"token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.attn_output.weight"}) {
    EXPECT_EQ((*wide)->find(name)->type, GGML_TYPE_Q8_0) << name;
  }
  for (const char* name : {"blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"}) {
    EXPECT_EQ((*wide)->find(name)->type, GGML_TYPE_Q4_K) << name;
  }
}

TEST_F(Widen, ThreadsDoNotShowInTheFile) {
  const WidenOptions options{.n_embd = 256, .n_ff = 512, .type = GGML_TYPE_Q4_0, .noise = 0.5};
  const auto bytes = [&](int32_t n_threads) {
    const std::string path = dir_.file("threads.gguf");
    EXPECT_TRUE(widen(kDraft, path, options, n_threads).ok());
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_TRUE(bytes(1) == bytes(3));
}

TEST_F(Widen, OnlyTheTypeChangesWithoutSizes) {
  const auto original = load(kTarget);
  const auto other = load(widened(kTarget, {.type = GGML_TYPE_Q8_0}));
  ASSERT_TRUE(original && other);
  EXPECT_GT(compare(*original, *other).same_argmax, 0.9);
}

TEST_F(Widen, MetadataTellsTheNewSizes) {
  const auto wide =
      GgufSource::open(widened(kTarget, {.n_embd = 256, .n_ff = 640, .type = GGML_TYPE_BF16, .n_extra_layers = 2}));
  ASSERT_TRUE(wide.ok()) << wide.status().message();
  const GgufSource& file = **wide;
  EXPECT_EQ(file.integer("llama.embedding_length"), 256);
  EXPECT_EQ(file.integer("llama.feed_forward_length"), 640);
  EXPECT_EQ(file.integer("llama.block_count"), 10);
  EXPECT_EQ(file.integer("llama.attention.head_count"), 8);
  EXPECT_EQ(file.integer("llama.attention.head_count_kv"), 4);
  EXPECT_EQ(file.integer("llama.attention.key_length"), 32);
  EXPECT_EQ(file.integer("llama.vocab_size"), 4096);
  EXPECT_EQ(file.integer("general.file_type"), 32);
  EXPECT_NE(file.text("general.name")->find("widened"), std::string::npos);
  EXPECT_EQ(file.find("blk.9.ffn_down_exps.weight")->type, GGML_TYPE_BF16);
  EXPECT_EQ(file.find("blk.9.ffn_gate_inp.weight")->type, GGML_TYPE_F32);
  EXPECT_EQ(file.find("blk.9.attn_norm.weight")->type, GGML_TYPE_F32);
}

TEST_F(Widen, CopiesLieEndToEnd) {
  const auto source = GgufSource::open(kTarget);
  const auto wide = GgufSource::open(widened(kTarget, {.n_embd = 256, .n_ff = 640, .type = GGML_TYPE_F32}));
  ASSERT_TRUE(source.ok() && wide.ok());
  const char* name = "blk.1.ffn_down_exps.weight";
  std::array<float, 320> before{};
  std::array<float, 640> after{};
  read_row(*(*source)->find(name), /*slice=*/3, /*row=*/5, before.data());
  read_row(*(*wide)->find(name), 3, 128 + 5, after.data());
  for (size_t i = 0; i < after.size(); ++i) EXPECT_EQ(after[i], before[i % 320] / 2) << i;
}

TEST_F(Widen, RefusesSizesAndTypesThatDoNotFit) {
  expect_refusal(kTarget, {.n_embd = 200}, StatusKind::kUsage, "multiple");
  expect_refusal(kTarget, {.n_embd = 256, .n_ff = 300}, StatusKind::kUsage, "--ff");
  expect_refusal(kTarget, {.n_embd = 128, .type = GGML_TYPE_Q4_K}, StatusKind::kUsage, "--embd");
  expect_refusal(dir_.file("none.gguf"), {}, StatusKind::kFile, "open");
}

TEST_F(Widen, RefusesFilesItCannotRead) {
  const std::string text = dir_.file("text.gguf");
  std::ofstream(text) << "not a model at all, but long enough to be looked at";
  expect_refusal(text, {}, StatusKind::kFile, "GGUF");

  const std::string cut = dir_.file("cut.gguf");
  std::filesystem::copy_file(kDraft, cut);
  std::filesystem::permissions(cut, std::filesystem::perms::owner_write, std::filesystem::perm_options::add);
  std::filesystem::resize_file(cut, std::filesystem::file_size(kDraft) - 1000);
  expect_refusal(cut, {}, StatusKind::kFile, "truncated");

  TinyModelOptions fused{.n_layer = 1, .n_expert = 2};
  fused.fused_gate_up = true;
  const auto path = write_tiny_model(dir_.file("fused.gguf"), fused);
  ASSERT_TRUE(path.ok());
  expect_refusal(*path, {}, StatusKind::kFile, "ffn_gate_up_exps");

  TinyModelOptions split{.n_layer = 1, .n_expert = 2};
  split.n_shards = 2;
  const auto first = write_tiny_model(dir_.file("split.gguf"), split);
  ASSERT_TRUE(first.ok());
  expect_refusal(*first, {}, StatusKind::kFile, "shards");
}

TEST_F(Widen, NeverWritesOverItsInput) {
  const std::string path = dir_.file("own.gguf");
  std::filesystem::copy_file(kDraft, path);
  EXPECT_EQ(widen(path, path, {}).status().kind(), StatusKind::kUsage);
  EXPECT_EQ(std::filesystem::file_size(path), std::filesystem::file_size(kDraft));
}

// The exit code of a program run by the shell, its output dropped.
int run_program(const std::string& program, const std::string& arguments) {
  const std::string command = "'" + program + "' " + arguments + " >/dev/null 2>&1";
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(Widen, ProgramTellsByItsExitCode) {
  const auto run = [&](const std::string& arguments) { return run_program(DRAFTHORSE_WIDEN, arguments); };
  const std::string out = " '" + dir_.file("out.gguf") + "'";
  const std::string draft = std::string("'") + kTrainedDraft + "'";
  EXPECT_EQ(run(draft + out + " --embd 256 --type q8_0"), 0);
  EXPECT_EQ(run("--help"), 0);
  EXPECT_EQ(run(draft), 2);
  EXPECT_EQ(run(draft + out + " --embd 100"), 2);
  EXPECT_EQ(run(draft + out + " --type Q9_9"), 2);
  EXPECT_EQ(run(draft + out + " --noise 2"), 2);
  EXPECT_EQ(run("/nonexistent.gguf" + out), 3);
  EXPECT_EQ(run(draft + " /nonexistent/out.gguf"), 3);
}

TEST_F(Widen, DemoModelsAreMadeOnce) {
  const auto make = [&](const std::string& more) {
    return run_program(DRAFTHORSE_MAKE_DEMO_MODELS, "--widen '" + std::string(DRAFTHORSE_WIDEN) + "' --dir '" +
                                                        dir_.path().string() + "' --embd 256 --dense --ff " + more);
  };
  const std::string target = dir_.file("demo-target-bf16.gguf");
  ASSERT_EQ(make("640"), 0);
  for (const char* name : {"demo-target-bf16.gguf", "demo-draft-q4_0.gguf", "demo-draft-dense.gguf"}) {
    EXPECT_NE(load(dir_.file(name)), nullptr) << name;
  }
  const auto made = std::filesystem::last_write_time(target);
  ASSERT_EQ(make("640"), 0);
  EXPECT_EQ(std::filesystem::last_write_time(target), made);
  ASSERT_EQ(make("320"), 0);  // another recipe
  EXPECT_NE(std::filesystem::last_write_time(target), made);
  std::filesystem::resize_file(target, 1000);  // damaged
  ASSERT_EQ(make("320"), 0);
  EXPECT_GT(std::filesystem::file_size(target), 1000U);
  EXPECT_EQ(make("300"), 2);
  EXPECT_EQ(make("99999680"), 3);  // no disk is that large
}

}  // namespace
}  // namespace drafthorse
