// Sampled text: distributed as the target says, whatever drafts; and, with shared noise, the same text for a seed
// whatever drafts, how deep, and with how much memory.
//
//   sampling_test --gtest_also_run_disabled_tests --gtest_filter='*OnDemand*'     100,000 samples per chain: minutes
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <set>

#include "end_to_end/generation.h"
#include "support/chi_square.h"
#include "support/plain_sampling.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace drafthorse {
namespace {

using Tokens = std::vector<int32_t>;

const std::string kTarget = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
const std::string kDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";
const std::string kQuantizedDraft = DRAFTHORSE_QUANTIZED_DRAFT;

// --- distribution, on a vocabulary small enough for three tokens in a row to be counted

constexpr int32_t kVocabulary = 10;
constexpr int kPositions = 3;
constexpr int kDepth = 3;
constexpr double kMostZ = 4.5;

struct NamedChain {
  const char* name;
  SamplingOptions options;
};

const std::array kChains = {
    NamedChain{"temperature 1", {.temperature = 1}},
    NamedChain{"temperature 0.5", {.temperature = 0.5}},
    NamedChain{"temperature 2", {.temperature = 2}},
    NamedChain{"top-k 3", {.temperature = 1, .top_k = 3}},
    NamedChain{"top-p 0.7", {.temperature = 1, .top_p = 0.7}},
    NamedChain{"min-p 0.2", {.temperature = 1, .min_p = 0.2}},
    NamedChain{"repeat penalty 1.5 over 2", {.temperature = 1, .repeat_penalty = 1.5, .repeat_last_n = 2}},
    NamedChain{
        "all of them",
        {.temperature = 0.9, .top_k = 8, .top_p = 0.95, .min_p = 0.02, .repeat_penalty = 1.2, .repeat_last_n = 3}},
    NamedChain{"grammar", {.temperature = 1, .grammar = "root ::= [!-&] [#-)]+"}},
    NamedChain{"never ending", {.temperature = 1, .ignore_end = true}},
};

class Distribution : public testing::Test {
 protected:
  void SetUp() override {
    TinyModelOptions model = {.n_layer = 1, .n_embd = 64, .n_head = 1, .n_head_kv = 1, .n_ff = 64};
    model.n_expert = 4;
    model.tied_head = false;
    model.n_tokens = kVocabulary;
    model.seed = 5;
    ASSERT_TRUE(write_tiny_model(target_, model).ok());
    // The draft shares the target's weights but for another layer, so that it agrees now and then.
    model.n_layer = 2;
    model.n_expert = 0;
    ASSERT_TRUE(write_tiny_model(draft_, model).ok());
    options_.target_path = target_;
    options_.draft_path = draft_;
    options_.draft_depth = kDepth;
    options_.context = 32;
    options_.threads = 1;
    options_.ram_bytes = uint64_t{1} << 30;
  }

  // The probability of every sequence of kPositions tokens, by the target alone and the plain chain. A sequence ends at
  // the first end of text and is filled up with it.
  std::vector<double> expected(Engine& engine, const Tokens& prompt, const SamplingOptions& options) {
    std::vector<double> result(kCells);
    add_expected(engine, prompt, prompt.size(), options, 0, 1, 1, result);
    return result;
  }

  void add_expected(Engine& engine, const Tokens& text, size_t prompt, const SamplingOptions& options, int cell,
                    int stride, double probability, std::vector<double>& result) {
    const auto generated = static_cast<int>(text.size() - prompt);
    if (generated == kPositions) {
      result[cell] += probability;
      return;
    }
    engine.target().model->kv().truncate(0);
    ASSERT_TRUE(engine.target().pass->run(text, 1).ok());
    std::set<int32_t> masked;
    std::vector<bool> allowed;
    if (options.ignore_end) masked.insert(0);
    if (!options.grammar.empty()) {
      Result<std::unique_ptr<Grammar>> grammar =
          Grammar::parse(engine.tokenizer().vocabulary(), kVocabulary, options.grammar);
      (*grammar)->move_to(std::span(text).subspan(prompt));
      for (int32_t token = 0; token < kVocabulary; ++token) allowed.push_back((*grammar)->allowed(token));
    }
    const std::vector<double> p = plain_distribution(engine.target().pass->logits(0), text, options, masked, allowed);
    for (int32_t token = 0; token < kVocabulary; ++token) {
      if (p[token] == 0) continue;
      if (token == 0) {  // the end: all that would follow is 0
        result[cell] += probability * p[token];
        continue;
      }
      Tokens longer = text;
      longer.push_back(token);
      add_expected(engine, longer, prompt, options, cell + stride * token, stride * kVocabulary, probability * p[token],
                   result);
    }
  }

