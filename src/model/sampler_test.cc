// The sampler against a plain one, its noise against what noise should be, its grammar against itself.
#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/sampling.h"
#include "support/chi_square.h"
#include "support/plain_sampling.h"

namespace drafthorse {
namespace {

using Tokens = std::vector<int32_t>;

constexpr double kMostZ = 4.5;
constexpr int kDraws = 6000;

const Tokenizer& tokenizer() {
  static const std::unique_ptr<Tokenizer> loaded = [] {
    Result<GgufIndex> index = GgufIndex::open(DRAFTHORSE_TINY_VOCABULARY);
    EXPECT_TRUE(index.ok());
    EXPECT_TRUE(check_vocabulary(*index).ok());
    return std::move(Tokenizer::load(*index)).value();
  }();
  return *loaded;
}

std::unique_ptr<Sampler> sampler(const SamplingOptions& options) {
  Result<std::unique_ptr<Sampler>> result = Sampler::create(tokenizer(), options);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return std::move(result).value();
}

// Logits like a model's: most far below a few. Deterministic.
std::vector<float> logits(uint64_t seed, double spread = 3) {
  std::vector<float> out(static_cast<size_t>(tokenizer().n_tokens()));
  const Noise noise(seed, NoiseStream::kToken, 12345);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<float>(spread * (noise.gumbel(static_cast<int32_t>(i)) - 2));
  }
  return out;
}

TEST(Noise, IsUniformOverTokensPositionsAndSeeds) {
  constexpr int kCells = 256;
  constexpr int kNumbers = 200'000;
  for (int axis = 0; axis < 3; ++axis) {
    std::vector<int64_t> high(kCells);
    std::vector<int64_t> low(kCells);
    for (int i = 0; i < kNumbers; ++i) {
      const Noise noise(axis == 0 ? static_cast<uint64_t>(i) : 1, NoiseStream::kToken,
                        axis == 1 ? static_cast<uint64_t>(i) : 1);
      const uint64_t bits = noise.bits(axis == 2 ? i : 1);
      ++high[bits >> 56];
      ++low[bits & 0xFF];
    }
    const std::vector<double> equal(kCells, 1.0 / kCells);
    EXPECT_LT(std::abs(chi_square(high, equal).z()), kMostZ) << axis;
    EXPECT_LT(std::abs(chi_square(low, equal).z()), kMostZ) << axis;
  }
}

TEST(Noise, NeighboursAndStreamsAreNotCorrelated) {
  constexpr int kNumbers = 100'000;
  double sum_token = 0;
  double sum_position = 0;
  double sum_stream = 0;
  for (int i = 0; i < kNumbers; ++i) {
    const auto position = static_cast<uint64_t>(i);
    const double here = Noise(3, NoiseStream::kToken, position).uniform(7) - 0.5;
    sum_token += here * (Noise(3, NoiseStream::kToken, position).uniform(8) - 0.5);
    sum_position += here * (Noise(3, NoiseStream::kToken, position + 1).uniform(7) - 0.5);
    sum_stream += here * (Noise(3, NoiseStream::kDraft, position).uniform(7) - 0.5);
  }
  // Each product has a deviation of 1/12.
  const double deviation = std::sqrt(kNumbers) / 12;
  for (const double sum : {sum_token, sum_position, sum_stream}) EXPECT_LT(std::abs(sum), kMostZ * deviation);
}

TEST(Noise, GumbelHasItsMomentsAndItsBound) {
  constexpr double kEuler = 0.5772156649;
  constexpr int kNumbers = 400'000;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < kNumbers; ++i) {
    const uint64_t bits = Noise(9, NoiseStream::kToken, 0).bits(i);
    const double g = Noise::gumbel(bits);
    ASSERT_LE(g, Noise::gumbel_bound(bits));
    sum += g;
    squares += g * g;
  }
  const double mean = sum / kNumbers;
  EXPECT_NEAR(mean, kEuler, 0.01);
  EXPECT_NEAR(squares / kNumbers - mean * mean, M_PI * M_PI / 6, 0.03);
  for (const uint64_t bits : {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{1} << 63, ~uint64_t{0}}) {
    const double g = Noise::gumbel(bits);
    EXPECT_TRUE(std::isfinite(g));
    EXPECT_LE(g, Noise::gumbel_bound(bits));
  }
}

std::vector<SamplingOptions> chains() {
  return {
      {.temperature = 1},
      {.temperature = 0.5},
      {.temperature = 2.5, .top_k = 7},
      {.temperature = 1, .top_k = 300},
      {.temperature = 1, .top_p = 0.8},
      {.temperature = 0.8, .min_p = 0.1},
      {.temperature = 1, .repeat_penalty = 1.5, .repeat_last_n = 3},
      {.temperature = 0.9, .top_k = 40, .top_p = 0.9, .min_p = 0.05, .repeat_penalty = 1.2},
  };
}

