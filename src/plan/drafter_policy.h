// Which drafter drafts the next tokens, and how many: whatever promises the most tokens per second, nobody included.
// Pure: data in, choice out.
//
// A DepthPolicy per drafter says what it would bring. The first cycle is without a draft; then each drafter that the
// prompt told nothing of drafts once, shallowly (the target itself only if that may pay). From then on the best is
// taken, and now and then another is looked at: the best one deeper, the others as deep as seems best for them, 1 where
// that is 0, in turn. What looks lose against the best is a debt that a small share of the time pays back, and the next
// look comes when it is paid: looking costs little wherever drafting is of no use, however many drafters there are, and
// is frequent where it is cheap.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "plan/depth_policy.h"

namespace drafthorse {

struct DraftChoice {
  int drafter = 0;  // by the order of the names; of no meaning at depth 0
  int depth = 0;
};

struct PolicyDrafter {
  std::string name;
  bool itself = false;  // the target drafts: its tokens take about what computing one takes
};

class DrafterPolicy {
 public:
  // At least one.
  DrafterPolicy(std::vector<PolicyDrafter> drafters, int max_depth);

  // What the prompt told of a drafter: before the first cycle.
  void prime(int drafter, PromptObservation prompt) { policies_[drafter].prime(std::move(prompt)); }

  // rooms: by drafter, how deep it may draft now; 0 where it has nothing to say.
  DraftChoice next(std::span<const int> rooms);
  // Instead of what next() has just said: that drafter, to be known better.
  DraftChoice try_out(int drafter, std::span<const int> rooms);
  // What became of the choice. It may have been less deep than asked for.
  void observe(const CycleObservation& cycle);

  int64_t cycles() const { return cycles_; }
  // Before observe(), of a drafter that was not chosen and whose draft was known all the same: its first `reached`
  // tokens can be judged by the text, the first `agreed` were right.
  void hindsight(int drafter, int reached, int agreed);

  const DepthPolicy& policy(int drafter) const { return policies_[drafter]; }
  // At the best choice there is, as of now. rooms: as for next().
  double seconds_per_token(std::span<const int> rooms) const;
  // The same without that drafter, if only this share of the experts that are missing were.
  double seconds_per_token_without(int drafter, std::span<const int> rooms, double missing_share) const;
  // In words: who drafts best and what that brings, or why nobody should.
  std::string explain() const;

 private:
  DraftChoice best(std::span<const int> rooms);
  DraftChoice first_try(std::span<const int> rooms);
  DraftChoice look(std::span<const int> rooms, const DraftChoice& best);

  std::vector<PolicyDrafter> drafters_;
  std::vector<DepthPolicy> policies_;
  std::vector<bool> tried_;         // or known without trying
  std::vector<int64_t> last_look_;  // cycle
  int64_t cycles_ = 0;
  DraftChoice current_;  // what seemed best last
  DraftChoice under_way_;
  bool looking_ = false;  // the cycle under way is not what seemed best
  double best_rate_ = 0;  // of what seemed best
  double debt_s_ = 0;     // lost by looking and not paid back yet
};

}  // namespace drafthorse