  // Returns z of the test; counts what was accepted.
  double test_chain(const SamplingOptions& options, int samples, double& acceptance) {
    EngineOptions engine_options = options_;
    engine_options.sampling = options;
    Result<std::unique_ptr<Engine>> engine = Engine::open(engine_options, {});
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    const Tokens& prompt = prompt_;
    std::vector<int64_t> counts(kCells);
    int64_t drafted = 0;
    int64_t accepted = 0;
    for (int seed = 0; seed < samples; ++seed) {
      SamplingOptions seeded = options;
      seeded.seed = static_cast<uint64_t>(seed);
      Session session(**engine, std::move(Sampler::create((*engine)->tokenizer(), seeded)).value());
      // One more than is counted, so that the last counted one may be drafted.
      session.set_token_limit(kPositions + 1);
      EXPECT_TRUE(session.prefill(prompt).ok());
      while (session.stop_reason() == StopReason::kNone) {
        const Status status = session.decode_step().status();
        EXPECT_TRUE(status.ok()) << status.message();
        if (!status.ok()) return 1e9;
      }
      int cell = 0;
      int stride = 1;
      for (size_t i = prompt.size(); i < session.text().size() && i < prompt.size() + kPositions; ++i) {
        cell += stride * session.text()[i];
        stride *= kVocabulary;
      }
      ++counts[cell];
      drafted += session.stats().drafted_tokens;
      accepted += session.stats().accepted_tokens;
    }
    EXPECT_GT(drafted, samples);
    acceptance = static_cast<double>(accepted) / static_cast<double>(drafted);
    const std::vector<double> probabilities = expected(**engine, prompt, options);
    const ChiSquare test = chi_square(counts, probabilities);
    fmt::print("{:6} samples, acceptance {:.3f}: chi-square {:7.1f} over {:3} degrees of freedom, z {:+.2f}\n", samples,
               acceptance, test.statistic, test.degrees, test.z());
    EXPECT_GT(test.degrees, 3);
    return test.z();
  }

  void test_all(int samples) {
    for (const NamedChain& chain : kChains) {
      double by_noise = 0;
      double by_rejection = 0;
      fmt::print("{}\n", chain.name);
      EXPECT_LT(test_chain(chain.options, samples, by_noise), kMostZ) << chain.name;
      SamplingOptions rejection = chain.options;
      rejection.rejection = true;
      EXPECT_LT(test_chain(rejection, samples, by_rejection), kMostZ) << chain.name << ", rejection";
      // Something was accepted and something was not: all of the code ran.
      for (const double acceptance : {by_noise, by_rejection}) {
        EXPECT_GT(acceptance, 0.05) << chain.name;
        EXPECT_LT(acceptance, 0.98) << chain.name;
      }
    }
  }

