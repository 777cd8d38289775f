// Routers fitted to a pair: found where there is something to find, used by a run, refused where they do not fit.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "end_to_end/generation.h"
#include "end_to_end/routing_sink.h"
#include "engine/calibration.h"
#include "engine/calibration_text.h"
#include "io/fingerprint.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace drafthorse {
namespace {

// The same function at twice the width: what the narrow one computes is, repeated, what the wide one computes.
const std::string kWide = DRAFTHORSE_WIDE_TARGET;
const std::string kNarrow = DRAFTHORSE_FLOAT_TARGET;
const std::string kDenseDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";

EngineOptions calibrating(const std::string& target, const std::string& draft, int32_t positions) {
  EngineOptions options;
  options.target_path = target;
  options.draft_path = draft;
  options.drafter = "model";
  options.context = kCalibrationWindow;
  options.ram_bytes = uint64_t{4} << 30;
  options.threads = 2;
  options.schedule.policy = "next-use";
  options.calibration_positions = positions;
  return options;
}

std::unique_ptr<Engine> open(const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

std::vector<std::string> openings() {
  const std::span<const std::string_view> own = own_openings();
  return {own.begin(), own.end()};
}

ModelFile target_of(const Engine& engine) { return {engine.target_index(), engine.target().model->config()}; }
ModelFile draft_of(const Engine& engine) { return {engine.draft_index(), engine.draft().model->config()}; }

CalibrationResult calibrated(Engine& engine) {
  const auto texts =
      write_texts(engine, openings(), Writer::kDraft, *engine.options().calibration_positions, LoadProgress());
  EXPECT_TRUE(texts.ok());
  Result<CalibrationResult> result = calibrate(engine, *texts, {});
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? std::move(result).value() : CalibrationResult();
}

class Calibration : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempDir;
    const std::unique_ptr<Engine> engine = open(calibrating(kWide, kNarrow, 3000));
    result_ = new CalibrationResult(calibrated(*engine));
    ASSERT_TRUE(write_fitted_routers(file(), target_of(*engine), draft_of(*engine), result_->routers).ok());
  }
  static void TearDownTestSuite() {
    delete result_;
    delete folder_;
  }
  static std::string file() { return folder_->file("fitted.gguf"); }

  static EngineOptions running(const std::string& predictor) {
    EngineOptions options;
    options.target_path = kWide;
    options.draft_path = kNarrow;
    options.drafter = "model";
    options.draft_depth = 4;
    options.context = 512;
    options.ram_bytes = uint64_t{4} << 30;
    options.expert_slots = 20;
    options.threads = 1;
    options.schedule.predictor = predictor;
    options.fitted_path = file();
    return options;
  }

  static Status open_status(const std::string& path, const Engine& engine) {
    Result<std::unique_ptr<FittedRouters>> fitted = FittedRouters::open(path, target_of(engine), draft_of(engine));
    return fitted.ok() && (*fitted)->why_stale().empty() ? (*fitted)->load() : fitted.status();
  }

  static TempDir* folder_;
  static CalibrationResult* result_;
};

TempDir* Calibration::folder_ = nullptr;
CalibrationResult* Calibration::result_ = nullptr;

TEST_F(Calibration, FindsWhatIsThere) {
  ASSERT_EQ(result_->layers.size(), 8U);
  EXPECT_GT(result_->fitted_positions, 2500);
  EXPECT_GT(result_->judged_positions, 200);
  for (const LayerCalibration& layer : result_->layers) {
    EXPECT_GE(layer.fitted.recall, 0.98) << index(layer.layer);
    EXPECT_GE(layer.fitted.wide_weight, 0.995) << index(layer.layer);
    EXPECT_EQ(layer.draft_layer, layer.layer);
    EXPECT_LT(layer.frequency.recall, 0.6);
    EXPECT_LT(layer.last_token, 0.6);
    EXPECT_FALSE(layer.cross.has_value());
  }
}

// With memory for a few of the draft's layers at a time the texts are read several times, and the same is found.
TEST_F(Calibration, FewLayersAtATimeFitTheSame) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer's own memory grows from engine to engine, and counts as the process's";
#endif
  EngineOptions options = calibrating(kWide, kNarrow, 3000);
  std::unique_ptr<Engine> roomy = open(options);
  ASSERT_EQ(roomy->calibration_layers(), 8);
  EXPECT_EQ(roomy->ledger().bytes("calibration"),
            calibration_bytes(target_of(*roomy).config, draft_of(*roomy).config, 3000, 8));
  options.ram_bytes = roomy->memory_plan().least_budget_bytes;
  roomy.reset();  // what it holds would be the process's
  std::unique_ptr<Engine> few;
  for (int layers = 8; layers == 8; *options.ram_bytes -= uint64_t{1} << 18) {
    few.reset();
    few = open(options);
    ASSERT_NE(few, nullptr);
    layers = few->calibration_layers();
  }
  const CalibrationResult again = calibrated(*few);
  ASSERT_EQ(again.routers.size(), result_->routers.size());
  for (size_t i = 0; i < again.routers.size(); ++i) {
    EXPECT_EQ(again.routers[i].layer, result_->routers[i].layer);
    EXPECT_EQ(again.routers[i].router, result_->routers[i].router);
    EXPECT_EQ(again.routers[i].offsets, result_->routers[i].offsets);
  }
}

