#include "engine/stop_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace drafthorse {
namespace {

using Strings = std::vector<std::string>;

std::string feed(StopText& stop, const Strings& pieces) {
  std::string text;
  for (const std::string& piece : pieces) {
    stop.push(piece);
    text += stop.take();
  }
  return text;
}

TEST(StopText, ReleasesAtOnceWhatCannotBeAStop) {
  StopText stop({"\nUser:"});
  EXPECT_EQ(feed(stop, {"Hel", "lo"}), "Hello");
  EXPECT_EQ(feed(stop, {" you\n"}), " you");
  EXPECT_EQ(feed(stop, {"Us"}), "");
  EXPECT_EQ(feed(stop, {"ual"}), "\nUsual");
  EXPECT_FALSE(stop.found());
}

TEST(StopText, SpansTokensAndIsNotReleased) {
  StopText stop({"\nUser:"});
  EXPECT_EQ(feed(stop, {"ok\n", "U", "ser", ": more"}), "ok");
  EXPECT_TRUE(stop.found());
  EXPECT_EQ(feed(stop, {"and more"}), "");
  EXPECT_EQ(stop.take_rest(), "");
}

TEST(StopText, RestComesWhenGenerationEndsOtherwise) {
  StopText stop({"END"});
  EXPECT_EQ(feed(stop, {"the E", "N"}), "the ");
  EXPECT_EQ(stop.take_rest(), "EN");
}

TEST(StopText, WithoutStopsNothingIsHeld) {
  StopText none({});
  EXPECT_EQ(feed(none, {"a", "b"}), "ab");
  StopText empty({""});
  EXPECT_EQ(feed(empty, {"a", "b"}), "ab");
  EXPECT_FALSE(empty.found());
}

// Against looking at the whole text, over few letters, so that stops begin, overlap and end everywhere.
TEST(StopText, LikeSearchingTheWholeText) {
  std::mt19937 random(1);
  const auto word = [&](size_t most) {
    std::string text(1 + random() % most, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 20'000; ++round) {
    Strings stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(word(5));
    Strings pieces;
    for (size_t i = random() % 8; i > 0; --i) pieces.push_back(word(4));
    std::string whole;
    size_t expected = std::string::npos;
    // It stops with the first piece after which a stop is there.
    for (const std::string& piece : pieces) {
      whole += piece;
      for (const std::string& stop : stops) expected = std::min(expected, whole.find(stop));
      if (expected != std::string::npos) break;
    }
    StopText stop(stops);
    std::string released;
    for (const std::string& piece : pieces) {
      const bool stopped = stop.push(piece);
      released += stop.take();
      if (stopped) break;
    }
    ASSERT_EQ(stop.found(), expected != std::string::npos) << round;
    released += stop.take_rest();
    ASSERT_EQ(released, whole.substr(0, expected)) << round;
  }
}

}  // namespace
}  // namespace drafthorse
