// What each drafter promises beside the text: who may draft for whom, what is booked, what is left as it was.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "draft/ngram_drafter.h"
#include "end_to_end/generation.h"

namespace drafthorse {
namespace {

using Tokens = std::vector<int32_t>;

const std::string kTarget = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
const std::string kDenseDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";
const std::string kQuantizedDraft = DRAFTHORSE_QUANTIZED_DRAFT;
constexpr const char* kRepeating =
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef add(a, b):\n    return a + b\n\n"
    "def sub(a, b):\n    return a - b\n\ndef add(a, b):\n    return a";

EngineOptions options_with(const std::string& drafter, const std::string& draft = {}) {
  EngineOptions options;
  options.target_path = kTarget;
  options.draft_path = draft;
  options.drafter = drafter;
  options.context = 512;
  options.ram_bytes = uint64_t{2} << 30;
  options.threads = 1;
  return options;
}

std::unique_ptr<Engine> open(const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

std::vector<std::string> names_of(const Engine& engine) {
  std::vector<std::string> names;
  for (const auto& drafter : engine.drafters()) names.emplace_back(drafter->name());
  return names;
}

void expect_usage(const EngineOptions& options, std::string_view sentence) {
  const Status status = Engine::prepare(options).status();
  EXPECT_EQ(status.kind(), StatusKind::kUsage) << options.drafter;
  EXPECT_NE(status.message().find(sentence), std::string::npos) << status.message();
}

TEST(Drafters, AutoTakesWhatThereIs) {
  using Names = std::vector<std::string>;
  EngineOptions options = options_with("auto");
  EXPECT_EQ(names_of(*open(options)), Names{"ngram"});  // all experts fit
  options.expert_slots = 20;
  EXPECT_EQ(names_of(*open(options)), (Names{"resident", "ngram"}));
  EXPECT_EQ(names_of(*open(options_with("auto", kQuantizedDraft))), (Names{"shared-kv", "ngram"}));
  EXPECT_EQ(names_of(*open(options_with("auto", kDenseDraft))), (Names{"model", "ngram"}));
  EXPECT_EQ(names_of(*open(options_with("model", kQuantizedDraft))), Names{"model"});
  EXPECT_EQ(names_of(*open(options_with("resident"))), Names{"resident"});
  options = options_with("auto");
  options.target_path = kDenseDraft;
  EXPECT_EQ(names_of(*open(options)), Names{"ngram"});
  options = options_with("auto", kQuantizedDraft);
  options.draft_depth = 4;
  EXPECT_EQ(names_of(*open(options)), Names{"shared-kv"});
}

TEST(Drafters, WhatDoesNotFitIsRefusedWithAReason) {
  expect_usage(options_with("shared-kv", kDenseDraft), "cannot draft on the target's KV cache: it has ");
  expect_usage(options_with("shared-kv"), "--drafter shared-kv needs a draft model");
  expect_usage(options_with("model"), "--drafter model needs a draft model");
  expect_usage(options_with("ngrams"), "'ngrams' is not a drafter; choose from auto, model");
  EngineOptions options = options_with("resident");
  options.target_path = kDenseDraft;
  expect_usage(options, "has no routed experts");
  options = options_with("auto");
  options.draft_depth = 3;
  expect_usage(options, "--draft-depth 3 needs a drafter");
}

TEST(Drafters, ShapesThatShareAKvCache) {
  ModelConfig a;
  a.architecture = "llama";
  a.n_layer = 4;
  a.n_head = 8;
  a.rope.base = 10000;
  EXPECT_EQ(why_not_share_kv(a, a), "");
  const auto changed = [&](auto member, auto value) {
    ModelConfig b = a;
    b.*member = value;
    return why_not_share_kv(a, b);
  };
  EXPECT_NE(changed(&ModelConfig::n_layer, 5).find("5 layers, the target 4"), std::string::npos);
  EXPECT_NE(changed(&ModelConfig::n_head, 9), "");
  EXPECT_NE(changed(&ModelConfig::n_head_kv, 9), "");
  EXPECT_NE(changed(&ModelConfig::head_dim, 9), "");
  EXPECT_NE(changed(&ModelConfig::n_embd, 9), "");
  EXPECT_NE(changed(&ModelConfig::value_dim, 9), "");
  EXPECT_NE(changed(&ModelConfig::rope, RopeConfig{.base = 9}), "");
  EXPECT_NE(changed(&ModelConfig::rope, RopeConfig{.base = 10000, .frequency_scale = 0.5F}), "");
  EXPECT_NE(changed(&ModelConfig::latent, LatentConfig{.kv_rank = 9}), "");
  EXPECT_NE(changed(&ModelConfig::architecture, std::string("mistral")), "");
  EXPECT_NE(changed(&ModelConfig::n_expert, 9), "");
  EXPECT_EQ(changed(&ModelConfig::name, std::string("b")), "");
}

TEST(Drafters, OneThatSharesTheKvCacheBooksNone) {
  const std::unique_ptr<Engine> own = open(options_with("model", kQuantizedDraft));
  const std::unique_ptr<Engine> shared = open(options_with("shared-kv", kQuantizedDraft));
  EXPECT_GT(own->ledger().bytes("draft KV cache"), 0U);
  EXPECT_EQ(shared->ledger().bytes("draft KV cache"), 0U);
  const auto models = [](const Engine& engine) {
    return engine.ledger().total() - engine.ledger().bytes("process and vocabulary");
  };
  EXPECT_LE(models(*shared) + own->ledger().bytes("draft KV cache"), models(*own));
  // One that will not draft is not loaded.
  const std::unique_ptr<Engine> none = open(options_with("none", kQuantizedDraft));
  EXPECT_EQ(none->draft().model, nullptr);
  EXPECT_EQ(none->ledger().bytes("draft dense weights"), 0U);
  ASSERT_EQ(none->notices().size(), 1U);
}

// The target's rows, while drafters read and write beyond them: as they were.
TEST(Drafters, TheKvCacheIsRestored) {
  for (const char* name : {"shared-kv", "resident", "ngram", "model"}) {
    SCOPED_TRACE(name);
    const bool needs_model = std::string(name) == "shared-kv" || std::string(name) == "model";
    EngineOptions options = options_with(name, needs_model ? kQuantizedDraft : "");
    options.expert_slots = 20;
    const std::unique_ptr<Engine> engine = open(options);
    Tokens text = engine->tokenizer().tokenize(kRepeating);
    const auto prompt = static_cast<int32_t>(text.size());
    Model& target = *engine->target().model;
    ASSERT_TRUE(engine->target().pass->run(std::span(text).first(text.size() - 1), 0).ok());
    const std::vector<std::byte> rows = target.kv().copy_rows(0, prompt - 1);
    const std::unique_ptr<Sampler> sampler = engine->create_sampler();
    Drafter& drafter = *engine->drafters()[0];
    const Result<Tokens> choices = drafter.prepare(text, 20, *sampler);
    ASSERT_TRUE(choices.ok());
    EXPECT_EQ(target.kv().length(), prompt - 1);
    EXPECT_EQ(target.kv().copy_rows(0, prompt - 1), rows);
    if (!choices->empty()) {
      ASSERT_EQ(choices->size(), 20U);
      // The text repeats itself: whoever can say something about it says what comes.
      int right = 0;
      for (size_t i = 0; i < 20; ++i) right += (*choices)[i] == text[text.size() - 20 + i] ? 1 : 0;
      EXPECT_GE(right, 10);
    }
    for (const int32_t depth : {1, 4, 16}) {
      const Result<Tokens> drafted = drafter.draft(text, depth, *sampler);
      ASSERT_TRUE(drafted.ok());
      EXPECT_GE(drafted->size(), 1U);
      EXPECT_LE(static_cast<int32_t>(drafted->size()), std::min(depth, drafter.reach(text, depth)));
      ASSERT_EQ(target.kv().length(), prompt - 1);
      EXPECT_EQ(target.kv().copy_rows(0, prompt - 1), rows);
      drafter.accept(0);
    }
    // The same with an interruption halfway.
    engine->interrupt();
    const Result<Tokens> drafted = drafter.draft(text, 4, *sampler);
    EXPECT_EQ(drafted.ok(), std::string(name) == "ngram");
    EXPECT_EQ(target.kv().length(), prompt - 1);
    engine->clear_interrupt();
    EXPECT_TRUE(drafter.draft(text, 4, *sampler).ok());
    engine->target().cache->check_invariants();
  }
}

// Self-drafting reads nothing, evicts nothing and counts nothing.
TEST(ResidentDrafter, LeavesTheExpertCacheAlone) {
  for (const int slots : {2, 5, 20, 40}) {
    EngineOptions options = options_with("resident");
    options.expert_slots = slots;
    const std::unique_ptr<Engine> engine = open(options);
    const Tokens text = engine->tokenizer().tokenize(kRepeating);
    ASSERT_TRUE(engine->target().pass->run(std::span(text).first(text.size() - 1), 0).ok());
    ExpertCache& cache = *engine->target().cache;
    const auto residents = [&] {
      std::vector<bool> all;
      for (int32_t layer = 0; layer < 8; ++layer) {
        for (int32_t e = 0; e < 8; ++e) all.push_back(cache.resident({LayerId{layer}, ExpertId{e}}));
      }
      return all;
    };
    // What the pass read ahead arrives first.
    const std::unique_ptr<Sampler> sampler = engine->create_sampler();
    ASSERT_TRUE(cache.fill_and_wait({}).ok());
    const std::vector<bool> before = residents();
    cache.reset_stats();
    const Result<Tokens> drafted = engine->drafters()[0]->draft(text, 8, *sampler);
    ASSERT_TRUE(drafted.ok());
    EXPECT_EQ(drafted->size(), 8U);
    EXPECT_EQ(residents(), before) << slots;
    const LayerCacheStats stats = sum(cache.stats());
    EXPECT_EQ(stats.hits + stats.misses + stats.evictions + stats.in_flight_hits, 0);
    EXPECT_EQ(stats.bytes_demanded + stats.bytes_prefetched, 0U);
    cache.check_invariants();
  }
}

// With every expert there it is the target: all it says is accepted.
TEST(ResidentDrafter, IsTheTargetWhereAllExpertsFit) {
  EngineOptions options = options_with("resident");
  options.draft_depth = 4;
  options.expert_slots = 64;
  const std::unique_ptr<Engine> engine = open(options);
  const Tokens prompt = engine->tokenizer().tokenize(read_prompts(1).at(0));
  ASSERT_TRUE(generate(*engine, prompt, 8).status.ok());
  ASSERT_TRUE(engine->target().cache->fill_and_wait({}).ok());
  const Generated text = generate(*engine, prompt, 60);
  EXPECT_EQ(text.stats.acceptance(), 1);
  ASSERT_EQ(text.stats.drafters.size(), 1U);
  EXPECT_EQ(text.stats.drafters[0].name, "resident");
  EXPECT_EQ(text.stats.drafters[0].accepted_tokens, text.stats.accepted_tokens);
}

// --- n-grams, by a sampler that any model gives

class Ngrams : public testing::Test {
 protected:
  Ngrams() : engine_(open(options_with("none"))), sampler_(engine_->create_sampler()) {}
  Tokens draft(const Tokens& text, int32_t depth) {
    Result<Tokens> drafted = drafter_.draft(text, depth, *sampler_);
    EXPECT_TRUE(drafted.ok());
    return std::move(drafted).value();
  }
  const std::unique_ptr<Engine> engine_;
  const std::unique_ptr<Sampler> sampler_;
  NgramDrafter drafter_{4096};
};

TEST_F(Ngrams, SaysWhatFollowedTheLongestMatch) {
  // After 5 6 7: once 20 (with 4 before it, as now), later 30 (with 9 before it).
  Tokens text = {10, 4, 5, 6, 7, 20, 21, 22, 23, 24, 25, 9, 5, 6, 7, 30, 31, 32, 4, 5, 6, 7};
  EXPECT_EQ(draft(text, 3), (Tokens{20, 21, 22}));
  // As far as twice the match.
  EXPECT_EQ(draft(text, 20), (Tokens{20, 21, 22, 23, 24, 25, 9, 5}));
  EXPECT_EQ(drafter_.reach(text, 20), 8);
  EXPECT_EQ(drafter_.reach(text, 2), 2);
}

TEST_F(Ngrams, TakesTheMostRecentOfEquals) {
  EXPECT_EQ(draft({11, 5, 6, 7, 20, 12, 5, 6, 7, 30, 13, 5, 6, 7}, 1), (Tokens{30}));
}

TEST_F(Ngrams, GoesOnInItsOwnWords) {
  EXPECT_EQ(draft({40, 41, 42, 43, 41, 42, 43, 41, 42, 43}, 8), (Tokens{41, 42, 43, 41, 42, 43, 41, 42}));
}

TEST_F(Ngrams, SaysNothingWithoutAMatch) {
  EXPECT_TRUE(draft({}, 4).empty());
  EXPECT_TRUE(draft({5}, 4).empty());
  EXPECT_TRUE(draft({5, 6, 7}, 4).empty());
  EXPECT_TRUE(draft({5, 6, 9, 5, 6}, 4).empty());
  EXPECT_EQ(drafter_.reach(Tokens{5, 6, 9, 5, 6}, 4), 0);
}

TEST_F(Ngrams, StopsAtAnEndOfText) {
  int32_t end = 0;
  while (!sampler_->is_end(end)) ++end;
  EXPECT_EQ(draft({15, 16, 17, 18, end, 19, 20, 15, 16, 17}, 4), (Tokens{18, end}));
}

// Random texts, extended and truncated: as a search from the beginning finds it.
TEST_F(Ngrams, ForgetsWhatIsTruncated) {
  const auto plain = [](const Tokens& text) {
    int32_t best = 0;
    int32_t next = -1;
    for (int32_t end = static_cast<int32_t>(text.size()) - 1; end >= NgramDrafter::kGram; --end) {
      int32_t length = 0;
      while (length < std::min(end, 32) && text[end - 1 - length] == text[text.size() - 1 - length]) ++length;
      if (length >= NgramDrafter::kGram && length > best) {
        best = length;
        next = text[end];
      }
    }
    return next;
  };
  std::mt19937_64 random(1);
  Tokens text;
  int found = 0;
  for (int round = 0; round < 3000; ++round) {
    if (random() % 10 == 0) {
      text.resize(random() % (text.size() + 1));
      drafter_.truncate(static_cast<int32_t>(text.size()));
    }
    const size_t more = random() % 4;
    for (size_t i = 0; i < more; ++i) text.push_back(10 + static_cast<int32_t>(random() % 4));
    if (text.size() > 180) text.resize(60);
    if (text.size() == 60) drafter_.truncate(60);
    const Tokens drafted = draft(text, 1);
    const int32_t expected = plain(text);
    if (expected < 0) {
      EXPECT_TRUE(drafted.empty());
    } else {
      ASSERT_EQ(drafted, Tokens{expected}) << round;
      ++found;
    }
  }
  EXPECT_GT(found, 500);
}

TEST_F(Ngrams, OffersNothingTheGrammarForbids) {
  EngineOptions options = options_with("ngram");
  options.sampling.grammar = "root ::= [a-z ]+";
  options.draft_depth = 8;
  const std::unique_ptr<Engine> engine = open(options);
  const std::unique_ptr<Sampler> sampler = engine->create_sampler();
  const Tokens text = engine->tokenizer().tokenize("x = one two three 4; x = one two three 4; x = one two");
  sampler->begin(text.size());
  NgramDrafter drafter(512);
  const Result<Tokens> drafted = drafter.draft(text, 8, *sampler);
  ASSERT_TRUE(drafted.ok());
  EXPECT_GE(drafted->size(), 1U);
  std::string said;
  for (const int32_t token : *drafted) said += engine->tokenizer().piece(token);
  EXPECT_EQ(said.find_first_not_of("abcdefghijklmnopqrstuvwxyz "), std::string::npos) << said;
}

}  // namespace
}  // namespace drafthorse