TEST_F(Calibration, TheFileHoldsWhatWasFitted) {
  const std::unique_ptr<Engine> engine = open(running("fitted"));
  EXPECT_TRUE(engine->notices().empty());
  Result<std::unique_ptr<FittedRouters>> fitted = FittedRouters::open(file(), target_of(*engine), draft_of(*engine));
  ASSERT_TRUE(fitted.ok());
  ASSERT_EQ((*fitted)->why_stale(), "");
  EXPECT_EQ(engine->ledger().bytes("fitted routers"), (*fitted)->bytes());
  ASSERT_TRUE((*fitted)->load().ok());
  for (const FittedRouter& one : result_->routers) {
    const auto* offsets = static_cast<const float*>((*fitted)->offset(one.layer)->data);
    EXPECT_TRUE(std::equal(one.offsets.begin(), one.offsets.end(), offsets));
    const auto* weights = static_cast<const ggml_fp16_t*>((*fitted)->router(one.layer)->data);
    for (size_t i = 0; i < one.router.size(); ++i) {
      ASSERT_NEAR(ggml_fp16_to_fp32(weights[i]), one.router[i], 1e-3 * std::abs(one.router[i]) + 1e-6);
    }
  }
}

// What the draft's probes say in a run is what calibration promised.
TEST_F(Calibration, ARunPredictsWithIt) {
  KeepingSink sink;
  EngineOptions options = running("fitted");
  options.schedule.record = &sink;
  const std::unique_ptr<Engine> engine = open(options);
  for (const std::string& prompt : read_prompts(4)) {
    ASSERT_TRUE(generate(*engine, engine->tokenizer().tokenize(prompt), 40).status.ok());
  }
  const Agreement agreement = agreement_with_truth(sink.cycles, ScoreSource::kFitted, 2);
  EXPECT_GT(agreement.experts, 500);
  EXPECT_GE(agreement.share(), 0.97);
  int64_t right = 0;
  int64_t used = 0;
  for (const LayerForecastStats& layer : engine->schedule().scheduler()->stats()) {
    right += layer.hits;
    used += layer.used;
  }
  EXPECT_GT(right, used / 2);
}

TEST_F(Calibration, OffsetsCount) {
  std::vector<FittedRouter> routers = result_->routers;
  for (FittedRouter& one : routers) {
    std::fill(one.router.begin(), one.router.end(), 0.0F);
    for (size_t e = 0; e < one.offsets.size(); ++e) one.offsets[e] = static_cast<float>(e * 7 % 16);
  }
  KeepingSink sink;
  EngineOptions options = running("fitted");
  options.fitted_path = folder_->file("offsets.gguf");
  options.schedule.record = &sink;
  {
    const std::unique_ptr<Engine> engine = open(calibrating(kWide, kNarrow, 600));
    ASSERT_TRUE(write_fitted_routers(options.fitted_path, target_of(*engine), draft_of(*engine), routers).ok());
  }
  const std::unique_ptr<Engine> engine = open(options);
  ASSERT_TRUE(generate(*engine, engine->tokenizer().tokenize("def"), 10).status.ok());
  size_t scores = 0;
  for (const TracedCycle& cycle : sink.cycles) {
    for (const TracedScore& score : cycle.scores) {
      if (score.source != ScoreSource::kFitted) continue;
      ++scores;
      // 7 e mod 16 is 14 for e = 2, 12 for 4, 10 for 6.
      ASSERT_EQ((std::vector<ExpertId>(score.ranked.begin(), score.ranked.begin() + 3)),
                (std::vector<ExpertId>{ExpertId{2}, ExpertId{4}, ExpertId{6}}));
    }
  }
  EXPECT_GT(scores, 0U);
}

