// The text is the target's own, whatever is done to get it faster: depth, draft, memory, eviction, threads, I/O.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <vector>

#include "end_to_end/generation.h"
#include "engine/calibration.h"
#include "engine/calibration_text.h"
#include "schedule/policy.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

constexpr size_t kPrompts = 20;
constexpr int64_t kTokens = 128;
// With experts missing each token waits for reads, and what can go wrong does so soon: a part of the texts is enough.
constexpr size_t kPromptsWithMisses = 8;
constexpr int64_t kTokensWithMisses = 64;

const std::string kTarget = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
const std::string kDenseDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";
const std::string kQuantizedDraft = DRAFTHORSE_QUANTIZED_DRAFT;

EngineOptions base_options() {
  EngineOptions options;
  options.target_path = kTarget;
  options.context = 512;
  options.ram_bytes = uint64_t{4} << 30;
  options.threads = 1;
  return options;
}

EngineOptions drafting(const std::string& drafter, int depth) {
  EngineOptions options = base_options();
  options.drafter = drafter;
  if (drafter == "model" || drafter == "shared-kv") options.draft_path = kQuantizedDraft;
  if (depth >= 0) options.draft_depth = depth;
  return options;
}

class Lossless : public testing::Test {
 protected:
  static void SetUpTestSuite() { reference_ = new Texts(texts_by(drafting("none", -1), kPrompts, kTokens)); }
  static void TearDownTestSuite() { delete reference_; }

  static void expect_same(const EngineOptions& options, const std::string& what, size_t prompts = kPrompts,
                          int64_t tokens = kTokens) {
    const Texts texts = texts_by(options, prompts, tokens);
    ASSERT_EQ(texts.size(), prompts) << what;
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::vector<int32_t>& whole = (*reference_)[i];
      const auto end = whole.begin() + std::min<ptrdiff_t>(tokens, std::ssize(whole));
      ASSERT_EQ(texts[i], std::vector<int32_t>(whole.begin(), end)) << what << ", prompt " << i;
    }
  }
  static void expect_same_with_misses(const EngineOptions& options, const std::string& what) {
    expect_same(options, what, kPromptsWithMisses, kTokensWithMisses);
  }

  static Texts* reference_;
};

Texts* Lossless::reference_ = nullptr;

TEST_F(Lossless, ReferenceIsRealText) {
  ASSERT_EQ(reference_->size(), kPrompts);
  std::set<std::vector<int32_t>> distinct(reference_->begin(), reference_->end());
  EXPECT_GE(distinct.size(), kPrompts - 2);
  size_t tokens = 0;
  for (const auto& text : *reference_) tokens += text.size();
  EXPECT_GE(tokens, kPrompts * kTokens * 3 / 4);
}