TEST(Sampler, DistributionIsThePlainOne) {
  const Tokens text = {5, 9, 200, 9, 31};
  for (const SamplingOptions& options : chains()) {
    for (uint64_t seed = 0; seed < 5; ++seed) {
      std::vector<float> row = logits(seed);
      row[9] = 12;  // a token that the penalty touches
      std::vector<float> p;
      sampler(options)->distribution(row, text, p);
      const std::vector<double> expected = plain_distribution(row, text, options);
      double sum = 0;
      for (size_t i = 0; i < p.size(); ++i) {
        ASSERT_NEAR(p[i], expected[i], 1e-5) << i;
        sum += p[i];
      }
      EXPECT_NEAR(sum, 1, 1e-5);
    }
  }
}

TEST(Sampler, ChoosesWithThoseProbabilities) {
  const Tokens text = {5, 9, 200, 9, 31};
  const std::vector<float> row = logits(3);
  for (SamplingOptions options : chains()) {
    for (const bool rejection : {false, true}) {
      options.rejection = rejection;
      const std::unique_ptr<Sampler> one = sampler(options);
      std::vector<int64_t> counts(row.size());
      for (uint64_t seed = 0; seed < uint64_t{kDraws}; ++seed) {
        one->set_seed(seed);
        ++counts[one->decide(row, text, kNoToken)];
      }
      const ChiSquare test = chi_square(counts, plain_distribution(row, text, options));
      EXPECT_LT(test.z(), kMostZ) << options.temperature << " " << options.top_k << " " << rejection;
      EXPECT_GT(test.degrees, 2);
    }
  }
}

// Speculation's heart, without a model: a draft with other logits, one decision.
TEST(Sampler, RejectionIsExactAndNoiseIsTheTargetsOwnChoice) {
  const Tokens text = {1, 2, 3};
  const std::vector<float> target = logits(3);
  std::vector<float> draft = logits(4);
  for (size_t i = 0; i < draft.size(); ++i) draft[i] = 0.5F * target[i] + 0.5F * draft[i];
  for (SamplingOptions options : chains()) {
    int64_t accepted[2] = {0, 0};
    for (const bool rejection : {false, true}) {
      options.rejection = rejection;
      const std::unique_ptr<Sampler> one = sampler(options);
      std::vector<int64_t> counts(target.size());
      for (uint64_t seed = 0; seed < uint64_t{kDraws}; ++seed) {
        one->set_seed(seed);
        const int32_t proposed = one->propose(draft, text);
        const int32_t chosen = one->decide(target, text, proposed);
        if (chosen == proposed) ++accepted[rejection ? 1 : 0];
        if (!rejection) {
          ASSERT_EQ(chosen, one->decide(target, text, kNoToken));
        }
        ++counts[chosen];
      }
      EXPECT_LT(chi_square(counts, plain_distribution(target, text, options)).z(), kMostZ) << rejection;
    }
    // Rejection accepts 1 - (total variation), which nothing beats.
    const std::vector<double> p = plain_distribution(target, text, options);
    const std::vector<double> q = plain_distribution(draft, text, options);
    double overlap = 0;
    for (size_t i = 0; i < p.size(); ++i) overlap += std::min(p[i], q[i]);
    EXPECT_NEAR(static_cast<double>(accepted[1]) / kDraws, overlap, 0.03);
    EXPECT_LE(accepted[0], accepted[1] + kDraws / 50);
  }
}

TEST(Sampler, GreedyIsTheCaseWithoutNoise) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const std::vector<float> row = logits(seed);
    EXPECT_EQ(sampler({})->decide(row, Tokens{1}, kNoToken), greedy_token(row));
    EXPECT_EQ(sampler({.rejection = true})->decide(row, Tokens{1}, 5), greedy_token(row));
    EXPECT_EQ(sampler({.temperature = 1, .top_k = 1, .seed = seed})->decide(row, Tokens{1}, kNoToken),
              greedy_token(row));
  }
}

TEST(Sampler, NeverEndsWhereTold) {
  std::vector<float> row = logits(1);
  row[0] = 100;  // <|endoftext|>
  ASSERT_TRUE(tokenizer().is_end(0));
  EXPECT_EQ(sampler({})->decide(row, Tokens{1}, kNoToken), 0);
  for (const double temperature : {0.0, 1.0}) {
    EXPECT_NE(sampler({.temperature = temperature, .ignore_end = true})->decide(row, Tokens{1}, kNoToken), 0);
  }
}