TEST_F(Calibration, IsUsedOnlyWhereItIsWanted) {
  EngineOptions options = running("cross");
  std::unique_ptr<Engine> engine = open(options);
  EXPECT_EQ(engine->ledger().bytes("fitted routers"), 0U);
  ASSERT_EQ(engine->notices().size(), 2U);  // cross has nothing to work with either
  EXPECT_NE(engine->notices()[1].find("'cross' has no use for fitted routers"), std::string::npos);
  options = running("fitted");
  options.fitted_path = "none";
  engine = open(options);
  EXPECT_EQ(engine->ledger().bytes("fitted routers"), 0U);
  ASSERT_EQ(engine->notices().size(), 1U);
  EXPECT_NE(engine->notices()[0].find("(drafthorse calibrate)"), std::string::npos);
}

TEST_F(Calibration, AStaleFileIsRefused) {
  EngineOptions options = running("combined");
  options.draft_path = kDenseDraft;
  Status status = Engine::open(options, {}).status();
  EXPECT_EQ(status.kind(), StatusKind::kFile);
  EXPECT_NE(status.message().find("fitted to another draft; drafthorse calibrate"), std::string::npos)
      << status.message();
  options = running("combined");
  options.target_path = kNarrow;
  status = Engine::open(options, {}).status();
  EXPECT_EQ(status.kind(), StatusKind::kFile);
  EXPECT_NE(status.message().find("fitted to another target"), std::string::npos) << status.message();
  // Found where calibration puts it, and nobody asked for it: said once, and left alone.
  const std::string draft = folder_->file("draft.gguf");
  std::filesystem::copy_file(kDenseDraft, draft, std::filesystem::copy_options::overwrite_existing);
  const std::string found = fitted_routers_path(draft, kWide);
  EXPECT_EQ(std::filesystem::path(found).parent_path(), folder_->path());
  std::filesystem::copy_file(file(), found, std::filesystem::copy_options::overwrite_existing);
  options = running("combined");
  options.draft_path = draft;
  options.fitted_path.clear();
  const std::unique_ptr<Engine> engine = open(options);
  ASSERT_EQ(engine->notices().size(), 1U);
  EXPECT_NE(engine->notices()[0].find("fitted to another draft"), std::string::npos);
  EXPECT_EQ(engine->ledger().bytes("fitted routers"), 0U);
}

TEST_F(Calibration, IsFoundBesideTheDraft) {
  const std::string draft = folder_->file("narrow.gguf");
  std::filesystem::copy_file(kNarrow, draft, std::filesystem::copy_options::overwrite_existing);
  std::filesystem::copy_file(file(), fitted_routers_path(draft, kWide));
  EngineOptions options = running("");  // the default policy
  options.draft_path = draft;
  options.fitted_path.clear();
  const std::unique_ptr<Engine> engine = open(options);
  EXPECT_TRUE(engine->notices().empty());
  EXPECT_GT(engine->ledger().bytes("fitted routers"), 0U);
}

TEST_F(Calibration, DamagedFilesAreRefused) {
  const std::unique_ptr<Engine> engine = open(running("fitted"));
  std::ifstream in(file(), std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const std::string path = folder_->file("damaged.gguf");
  const auto status_of = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    return open_status(path, *engine);
  };
  ASSERT_TRUE(status_of(whole).ok());
  std::mt19937 random(11);
  for (size_t length = 0; length < whole.size(); length += 1 + random() % 97) {
    EXPECT_EQ(status_of(whole.substr(0, length)).kind(), StatusKind::kFile) << length;
  }
  for (int i = 0; i < 600; ++i) {
    std::string bytes = whole;
    const size_t header = std::min<size_t>(bytes.size(), 900);
    bytes[random() % (i % 3 == 0 ? bytes.size() : header)] ^= static_cast<char>(1U << (random() % 8));
    const Status status = status_of(bytes);
    EXPECT_TRUE(status.ok() || status.kind() == StatusKind::kFile) << status.message();
  }
  // A number that is none; the last tensor's bytes are the file's last, but for padding.
  std::string bytes = whole;
  for (size_t i = bytes.size() - 64; i < bytes.size(); ++i) bytes[i] = static_cast<char>(0xFF);
  const Status status = status_of(bytes);
  EXPECT_EQ(status.kind(), StatusKind::kFile);
  EXPECT_NE(status.message().find("numbers that are none"), std::string::npos) << status.message();
  // A model is no such file.
  EXPECT_EQ(open_status(kNarrow, *engine).kind(), StatusKind::kFile);
}

