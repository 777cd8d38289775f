#include <gtest/gtest.h>

#include "simulate/recorded_windows.h"
#include "simulate/testing/traces.h"

namespace drafthorse {
namespace {

TracedModel model() { return small_model(2, 8, 2, 8, true); }

struct Cut {
  std::vector<int> committed;
  std::vector<std::vector<std::vector<std::vector<ExpertId>>>> used;  // [cycle][token][layer]
};

template <typename Next>
Cut cut(RecordedWindows& windows, const Next& next) {
  Cut out;
  while (!windows.at_end()) {
    const ReplayWindow window = next();
    out.committed.push_back(window.committed);
    auto& tokens = out.used.emplace_back();
    for (const WindowToken* token : window.tokens) tokens.push_back(token->used);
  }
  return out;
}

Cut cut_at(const TracedText& text, int depth, WindowGuesses& guesses) {
  RecordedWindows windows(text, 2);
  const Cut out = cut(windows, [&] { return windows.at_depth(std::min(depth, windows.room())); });
  guesses = windows.guesses();
  return out;
}

// What is cut from a deep recording is what a shallower run would have been, with nothing guessed.
TEST(RecordedWindows, ShallowOnesAreThoseOfAShallowRun) {
  const RandomText text(model(), 50, 0.7, 1, 11);
  for (const int depth : {0, 1, 2, 4}) {
    // Deep enough that no window of the recording is accepted as a whole.
    const TracedText deep = text.at_depth(16);
    const TracedText shallow = text.at_depth(depth);
    RecordedWindows recorded(shallow, 2);
    const Cut expected = cut(recorded, [&] { return recorded.as_recorded(); });
    WindowGuesses guesses;
    const Cut got = cut_at(deep, depth, guesses);
    EXPECT_EQ(got.committed, expected.committed) << depth;
    EXPECT_EQ(got.used, expected.used) << depth;
    EXPECT_EQ(guesses.agreement_drawn, 0) << depth;
    EXPECT_EQ(guesses.routing_stood_in, 0) << depth;
  }
}

TEST(RecordedWindows, ItsOwnDepthNeedsNoGuess) {
  const TracedText text = RandomText(model(), 50, 0.7, 1, 12).at_depth(3);
  RecordedWindows recorded(text, 2);
  const Cut expected = cut(recorded, [&] { return recorded.as_recorded(); });
  WindowGuesses guesses;
  const Cut got = cut_at(text, 3, guesses);
  EXPECT_EQ(got.committed, expected.committed);
  EXPECT_EQ(got.used, expected.used);
  EXPECT_EQ(guesses.agreement_drawn + guesses.routing_stood_in + guesses.without_scores, 0);
}

TEST(RecordedWindows, DeeperThanRecordedIsGuessedAndSaid) {
  const TracedText text = RandomText(model(), 200, 0.7, 1, 13).at_depth(1);
  WindowGuesses guesses;
  const Cut got = cut_at(text, 4, guesses);
  EXPECT_GT(guesses.agreement_drawn, 0);
  EXPECT_GT(guesses.routing_stood_in, 0);
  EXPECT_GT(guesses.without_scores, 0);
  int tokens = 0;
  for (const int committed : got.committed) tokens += committed;
  EXPECT_EQ(tokens, 200);
  // The draws have the recording's frequency: about 0.7 + 0.7^2 + .. of four.
  const double per_cycle = 200.0 / static_cast<double>(got.committed.size());
  EXPECT_NEAR(per_cycle, 1 + 0.7 + 0.49 + 0.343 + 0.24, 0.5);
}

TEST(RecordedWindows, TheTextDoesNotDependOnTheDepth) {
  const TracedText text = RandomText(model(), 40, 0.6, 1, 14).at_depth(2);
  const auto committed_tokens = [&](int depth) {
    WindowGuesses guesses;
    const Cut got = cut_at(text, depth, guesses);
    std::vector<std::vector<std::vector<ExpertId>>> tokens;
    for (size_t c = 0; c < got.committed.size(); ++c) {
      for (int t = 0; t < got.committed[c]; ++t) tokens.push_back(got.used[c][static_cast<size_t>(t)]);
    }
    return tokens;
  };
  EXPECT_EQ(committed_tokens(0), committed_tokens(7));
}

}  // namespace
}  // namespace drafthorse