  static constexpr int kCells = kVocabulary * kVocabulary * kVocabulary;
  const TempDir folder_;
  const std::string target_ = folder_.file("target.gguf");
  const std::string draft_ = folder_.file("draft.gguf");
  EngineOptions options_;
  Tokens prompt_ = {1, 4};
};

TEST_F(Distribution, IsTheTargetsAfterEachChainWithSpeculation) { test_all(2'000); }

// Drafters without a model of their own: one that is certain of what it says, and one that approximates.
TEST_F(Distribution, IsTheTargetsWhoeverDrafts) {
  options_.draft_path.clear();
  options_.expert_slots = 2;
  prompt_ = {1, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6};
  for (const char* drafter : {"ngram", "resident"}) {
    options_.drafter = drafter;
    for (const NamedChain& chain : {kChains[0], kChains[7], kChains[9]}) {
      SamplingOptions options = chain.options;
      for (const bool rejection : {false, true}) {
        options.rejection = rejection;
        fmt::print("{}, {}{}\n", drafter, chain.name, rejection ? ", rejection" : "");
        double acceptance = 0;
        EXPECT_LT(test_chain(options, 2'000, acceptance), kMostZ) << drafter << ", " << chain.name;
        EXPECT_GT(acceptance, 0.01) << chain.name;
        EXPECT_LT(acceptance, 0.98) << chain.name;
      }
    }
  }
}

TEST_F(Distribution, DISABLED_OnDemand) { test_all(100'000); }

// --- same text for a seed

const std::array kTextChains = {
    NamedChain{"temperature 0.8", {.temperature = 0.8, .seed = 11}},
    NamedChain{"temperature 1.5", {.temperature = 1.5, .seed = 12}},
    NamedChain{"chain",
               {.temperature = 1, .top_k = 40, .top_p = 0.9, .min_p = 0.05, .repeat_penalty = 1.1, .seed = 13}},
    NamedChain{"greedy, penalty", {.repeat_penalty = 1.3, .repeat_last_n = 20}},
    NamedChain{"JSON, greedy", {.grammar = json_grammar()}},
    NamedChain{"JSON", {.temperature = 0.9, .seed = 14, .grammar = json_grammar()}},
    NamedChain{"never ending", {.temperature = 1, .seed = 15, .ignore_end = true}},
};

std::vector<Tokens> texts(EngineOptions options, const SamplingOptions& sampling, int64_t* drafted = nullptr) {
  options.sampling = sampling;
  options.target_path = kTarget;
  options.context = 256;
  options.ram_bytes = uint64_t{4} << 30;
  options.threads = 1;
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  std::vector<Tokens> result;
  for (const std::string& prompt : read_prompts(4)) {
    const Generated generated = generate(**engine, (*engine)->tokenizer().tokenize(prompt), 64);
    EXPECT_TRUE(generated.status.ok()) << generated.status.message();
    result.push_back(generated.tokens);
    if (drafted != nullptr) *drafted += generated.stats.accepted_tokens;
  }
  return result;
}

TEST(SampledText, IsTheSameAtAnyDepthDraftAndMemory) {
  for (const NamedChain& chain : kTextChains) {
    const std::vector<Tokens> reference = texts(EngineOptions(), chain.options);
    if (chain.options.random()) {
      SamplingOptions other = chain.options;
      other.seed += 100;
      EXPECT_NE(texts(EngineOptions(), other), reference) << chain.name;
    }
    int64_t accepted = 0;
    for (const std::string& draft : {kDraft, kQuantizedDraft}) {
      for (const int depth : {0, 1, 4, 8, -1}) {
        EngineOptions options;
        options.draft_path = draft;
        if (depth >= 0) options.draft_depth = depth;
        if (depth == 4) options.expert_slots = 5;
        if (depth == 8) options.schedule.eviction = "lru";
        EXPECT_EQ(texts(options, chain.options, &accepted), reference) << chain.name << ", depth " << depth;
      }
    }
    EXPECT_GT(accepted, 50) << chain.name;
    for (const char* drafter : {"model", "ngram", "resident", "auto"}) {
      for (const int depth : {1, 4, 8, -1}) {
        if (std::string(drafter) == "auto" && (depth == 1 || depth == 4)) continue;  // it chooses: the same run again
        EngineOptions options;
        options.drafter = drafter;
        if (std::string(drafter) == "model") options.draft_path = kQuantizedDraft;
        if (depth >= 0 && std::string(drafter) != "auto") options.draft_depth = depth;
        options.expert_slots = depth == 8 ? 5 : 24;
        EXPECT_EQ(texts(options, chain.options), reference) << chain.name << ", " << drafter << ", depth " << depth;
      }
    }
  }
}

TEST(SampledText, JsonIsJson) {
  const Tokenizer* tokenizer = nullptr;
  EngineOptions options;
  options.target_path = kTarget;
  options.ram_bytes = uint64_t{4} << 30;
  options.sampling.temperature = 1.2;
  options.sampling.grammar = json_grammar();
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  ASSERT_TRUE(engine.ok());
  tokenizer = &(*engine)->tokenizer();
  int complete = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    options.sampling.seed = seed;
    Session session(**engine, std::move(Sampler::create(*tokenizer, options.sampling)).value());
    session.set_token_limit(200);
    ASSERT_TRUE(session.prefill(tokenizer->tokenize("settings = ")).ok());
    std::string text;
    while (session.stop_reason() == StopReason::kNone) {
      ASSERT_TRUE(session.decode_step().ok());
      text += session.take_text();
    }
    if (session.stop_reason() != StopReason::kEndOfText) continue;  // cut off
    ++complete;
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    EXPECT_TRUE(json.is_object() || json.is_array()) << text;
  }
  EXPECT_GT(complete, 5);
}

// The token a stop text is complete with is the last one, at any depth; the stop is not shown.
TEST(SampledText, StopsAtTheSameTokenAtAnyDepth) {
  std::vector<Tokens> reference;
  std::vector<std::string> shown;
  for (const int depth : {-2, 0, 3, 8}) {
    EngineOptions options;
    options.target_path = kTarget;
    options.ram_bytes = uint64_t{4} << 30;
    if (depth != -2) options.draft_path = kQuantizedDraft;
    if (depth >= 0) options.draft_depth = depth;
    Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
    ASSERT_TRUE(engine.ok());
    std::vector<Tokens> all;
    std::vector<std::string> all_shown;
    for (const std::string& prompt : read_prompts(8)) {
      Session session(**engine);
      session.set_token_limit(100);
      session.set_stop_texts({"return", "\n\n", " is not"});
      ASSERT_TRUE(session.prefill((*engine)->tokenizer().tokenize(prompt)).ok());
      std::string text;
      while (session.stop_reason() == StopReason::kNone) {
        ASSERT_TRUE(session.decode_step().ok());
        text += session.take_text();
      }
      EXPECT_EQ(text.find("return"), std::string::npos);
      EXPECT_EQ(text.find("\n\n"), std::string::npos);
      all.emplace_back(session.text().begin(), session.text().end());
      all_shown.push_back(text);
    }
    if (depth == -2) {
      reference = all;
      shown = all_shown;
    }
    EXPECT_EQ(all, reference) << depth;
    EXPECT_EQ(all_shown, shown) << depth;
  }
}

}  // namespace
}  // namespace drafthorse