TEST_F(Calibration, WhatCannotBeCalibratedIsRefused) {
  EngineOptions options = calibrating(kDenseDraft, kDenseDraft, 1000);
  EXPECT_EQ(Engine::prepare(options).status().kind(), StatusKind::kUsage);
  options = calibrating(kWide, "", 1000);
  EXPECT_EQ(Engine::prepare(options).status().kind(), StatusKind::kUsage);
  const std::unique_ptr<Engine> engine = open(calibrating(kWide, kNarrow, 600));
  const std::vector<std::vector<int32_t>> few = {std::vector<int32_t>(100, 5)};
  const Status status = calibrate(*engine, few, {}).status();
  EXPECT_EQ(status.kind(), StatusKind::kUsage);
  EXPECT_NE(status.message().find("too few"), std::string::npos);
  engine->interrupt();
  EXPECT_EQ(write_texts(*engine, openings(), Writer::kDraft, 600, {}).status().kind(), StatusKind::kInterrupted);
  EXPECT_EQ(calibrate(*engine, cut_text(*engine, std::string(9000, 'x'), 600), {}).status().kind(),
            StatusKind::kInterrupted);
}

TEST_F(Calibration, ModelsWithoutNumbersAreRefused) {
  std::ifstream in(kNarrow, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(bytes.size() / 2), bytes.end(), static_cast<char>(0xFF));
  const std::string damaged = folder_->file("damaged-draft.gguf");
  std::ofstream(damaged, std::ios::binary) << bytes;
  const std::unique_ptr<Engine> engine = open(calibrating(kWide, damaged, 600));
  const auto texts = write_texts(*engine, openings(), Writer::kDraft, 600, {});
  ASSERT_TRUE(texts.ok());
  const Status status = calibrate(*engine, *texts, {}).status();
  EXPECT_EQ(status.kind(), StatusKind::kRuntime);
  EXPECT_NE(status.message().find("no numbers"), std::string::npos) << status.message();
}

TEST_F(Calibration, TextsAreCutToWindows) {
  const std::unique_ptr<Engine> engine = open(calibrating(kWide, kNarrow, 5000));
  const auto written = write_texts(*engine, openings(), Writer::kDraft, 5000, {});
  ASSERT_TRUE(written.ok());
  std::string others;
  for (int i = 0; i < 3000; ++i) others += "number " + std::to_string(i) + "\n";
  const std::vector<int32_t> beginning = engine->tokenizer().tokenize("");
  for (const auto& texts : {*written, cut_text(*engine, others, 5000)}) {
    ASSERT_EQ(texts.size(), 3U);
    size_t total = 0;
    for (const auto& text : texts) {
      EXPECT_TRUE(std::equal(beginning.begin(), beginning.end(), text.begin()));
      total += text.size();
    }
    EXPECT_EQ(texts[0].size(), static_cast<size_t>(kCalibrationWindow));
    EXPECT_EQ(total, 5000U);
  }
  // The target writes as well.
  EXPECT_TRUE(write_texts(*engine, openings(), Writer::kTarget, 600, {}).ok());
}

TEST(Fingerprint, IsOfTheWeights) {
  const TempDir folder;
  const auto print = [&](const std::string& name, const TinyModelOptions& options) {
    const Result<std::string> path = write_tiny_model(folder.file(name), options);
    EXPECT_TRUE(path.ok());
    const Result<GgufIndex> index = GgufIndex::open(*path);
    EXPECT_TRUE(index.ok());
    return model_fingerprint(*index).value();
  };
  const TinyModelOptions options;
  const std::string whole = print("a.gguf", options);
  EXPECT_EQ(whole.size(), 16U);
  EXPECT_EQ(print("b.gguf", options), whole);
  TinyModelOptions other = options;
  other.n_shards = 3;
  EXPECT_EQ(print("c.gguf", other), whole);
  other = options;
  other.seed = 2;
  EXPECT_NE(print("d.gguf", other), whole);
  other = options;
  other.type = GGML_TYPE_F16;
  EXPECT_NE(print("e.gguf", other), whole);
}

TEST(FittedRouters, PathsNameBoth) {
  EXPECT_EQ(fitted_routers_path("/m/draft.gguf", "/n/big-00001-of-00003.gguf"), "/m/draft.fitted-to-big.gguf");
  EXPECT_EQ(fitted_routers_path("d-00002-of-00009.gguf", "t"), "d.fitted-to-t.gguf");
  EXPECT_EQ(fitted_routers_path("a/-00002-of-00009.gguf", "x.gguf"), "a/-00002-of-00009.fitted-to-x.gguf");
}

TEST(FittedRouters, LayersCorrespondInProportion) {
  const auto layer = [](int32_t of, int target, int draft) {
    return index(corresponding_layer(LayerId{of}, target, draft));
  };
  EXPECT_EQ(layer(0, 32, 16), 0);
  EXPECT_EQ(layer(31, 32, 16), 15);
  EXPECT_EQ(layer(2, 5, 9), 4);
  EXPECT_EQ(layer(0, 1, 4), 0);
  EXPECT_EQ(layer(3, 4, 1), 0);
}

}  // namespace
}  // namespace drafthorse