TEST(Sampler, WhatIsNoNumberIsNoCandidate) {
  for (const SamplingOptions& options : chains()) {
    std::vector<float> row = logits(2);
    for (size_t i = 0; i < row.size(); i += 2) row[i] = std::numeric_limits<float>::quiet_NaN();
    row[1] = std::numeric_limits<float>::infinity();
    row[3] = -std::numeric_limits<float>::infinity();
    const std::unique_ptr<Sampler> one = sampler(options);
    for (uint64_t seed = 0; seed < 50; ++seed) {
      one->set_seed(seed);
      const int32_t token = one->decide(row, Tokens{7, 8}, kNoToken);
      EXPECT_TRUE(token % 2 == 1 && token > 3) << token;
    }
    std::fill(row.begin(), row.end(), std::numeric_limits<float>::quiet_NaN());
    EXPECT_EQ(one->decide(row, Tokens{7, 8}, kNoToken), kNoToken);
  }
}

TEST(Sampler, NarrowAndWideLogits) {
  const std::unique_ptr<Sampler> one = sampler({.temperature = 1});
  std::vector<float> row = logits(2);
  row.resize(row.size() + 100, 50.0F);  // a draft with more padding: its own tokens are never proposed
  EXPECT_LT(one->propose(row, Tokens{1}), tokenizer().n_tokens());
  EXPECT_LT(one->propose({row.data(), 20}, Tokens{1}), 20);
}

TEST(Sampler, RefusesOptionsThatMakeNoSense) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const SamplingOptions& options : std::vector<SamplingOptions>{
           {.temperature = -1},
           {.temperature = nan},
           {.temperature = 1e9},
           {.top_k = -1},
           {.top_p = 0},
           {.top_p = 1.1},
           {.top_p = nan},
           {.min_p = -0.1},
           {.min_p = 2},
           {.repeat_penalty = 0},
           {.repeat_penalty = nan},
           {.repeat_last_n = -1},
           {.grammar = "root ::= \"a\"", .ignore_end = true},
       }) {
    EXPECT_EQ(Sampler::create(tokenizer(), options).status().kind(), StatusKind::kUsage);
  }
}

// --- grammar

// Whether the grammar takes the text, token by token as the model would write it, and whether it may end there.
bool takes(const std::string& grammar_text, const std::string& text) {
  Result<std::unique_ptr<Grammar>> grammar =
      Grammar::parse(tokenizer().vocabulary(), tokenizer().n_tokens(), grammar_text);
  EXPECT_TRUE(grammar.ok());
  Tokens so_far;
  for (const int32_t token : tokenizer().tokenize_piece(text, false)) {
    (*grammar)->move_to(so_far);
    if (!(*grammar)->allowed(token)) return false;
    so_far.push_back(token);
  }
  (*grammar)->move_to(so_far);
  return (*grammar)->allowed(0);
}

TEST(Grammar, JsonTakesJson) {
  for (const char* text :
       {"{}", "[]", "{\"a\":1}", "[1,2.5,-3e10,true,false,null]", "{\"a\": {\"b\": [\"x\", \"\\u00e9\\n\"]}}",
        "{\n  \"key\": \"value\",\n  \"other\": []\n}", "[\"é日本😀\"]", "[0, -0.5]"}) {
    EXPECT_TRUE(takes(json_grammar(), text)) << text;
  }
  for (const char* text : {"", "{", "}", "[1,]", "{\"a\"}", "{a: 1}", "[01]", "[1.]", "['x']", "[\"a\nb\"]",
                           "[\"\\x\"]", "{} {}", "1", "true", "[] x", "{\"a\":1,}", "[\"unfinished"}) {
    EXPECT_FALSE(takes(json_grammar(), text)) << text;
  }
}

