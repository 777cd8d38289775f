#include "expert/pass_use.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace drafthorse {
namespace {

constexpr int kExperts = 24;
constexpr LayerId kLayer{1};

// One layer's experts, told of passes as a cache tells.
class Text {
 public:
  // demanded: by any token of the pass; used: by how many of the `count` that became text.
  void pass(const std::vector<char>& demanded, const std::vector<int32_t>& used, int64_t count, double window) {
    for (int32_t e = 0; e < kExperts; ++e) {
      if (demanded[static_cast<size_t>(e)] != 0) uses_.demanded({kLayer, ExpertId{e}});
    }
    for (size_t e = 0; e < histories_.size(); ++e) record_uses(histories_[e], tokens_, count, used[e]);
    uses_.record(kLayer, used, count, window, histories_);
    tokens_ += count;
  }
  // A pass of one token.
  void token(const std::vector<char>& demanded) {
    pass(demanded, std::vector<int32_t>(demanded.begin(), demanded.end()), 1, 1);
  }
  double next_pass(size_t expert) const { return histories_[expert].next_pass; }
  double popularity(size_t expert) const { return use_rate_at(histories_[expert], tokens_); }
  const PassUse& uses() const { return uses_; }

 private:
  PassUse uses_{std::vector<int>{0, kExperts}};
  std::vector<ExpertHistory> histories_{kExperts};
  int64_t tokens_ = 0;
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

TEST(PassUse, NobodyHasSaidBeforeTheFirstPass) {
  const Text text;
  EXPECT_LT(text.next_pass(0), 0);
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
  const double first = text.uses().weights()[2];
  const Losses found = losses(text, 600, go_on);
  EXPECT_LT(found.next_pass, 0.8 * found.popularity);
  EXPECT_GT(text.uses().weights()[2], first);
}

// Of each pass two tokens, one of them rejected: what that used never becomes text, and comes again all the same.
TEST(PassUse, RejectedTokensCount) {
  Text text;
  std::vector<char> demanded(kExperts, 0);
  std::vector<int32_t> used(kExperts, 0);
  demanded[3] = demanded[4] = 1;
  used[3] = 1;
  for (int i = 0; i < 40; ++i) text.pass(demanded, used, 1, 2);
  EXPECT_GT(text.next_pass(4), 0.5);
  EXPECT_LT(text.next_pass(5), 0.1);
  EXPECT_EQ(text.popularity(4), 0);
  // Not any more.
  demanded[4] = 0;
  for (int i = 0; i < 8; ++i) text.pass(demanded, used, 1, 2);
  EXPECT_LT(text.next_pass(4), 0.1);
}

TEST(PassUse, OfAPromptOnlyTheSharesAreTaken) {
  Text text;
  const PassUse::Weights before = text.uses().weights();
  std::vector<int32_t> used(kExperts, 0);
  for (size_t e = 0; e < used.size(); ++e) used[e] = static_cast<int32_t>(4 * e);
  for (int i = 0; i < 3; ++i) text.pass(std::vector<char>(kExperts, 1), used, 100, 1);
  EXPECT_EQ(text.uses().weights(), before);
  for (size_t e = 1; e < kExperts; ++e) EXPECT_GE(text.next_pass(e), text.next_pass(e - 1)) << e;
  for (const size_t e : {6, 12, 20}) EXPECT_NEAR(text.next_pass(e), used[e] / 100.0, 0.06) << e;
}

// A wider pass uses more.
TEST(PassUse, IsForAPassOfSoManyTokens) {
  const auto after = [](double window) {
    Text text;
    std::vector<int32_t> used(kExperts, 10);
    text.pass(std::vector<char>(kExperts, 1), used, 100, window);
    return text.next_pass(0);
  };
  EXPECT_NEAR(after(1), 0.1, 0.02);
  EXPECT_NEAR(after(5), 1 - std::pow(0.9, 5), 0.04);
}

TEST(PassUse, StaysAProbability) {
  constexpr unsigned kSeed = 7;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  Text text;
  for (int i = 0; i < 3000; ++i) {
    const auto count = static_cast<int64_t>(1 + random() % (i % 10 == 0 ? 500 : 8));
    std::vector<char> demanded(kExperts);
    std::vector<int32_t> used(kExperts);
    for (size_t e = 0; e < demanded.size(); ++e) {
      used[e] = static_cast<int32_t>(e % 3 == 0 ? 0 : e % 3 == 1 ? count : random() % static_cast<uint64_t>(count + 1));
      demanded[e] = used[e] > 0 || random() % 2 == 0 ? 1 : 0;
    }
    text.pass(demanded, used, count, static_cast<double>(1 + random() % 65));
    for (size_t e = 0; e < kExperts; ++e) {
      ASSERT_GE(text.next_pass(e), 0);
      ASSERT_LE(text.next_pass(e), 1);
    }
    for (const double weight : text.uses().weights()) ASSERT_LT(std::abs(weight), 20);
  }
}

}  // namespace
}  // namespace drafthorse
