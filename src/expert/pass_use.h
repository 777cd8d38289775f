// How likely the next pass is to use an expert, learned while the text goes on.
//
// Popularity says it for most texts. A text that repeats itself, and a draft that is often rejected, are different:
// what the last passes used comes again, rejected tokens included, for what takes their place is much like them. How
// much each says changes from text to text, so it is learned: a logistic regression over the log-odds of
//   - a pass using the expert, were each of its tokens to do so at the rate of recent ones: with the long memory of
//     ExpertHistory::use_rate, and with a shorter one
//   - a pass using it as often as the last ones did: with a short memory, and with a longer one
// with one set of weights for all experts, moved after every pass along the gradient. Takes 0.1 us per expert and pass.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "expert/eviction.h"

namespace drafthorse {

class PassUse {
 public:
  static constexpr size_t kInputs = 5;  // those above, and 1
  using Weights = std::array<double, kInputs>;

  explicit PassUse(std::span<const int> experts_by_layer);

  // The pass under way uses the expert, for whichever of its tokens. Saying so again changes nothing.
  void demanded(ExpertKey key) { experts_[index(key.layer)][index(key.expert)].demanded = true; }

  // The layer's part of the pass is over: of its tokens `count` became part of the text, used[e] of them used expert e.
  // `histories` are the layer's, with these tokens in them; their next_pass is set, for a pass of `window` tokens.
  // Many tokens are a prompt's or many texts': nothing is learned of those.
  void record(LayerId layer, std::span<const int32_t> used, int64_t count, double window,
              std::span<ExpertHistory> histories);

  const Weights& weights() const { return weights_; }

 private:
  struct OfExpert {
    bool demanded = false;
    double quick_rate = 0;   // of tokens
    double last_passes = 0;  // of passes
    double more_passes = 0;  // likewise
    Weights inputs{};        // as next_pass was computed from them
  };

  Weights weights_;
  std::vector<std::vector<OfExpert>> experts_;  // [layer][expert]
};

}  // namespace drafthorse
