// Our logits against libllama's on the same file: the same argmax wherever its margin exceeds the error.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iostream>

#include "end_to_end/generation.h"
#include "support/oracle.h"

namespace drafthorse {

// How far two correct implementations may be apart. libllama rounds attention's weights to F16, ours does not; where
// activations are rounded again before each product, to BF16 or to 8-bit blocks, that first difference tips some of
// those roundings the other way, in every layer more. Errors are relative RMS of the logits; excluded is the share of
// positions whose margin is too small to tell. Where two experts are nearly equal to a router, the two implementations
// may choose differently, and a position's error is many times that of others: of those there may be a share.
struct Tolerance {
  double relative_rms;
  double excluded;
  double near_ties = 0;
  double margin = 4;  // RMS errors of its position that a margin must exceed to be decisive
};
inline constexpr Tolerance kFloat = {2e-3, 0.05};
inline constexpr Tolerance kBrainFloat = {1e-2, 0.05};
inline constexpr Tolerance kQuantized = {2e-2, 0.2};

inline constexpr int32_t kOracleTokens = 64;  // the oracle's own, after each prompt

inline constexpr double kNearTie = 10;  // times the median error

struct Comparison {
  double relative_rms = 0;  // of the logits' difference, over all positions but near_ties
  int near_ties = 0;
  int positions = 0;
  int excluded = 0;   // margin within so many RMS errors of the logits
  int different = 0;  // of the others, argmax differs
};

// Teacher-forced, each token a pass of its own.
inline Logits our_logits(Engine& engine, std::span<const int32_t> tokens) {
  Logits logits;
  engine.target().model->kv().truncate(0);
  for (const int32_t token : tokens) {
    const Status status = engine.target().pass->run({&token, 1}, 1);
    EXPECT_TRUE(status.ok()) << status.message();
    const std::span<const float> row = engine.target().pass->logits(0);
    logits.emplace_back(row.begin(), row.end());
  }
  return logits;
}

inline Comparison compare(const Logits& ours, const Logits& theirs, const Tolerance& tolerance) {
  Comparison result;
  std::vector<double> errors;
  std::vector<double> powers;
  const auto argmax = [](const std::vector<float>& row) {
    return std::max_element(row.begin(), row.end()) - row.begin();
  };
  for (size_t i = 0; i < theirs.size(); ++i) {
    double position_error = 0;
    double power = 0;
    for (size_t v = 0; v < theirs[i].size(); ++v) {
      const double difference = double{ours[i][v]} - double{theirs[i][v]};
      position_error += difference * difference;
      power += double{theirs[i][v]} * double{theirs[i][v]};
    }
    errors.push_back(position_error);
    powers.push_back(power);
    // A quantised activation rounded the other way, or another expert at a near tie, shifts a position's logits as a
    // whole, so each position has an error of its own.
    const double rms = std::sqrt(position_error / static_cast<double>(theirs[i].size()));
    std::vector<float> sorted = theirs[i];
    std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
    ++result.positions;
    if (sorted[0] - sorted[1] <= tolerance.margin * rms)
      ++result.excluded;
    else if (argmax(ours[i]) != argmax(theirs[i]))
      ++result.different;
  }
  std::vector<double> sorted = errors;
  std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
  const double most = tolerance.near_ties > 0 ? kNearTie * kNearTie * sorted[sorted.size() / 2] : INFINITY;
  double error = 0;
  double power = 0;
  for (size_t i = 0; i < errors.size(); ++i) {
    if (errors[i] > most) {
      ++result.near_ties;
      continue;
    }
    error += errors[i];
    power += powers[i];
  }
  result.relative_rms = std::sqrt(error / power);
  return result;
}

// Opens `path` in both, compares on `tokens` and holds the error to `tolerance`.
inline void expect_agreement(const std::string& what, const EngineOptions& options, const std::string& oracle_path,
                             const Tolerance& tolerance) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  ASSERT_TRUE(engine.ok()) << what << ": " << engine.status().message();
  Result<std::unique_ptr<Oracle>> oracle = Oracle::load(oracle_path);
  ASSERT_TRUE(oracle.ok()) << what << ": " << oracle.status().message();
  Logits ours;
  Logits theirs;
  for (const std::string& prompt : read_prompts(8)) {
    const std::vector<int32_t> start = (*oracle)->tokenize(prompt);
    EXPECT_EQ(start, (*engine)->tokenizer().tokenize(prompt));
    std::vector<int32_t> tokens = start;
    const std::vector<int32_t> rest = (*oracle)->greedy(start, kOracleTokens);
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    Logits our_rows = our_logits(**engine, tokens);
    Logits their_rows = (*oracle)->logits(tokens);
    for (size_t i = start.size() - 1; i + 1 < tokens.size(); ++i) {
      ours.push_back(std::move(our_rows[i]));
      theirs.push_back(std::move(their_rows[i]));
    }
  }
  const Comparison result = compare(ours, theirs, tolerance);
  std::cout << fmt::format("{:<40} relative RMS {:.1e}, {} positions, {:.1f} % excluded, {} near ties, {} different\n",
                           what, result.relative_rms, result.positions, 100.0 * result.excluded / result.positions,
                           result.near_ties, result.different);
  EXPECT_EQ(result.different, 0) << what;
  EXPECT_LE(result.excluded, tolerance.excluded * result.positions) << what;
  EXPECT_LE(result.near_ties, tolerance.near_ties * result.positions) << what;
  EXPECT_LE(result.relative_rms, tolerance.relative_rms) << what;
}

inline void expect_agreement(const std::string& what, const std::string& ours_path, const std::string& oracle_path,
                             const Tolerance& tolerance) {
  EngineOptions options;
  options.target_path = ours_path;
  options.context = 512;
  options.ram_bytes = uint64_t{4} << 30;
  expect_agreement(what, options, oracle_path, tolerance);
}

inline void expect_agreement(const std::string& what, const std::string& path, const Tolerance& tolerance) {
  expect_agreement(what, path, path, tolerance);
}

}  // namespace drafthorse
