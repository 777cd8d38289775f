#include "expert/pass_use.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "expert/histories.h"

namespace drafthorse {
namespace {

constexpr int kExperts = 24;
constexpr LayerId kLayer{1};

// One layer's experts, told of windows and prompts.
class Text {
 public:
  // of_window: by any token of the pass; used: by how many of the `count` that became text.
  void window(const std::vector<char>& of_window, const std::vector<int32_t>& used, int64_t count) {
    histories_.record(kLayer, used, count, of_window);
    histories_.advance(count);
  }
  void prompt(const std::vector<int32_t>& used, int64_t count) { window({}, used, count); }
  // A window of one token.
  void token(const std::vector<char>& used) { window(used, std::vector<int32_t>(used.begin(), used.end()), 1); }
  void set_window(double tokens) { histories_.set_window(tokens); }
  double next_pass(size_t expert) const { return histories_.of(key(expert)).next_pass; }
  double popularity(size_t expert) const { return histories_.use_rate(key(expert)); }

 private:
  static ExpertKey key(size_t expert) { return {kLayer, ExpertId{static_cast<int32_t>(expert)}}; }

  ExpertHistories histories_{std::vector<int>{0, kExperts}, true};
};

double loss(double probability, bool came) {
  constexpr double kLeast = 0.004;
  const double p = std::clamp(probability, kLeast, 1 - kLeast);
  return -std::log(came ? p : 1 - p);
}

struct Losses {
  double next_pass = 0;
  double popularity = 0;
};

// Mean per expert and pass over the second half of so many passes; next(before) draws a pass.
template <typename Next>
Losses losses(Text& text, int passes, const Next& next) {
  std::vector<char> demanded(kExperts, 0);
  Losses out;
  for (int i = 0; i < passes; ++i) {
    demanded = next(demanded);
    for (size_t e = 0; e < demanded.size() && i >= passes / 2; ++e) {
      out.next_pass += loss(text.next_pass(e), demanded[e] != 0);
      out.popularity += loss(text.popularity(e), demanded[e] != 0);
    }
    text.token(demanded);
  }
  const double count = static_cast<double>(passes - passes / 2) * kExperts;
  return {out.next_pass / count, out.popularity / count};
}

// Where every token draws anew, popularity is all there is to know.
TEST(PassUse, IsAboutAsGoodAsPopularityWhereNothingElseHelps) {
  std::mt19937 random(3);
  Text text;
  const auto draw = [&](const std::vector<char>&) {
    std::vector<char> out(kExperts);
    for (size_t e = 0; e < out.size(); ++e) {
      out[e] = std::bernoulli_distribution(static_cast<double>(e) / kExperts)(random) ? 1 : 0;
    }
    return out;
  };
  const Losses found = losses(text, 600, draw);
  EXPECT_LT(found.next_pass, 1.03 * found.popularity);
}

// A text in which what a token used goes on to be used for ten tokens, each expert as often as any other.
TEST(PassUse, LearnsThatWhatWasUsedComesAgain) {
  std::mt19937 random(5);
  Text text;
  const auto go_on = [&](const std::vector<char>& before) {
    std::vector<char> out(kExperts);
    for (size_t e = 0; e < out.size(); ++e) {
      out[e] = std::bernoulli_distribution(before[e] != 0 ? 0.9 : 0.05)(random) ? 1 : 0;
    }
    return out;
  };
  const Losses found = losses(text, 600, go_on);
  EXPECT_LT(found.next_pass, 0.8 * found.popularity);
}

// Of each pass two tokens, one of them rejected: what that used never becomes text, and comes again all the same.
TEST(PassUse, RejectedTokensCount) {
  Text text;
  text.set_window(2);
  std::vector<char> of_window(kExperts, 0);
  std::vector<int32_t> used(kExperts, 0);
  of_window[3] = of_window[4] = 1;
  used[3] = 1;
  for (int i = 0; i < 40; ++i) text.window(of_window, used, 1);
  EXPECT_GT(text.next_pass(4), 0.5);
  EXPECT_LT(text.next_pass(5), 0.1);
  EXPECT_EQ(text.popularity(4), 0);
  // Not any more.
  of_window[4] = 0;
  for (int i = 0; i < 8; ++i) text.window(of_window, used, 1);
  EXPECT_LT(text.next_pass(4), 0.1);
}

// Passes are counted as passes, however many tokens they have.
TEST(PassUse, WhatOnePassUsedIsForgotten) {
  Text text;
  text.set_window(6);
  std::vector<char> of_window(kExperts, 0);
  const std::vector<int32_t> none(kExperts, 0);
  of_window[2] = 1;
  text.window(of_window, none, 6);
  const double just_used = text.next_pass(2);
  EXPECT_GT(just_used, 2 * text.next_pass(3));
  of_window[2] = 0;
  text.window(of_window, none, 6);
  EXPECT_LT(text.next_pass(2), 0.8 * just_used);
  for (int i = 0; i < 8; ++i) text.window(of_window, none, 6);
  EXPECT_LT(text.next_pass(2), 1.5 * text.next_pass(3));
}

// Everything for a while, then nothing: what was learned is wrong at every turn.
TEST(PassUse, NoTextMakesItSureForGood) {
  PassUse uses(std::vector<int>{kExperts});
  std::vector<ExpertHistory> histories(kExperts);
  for (int i = 0; i < 5000; ++i) {
    const std::vector<int32_t> used(kExperts, i / 7 % 2);
    for (ExpertHistory& history : histories) record_uses(history, i, 1, used[0]);
    uses.record(LayerId{0}, used, 1, std::vector<char>(used.begin(), used.end()), 1);
    uses.expect(LayerId{0}, 1, histories);
    for (const double weight : uses.weights()) ASSERT_LE(std::abs(weight), 4);
  }
}

// Shares of a prompt's tokens; and for wider windows than the prompt was recorded for.
TEST(PassUse, AfterAPromptItIsPopularity) {
  Text text;
  std::vector<int32_t> used(kExperts, 0);
  for (size_t e = 0; e < used.size(); ++e) used[e] = static_cast<int32_t>(4 * e);
  for (int i = 0; i < 3; ++i) text.prompt(used, 100);
  for (const double window : {1.0, 5.0, 2.0}) {
    text.set_window(window);
    for (size_t e = 1; e < kExperts; ++e) EXPECT_GE(text.next_pass(e), text.next_pass(e - 1)) << e;
    for (const size_t e : {2, 6, 12, 20}) {
      EXPECT_NEAR(text.next_pass(e), 1 - std::pow(1 - used[e] / 100.0, window), 0.06) << e << ", " << window;
    }
  }
}

// A prompt, however surprising, teaches nothing: the same windows before and after it mean the same.
TEST(PassUse, LearnsFromWindowsOnly) {
  const auto weights_after = [](int prompts) {
    PassUse uses(std::vector<int>{kExperts});
    std::vector<ExpertHistory> histories(kExperts);
    std::vector<int32_t> used(kExperts, 0);
    std::vector<char> of_window(kExperts, 0);
    used[1] = of_window[1] = 1;
    for (int i = 0; i < 5; ++i) {
      uses.record(LayerId{0}, used, 1, of_window, 1);
      uses.expect(LayerId{0}, 1, histories);
    }
    std::reverse(used.begin(), used.end());
    for (int i = 0; i < prompts; ++i) {
      uses.record(LayerId{0}, used, 1, {}, 1);
      uses.expect(LayerId{0}, 1, histories);
    }
    return uses.weights();
  };
  EXPECT_EQ(weights_after(0), weights_after(9));
  EXPECT_NE(weights_after(0), PassUse(std::vector<int>{kExperts}).weights());
}

TEST(PassUse, ALayerWithoutExpertsTeachesNothing) {
  PassUse uses(std::vector<int>{0, kExperts});
  const PassUse::Weights before = uses.weights();
  for (int i = 0; i < 3; ++i) {
    uses.record(LayerId{0}, {}, 1, {}, 1);
    uses.expect(LayerId{0}, 1, {});
  }
  EXPECT_EQ(uses.weights(), before);
}

TEST(PassUse, NothingIsSaidOfALayerThatWasNotRecorded) {
  PassUse uses(std::vector<int>{kExperts, kExperts});
  std::vector<ExpertHistory> histories(kExperts);
  uses.record(LayerId{0}, std::vector<int32_t>(kExperts, 1), 1, {}, 1);
  uses.expect(LayerId{1}, 1, histories);
  EXPECT_LT(histories[0].next_pass, 0);
  uses.expect(LayerId{0}, 1, histories);
  EXPECT_GE(histories[0].next_pass, 0);
}

// Also of texts that do the opposite of what was learned: everything at once, then nothing, and so on.
TEST(PassUse, StaysAProbability) {
  constexpr unsigned kSeed = 7;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  PassUse uses(std::vector<int>{kExperts});
  std::vector<ExpertHistory> histories(kExperts);
  int64_t tokens = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto count = static_cast<int64_t>(1 + random() % (i % 10 == 0 ? 500 : 8));
    std::vector<char> of_window(kExperts);
    std::vector<int32_t> used(kExperts);
    const bool random_text = i / 500 % 2 == 0;
    for (size_t e = 0; e < used.size(); ++e) {
      const auto some = static_cast<int32_t>(random() % static_cast<uint64_t>(count + 1));
      used[e] = random_text ? (e % 3 == 0 ? 0 : some) : i / 7 % 2 == 0 ? static_cast<int32_t>(count) : 0;
      of_window[e] = used[e] > 0 || (random_text && random() % 2 == 0) ? 1 : 0;
    }
    const double window = static_cast<double>(1 + random() % 65);
    for (size_t e = 0; e < used.size(); ++e) record_uses(histories[e], tokens, count, used[e]);
    tokens += count;
    uses.record(LayerId{0}, used, count, i % 5 == 0 ? std::vector<char>{} : of_window, window);
    uses.expect(LayerId{0}, window, histories);
    for (const ExpertHistory& history : histories) {
      ASSERT_GE(history.next_pass, 0);
      ASSERT_LE(history.next_pass, 1);
    }
    for (const double weight : uses.weights()) ASSERT_LE(std::abs(weight), 4);
  }
}

TEST(ExpertHistories, WithoutLearningNobodySaysWhatIsNext) {
  ExpertHistories histories(std::vector<int>{2}, false);
  histories.record(LayerId{0}, std::vector<int32_t>{1, 0}, 1, std::vector<char>{1, 1});
  histories.advance(1);
  histories.set_window(4);
  EXPECT_LT(histories.of({LayerId{0}, ExpertId{0}}).next_pass, 0);
  EXPECT_GT(histories.use_rate({LayerId{0}, ExpertId{0}}), 0);
}

TEST(ExpertHistories, ARateThatIsSetIsBelieved) {
  ExpertHistories histories(std::vector<int>{2}, true);
  const ExpertKey popular{LayerId{0}, ExpertId{0}};
  histories.set_use_rate(popular, 0.8);
  EXPECT_EQ(histories.use_rate(popular), 0.8);
  histories.record(LayerId{0}, std::vector<int32_t>{0, 0}, 1, std::vector<char>{0, 0});
  histories.advance(1);
  EXPECT_GT(histories.of(popular).next_pass, 0.5);
}

}  // namespace
}  // namespace drafthorse