TEST_F(Lossless, AnyDepthAndDraft) {
  for (const std::string& draft : {kDenseDraft, kQuantizedDraft}) {
    for (const int depth : {0, 1, 2, 4, 8, 16, -1}) {
      EngineOptions options = base_options();
      options.draft_path = draft;
      if (depth >= 0) options.draft_depth = depth;
      expect_same(options, fmt::format("draft {}, depth {}", draft, depth));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Lossless, AnyDrafter) {
  for (const char* drafter : {"shared-kv", "ngram", "resident", "model", "none"}) {
    for (const int depth : {1, 4, 8, -1}) {
      EngineOptions options = drafting(drafter, depth);
      // Few experts in memory: what is resident is not what is routed to.
      options.expert_slots = depth == 4 ? 7 : 24;
      expect_same_with_misses(options, fmt::format("drafter {}, depth {}", drafter, depth));
      if (HasFatalFailure()) return;
    }
  }
  for (const std::string& draft : {std::string(), kDenseDraft, kQuantizedDraft}) {
    for (const int slots : {2, 12, 32, 64}) {
      EngineOptions options = base_options();
      options.draft_path = draft;
      options.expert_slots = slots;
      expect_same_with_misses(options, fmt::format("drafter auto, draft '{}', {} slots", draft, slots));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Lossless, AnyMemoryAndEviction) {
  for (const std::string& eviction : eviction_policy_names()) {
    for (const int slots : {2, 16, 41}) {
      EngineOptions options = base_options();
      options.schedule.eviction = eviction;
      options.expert_slots = slots;
      options.draft_path = slots % 2 == 0 ? kQuantizedDraft : kDenseDraft;
      options.draft_depth = slots % 3 * 4;
      expect_same_with_misses(options, fmt::format("{} slots, {}", slots, eviction));
    }
  }
}

TEST_F(Lossless, AnyPolicyPredictorAndPrefetch) {
  int number = 0;
  const auto run = [&](const ScheduleOptions& schedule, const std::string& what) {
    EngineOptions options = base_options();
    options.schedule = schedule;
    options.schedule.batched_reads = number % 5 != 0;
    options.expert_slots = 7 + 6 * (number % 4);
    options.draft_path = number % 2 == 0 ? kQuantizedDraft : kDenseDraft;
    if (number % 3 != 0) options.draft_depth = 3 * (number % 3);
    ++number;
    expect_same_with_misses(options, what);
  };
  for (const SchedulePolicy& policy : schedule_policies()) {
    ScheduleOptions schedule;
    schedule.policy = policy.name;
    run(schedule, std::string(policy.name));
  }
  for (const std::string& predictor : predictor_names()) {
    ScheduleOptions schedule;
    schedule.predictor = predictor;
    run(schedule, predictor);
  }
  for (const std::string& prefetch : prefetch_policy_names()) {
    ScheduleOptions schedule;
    schedule.prefetch = prefetch;
    schedule.cutoff_layers = 2;
    run(schedule, prefetch);
  }
}

TEST_F(Lossless, FittedRouters) {
  const TempDir folder;
  const std::string fitted = folder.file("fitted.gguf");
  {
    EngineOptions options = base_options();
    options.draft_path = kDenseDraft;
    options.drafter = "model";
    options.calibration_positions = 1024;
    Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    const std::vector<std::string> prompts = read_prompts(kPrompts);
    const auto texts = write_texts(**engine, prompts, Writer::kDraft, 1024, {});
    ASSERT_TRUE(texts.ok());
    const Result<CalibrationResult> result = calibrate(**engine, *texts, {});
    ASSERT_TRUE(result.ok()) << result.status().message();
    ASSERT_TRUE(write_fitted_routers(fitted, {(*engine)->target_index(), (*engine)->target().model->config()},
                                     {(*engine)->draft_index(), (*engine)->draft().model->config()}, result->routers)
                    .ok());
  }
  for (const char* predictor : {"fitted", "combined"}) {
    for (const int depth : {1, 4, -1}) {
      EngineOptions options = base_options();
      options.draft_path = kDenseDraft;
      options.fitted_path = fitted;
      options.schedule.predictor = predictor;
      options.expert_slots = 12 + 5 * depth;
      if (depth >= 0) options.draft_depth = depth;
      expect_same_with_misses(options, fmt::format("{} with fitted routers, depth {}", predictor, depth));
    }
  }
}

TEST_F(Lossless, AnyThreadsAndReads) {
  for (const int threads : {1, 2, 3}) {
    for (const char* io : {"uring", "pread"}) {
      EngineOptions options = base_options();
      options.threads = threads;
      options.io = io;
      options.expert_slots = 9;
      options.draft_path = kQuantizedDraft;
      options.draft_depth = 4;
      expect_same_with_misses(options, fmt::format("{} threads, {}", threads, io));
    }
  }
}

// The demo models' types have the same bits on every instruction set, so even the text is the same.
TEST_F(Lossless, AnyInstructionSet) {
  for (const std::string& isa : instruction_set_names()) {
    EngineOptions options = base_options();
    options.isa = isa;
    options.threads = 2;
    options.expert_slots = 24;
    options.draft_path = kQuantizedDraft;
    options.draft_depth = 8;
    expect_same(options, isa);
  }
}

// A prompt that is prefilled in several runs and stages gives what token-by-token decoding gives.
TEST_F(Lossless, LongPromptsAreBitEqualToDecoding) {
  EngineOptions options = base_options();
  options.context = 1024;
  options.expert_slots = 11;
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  ASSERT_TRUE(engine.ok());
  std::string text;
  for (const std::string& prompt : read_prompts(40)) text += prompt + "\n\n";
  std::vector<int32_t> tokens = (*engine)->tokenizer().tokenize(text);
  tokens.resize(700);
  ForwardPass& pass = *(*engine)->target().pass;
  KvCache& kv = (*engine)->target().model->kv();
  ASSERT_TRUE(pass.run(tokens, 1).ok());
  const std::vector<float> together(pass.logits(0).begin(), pass.logits(0).end());
  kv.truncate(0);
  for (const int32_t token : tokens) ASSERT_TRUE(pass.run({&token, 1}, 1).ok());
  const std::vector<float> alone(pass.logits(0).begin(), pass.logits(0).end());
  EXPECT_EQ(together, alone);
}

}  // namespace
}  // namespace drafthorse
