#include "simulate/recorded_windows.h"

#include <algorithm>

#include "base/check.h"

namespace drafthorse {
namespace {

// In [0, 1), a function of the position alone (splitmix64).
double draw(int position) {
  uint64_t z = static_cast<uint64_t>(position) * 0x9E3779B97F4A7C15ULL + 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

WindowToken token_of(const TracedCycle& cycle, int token, int n_expert_used) {
  WindowToken out;
  const auto k = static_cast<size_t>(n_expert_used);
  for (const std::vector<ExpertId>& used : cycle.used) {
    auto& of_layer = out.used.emplace_back();
    if (used.empty()) continue;
    const auto first = used.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(token) * k);
    of_layer.assign(first, first + n_expert_used);
  }
  for (const TracedScore& score : cycle.scores) {
    if (score.token == token) out.scores.push_back(score);
  }
  return out;
}

bool drafted_from(const WindowToken& token) {
  return std::any_of(token.scores.begin(), token.scores.end(),
                     [](const TracedScore& score) { return score.source != ScoreSource::kNextGate; });
}

}  // namespace

RecordedWindows::RecordedWindows(const TracedText& text, int n_expert_used) {
  int64_t right = 0;
  int64_t wrong = 0;
  for (const TracedCycle& cycle : text.cycles) {
    const bool by_model = cycle.depth > 0;
    cycles_.push_back({cycle.depth, cycle.committed, cycle.tokens, by_model ? 0 : cycle.draft_s});
    for (int t = 0; t < cycle.committed; ++t) {
      Position position{token_of(cycle, t, n_expert_used), by_model, std::nullopt, {}};
      if (by_model && t + 1 < cycle.tokens) {
        position.agrees = t + 1 < cycle.committed;
        ++(*position.agrees ? right : wrong);
      }
      for (int w = t + 1; w < cycle.tokens && t + 1 == cycle.committed; ++w) {
        position.wrong.push_back(token_of(cycle, w, n_expert_used));
      }
      positions_.push_back(std::move(position));
    }
  }
  agreement_ = right + wrong > 0 ? static_cast<double>(right) / static_cast<double>(right + wrong) : 0;
}

bool RecordedWindows::agrees(int position) {
  const std::optional<bool>& known = positions_[static_cast<size_t>(position)].agrees;
  if (known) return *known;
  ++guesses_.agreement_drawn;
  return draw(position) < agreement_;
}

const WindowToken* RecordedWindows::count_scores(const WindowToken& token, bool from) {
  if (from && !drafted_from(token)) ++guesses_.without_scores;
  return &token;
}

ReplayWindow RecordedWindows::as_recorded() {
  CHECK(!at_end());
  const Recorded& cycle = cycles_[next_cycle_++];
  ReplayWindow window{cycle.depth, cycle.committed, cycle.other_draft_s, {}};
  for (int t = 0; t < cycle.committed; ++t) window.tokens.push_back(&positions_[static_cast<size_t>(at_ + t)].token);
  const Position& last = positions_[static_cast<size_t>(at_ + cycle.committed - 1)];
  for (const WindowToken& token : last.wrong) window.tokens.push_back(&token);
  CHECK(static_cast<int>(window.tokens.size()) == cycle.tokens);
  at_ += cycle.committed;
  return window;
}

ReplayWindow RecordedWindows::at_depth(int depth) {
  CHECK(!at_end() && depth <= room());
  ReplayWindow window{depth, 1, 0, {count_scores(positions_[static_cast<size_t>(at_)].token, depth > 0)}};
  guesses_.drafted += depth;
  int left = depth;
  int position = at_;
  while (left > 0 && agrees(position)) {
    ++position;
    --left;
    ++window.committed;
    window.tokens.push_back(count_scores(positions_[static_cast<size_t>(position)].token, left > 0));
  }
  static const std::vector<WindowToken> nothing;
  const Position& last = positions_[static_cast<size_t>(position)];
  const std::vector<WindowToken>& wrong = last.by_model ? last.wrong : nothing;
  for (int w = 0; left > 0; ++w, --left) {
    if (static_cast<size_t>(w) < wrong.size()) {
      window.tokens.push_back(count_scores(wrong[static_cast<size_t>(w)], left > 1));
      continue;
    }
    ++guesses_.routing_stood_in;
    const int instead = std::min(position + 1 + w, positions() - 1);
    window.tokens.push_back(count_scores(positions_[static_cast<size_t>(instead)].token, left > 1));
  }
  at_ += window.committed;
  return window;
}

}  // namespace drafthorse