TEST(Grammar, MovesBackAndForthAsIfFromTheBeginning) {
  const Tokens text = tokenizer().tokenize_piece("{\"name\": [1, 2, {\"deep\": null}], \"é\": \"text\\n\"}", false);
  Result<std::unique_ptr<Grammar>> moving =
      Grammar::parse(tokenizer().vocabulary(), tokenizer().n_tokens(), json_grammar());
  Tokens all(static_cast<size_t>(tokenizer().n_tokens()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  const Noise noise(5, NoiseStream::kToken, 0);
  std::vector<uint8_t> expected;
  std::vector<uint8_t> actual;
  for (int i = 0; i < 60; ++i) {
    Tokens here(text.begin(), text.begin() + static_cast<int64_t>(noise.bits(i) % (text.size() + 1)));
    // Now and then a branch that leads elsewhere.
    if (i % 4 == 3) here.push_back(static_cast<int32_t>(noise.bits(1000 + i) % all.size()));
    Result<std::unique_ptr<Grammar>> fresh =
        Grammar::parse(tokenizer().vocabulary(), tokenizer().n_tokens(), json_grammar());
    (*fresh)->move_to(here);
    (*moving)->move_to(here);
    (*fresh)->allowed(all, expected);
    if (i % 2 == 0) (*moving)->allowed(static_cast<int32_t>(i));  // what was asked before does not matter
    (*moving)->allowed(all, actual);
    ASSERT_EQ(actual, expected) << i;
  }
}

TEST(Grammar, LongTextsOutliveTheKeptStates) {
  Result<std::unique_ptr<Grammar>> grammar =
      Grammar::parse(tokenizer().vocabulary(), tokenizer().n_tokens(), "root ::= \"a\"+ \"!\"");
  const int32_t a = tokenizer().tokenize_piece("a", false)[0];
  const Tokens text(5 * Grammar::kStates, a);
  (*grammar)->move_to(text);
  EXPECT_TRUE((*grammar)->allowed(a));
  (*grammar)->move_to(std::span(text).first(3));
  EXPECT_TRUE((*grammar)->allowed(a));
  (*grammar)->move_to({});
  EXPECT_FALSE((*grammar)->allowed(tokenizer().tokenize_piece("!", false)[0]));
}

// Looking at the most likely tokens first must not change what is chosen.
TEST(Grammar, ShortcutsChooseWhatTheWholeVocabularyGives) {
  std::vector<SamplingOptions> options = chains();
  options.push_back({});
  options.push_back({.repeat_penalty = 1.3});
  const Tokens prompt = {1, 2};
  const Tokens written = tokenizer().tokenize_piece("{\"a", false);
  Tokens text = prompt;
  text.insert(text.end(), written.begin(), written.end());
  for (const char* grammar_text : {json_grammar(), "root ::= \"{\\\"a\" [0-9]+ | \"{\\\"a\" [xyz]"}) {
    Result<std::unique_ptr<Grammar>> grammar =
        Grammar::parse(tokenizer().vocabulary(), tokenizer().n_tokens(), grammar_text);
    (*grammar)->move_to(written);
    Tokens all(static_cast<size_t>(tokenizer().n_tokens()));
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
    std::vector<uint8_t> verdicts;
    (*grammar)->allowed(all, verdicts);
    const std::vector<bool> allowed(verdicts.begin(), verdicts.end());
    for (SamplingOptions one : options) {
      one.grammar = grammar_text;
      const std::unique_ptr<Sampler> constrained = sampler(one);
      constrained->begin(prompt.size());
      for (uint64_t seed = 0; seed < 20; ++seed) {
        constrained->set_seed(seed);
        one.seed = seed;
        const std::vector<float> row = logits(seed, seed % 2 == 0 ? 3 : 0.5);
        const std::vector<double> p = plain_distribution(row, text, one, {}, allowed);
        const Noise noise(seed, NoiseStream::kToken, text.size());
        int32_t expected = kNoToken;
        double best = -1e300;
        for (size_t i = 0; i < p.size(); ++i) {
          const double score = std::log(p[i]) + (one.random() ? noise.gumbel(static_cast<int32_t>(i)) : 0);
          if (score > best) {
            best = score;
            expected = static_cast<int32_t>(i);
          }
        }
        EXPECT_EQ(constrained->decide(row, text, kNoToken), expected)
            << one.temperature << " " << one.top_k << " " << one.top_p << " " << one.min_p << " seed " << seed;
      }
    }
  }
}

TEST(Grammar, NothingAllowedIsSaid) {
  const std::unique_ptr<Sampler> one = sampler({.temperature = 1, .grammar = "root ::= \"ab\""});
  one->begin(1);
  const int32_t x = tokenizer().tokenize_piece("x", false)[0];
  EXPECT_EQ(one->decide(logits(1), Tokens{1, x}, kNoToken), kNoToken);
  // And may be taken back.
  EXPECT_NE(one->decide(logits(1), Tokens{1}, kNoToken), kNoToken);
}

TEST(Grammar, RefusesWhatIsNone) {
  testing::internal::CaptureStderr();
  for (const char* text :
       {" \n", "root", "root ::= \"a", "root ::= (", "root ::= missing", "other ::= \"a\"", "root ::= root \"a\"",
        "root ::= [a-", "root ::= \"a\"{99999999}", "\xff\xfe", "root ::= \"a\" )"}) {
    const Status status = Grammar::parse(tokenizer().vocabulary(), tokenizer().n_tokens(), text).status();
    EXPECT_EQ(status.kind(), StatusKind::kUsage) << text;
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
    EXPECT_LT(status.message().size(), 200U) << status.message();
  }
  EXPECT_EQ(Grammar::parse(tokenizer().vocabulary(), tokenizer().n_tokens(), std::string("root\0x", 6)).status().kind(),
            StatusKind::kUsage);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace drafthorse
