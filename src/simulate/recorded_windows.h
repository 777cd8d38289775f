// The windows of a recorded text: as they were, or cut anew for another depth of drafting.
//
// What is drafted after a given text, which experts its tokens use and what routers say of them do not depend on how
// deep the draft went, so a window of another depth is put together from what is known of each position of the text:
//   - its token's experts and scores: always known, each token of the text was verified once;
//   - whether the draft proposed what the text went on with: known wherever the recording drafted past the position.
//     Where it did not (a window ended there), it is drawn, the same each time, with the recording's own frequency;
//   - what the draft would have said after a wrong proposal: known as far as the recording drafted. Beyond it stand the
//     text's own tokens at these positions, which are likely to use much the same experts.
// Both kinds of guesses are counted. Windows of other drafters than the draft model say nothing of its drafts.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "schedule/routing_trace.h"

namespace drafthorse {

// A token's experts, [layer][n_expert_used], and what was said of it; token numbers in the scores mean nothing.
struct WindowToken {
  std::vector<std::vector<ExpertId>> used;
  std::vector<TracedScore> scores;
};

struct ReplayWindow {
  int depth = 0;                           // asked for
  int committed = 0;                       // of its tokens
  double other_draft_s = 0;                // of a drafter that is not the draft model
  std::vector<const WindowToken*> tokens;  // at least one
};

struct WindowGuesses {
  int64_t drafted = 0;           // tokens of cut windows
  int64_t agreement_drawn = 0;   // of them, whether they are right was drawn
  int64_t routing_stood_in = 0;  // of them, experts are those of other tokens
  int64_t without_scores = 0;    // of them, that a draft would have scored and the recording did not
};

class RecordedWindows {
 public:
  RecordedWindows(const TracedText& text, int n_expert_used);

  int positions() const { return static_cast<int>(positions_.size()); }
  // Tokens of the text that follow the one at the present position and are known.
  int room() const { return positions() - at_ - 1; }
  bool at_end() const { return at_ >= positions(); }

  // The next cycle as it was.
  ReplayWindow as_recorded();
  // The next cycle at this depth, at most room().
  ReplayWindow at_depth(int depth);

  const WindowGuesses& guesses() const { return guesses_; }

 private:
  struct Position {
    WindowToken token;
    bool by_model = true;            // the draft model, and not another drafter, went on from here
    std::optional<bool> agrees;      // its proposal for what follows is right
    std::vector<WindowToken> wrong;  // what was verified in vain after this token
  };
  bool agrees(int position);
  const WindowToken* count_scores(const WindowToken& token, bool drafted_from);

  struct Recorded {
    int depth = 0;
    int committed = 0;
    int tokens = 0;
    double other_draft_s = 0;
  };
  std::vector<Position> positions_;
  std::vector<Recorded> cycles_;
  size_t next_cycle_ = 0;
  int at_ = 0;
  double agreement_ = 0;  // share of proposals that were right
  WindowGuesses guesses_;
};

}  // namespace drafthorse
