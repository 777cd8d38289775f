// How likely the next pass is to use an expert, learned while the text goes on.
//
// Popularity says it for most texts. A text that repeats itself, and a draft that is often rejected, are different:
// what the last passes used comes again, rejected tokens included, for what takes their place is much like them. How
// much each says changes from text to text, so it is learned: a logistic regression over the log-odds of
//   - a pass using the expert, were each of its tokens to do so at the rate of recent ones: with the long memory of
//     ExpertHistory::use_rate, and with a shorter one
//   - a pass using it as often as the last ones did: with a short memory, and with a longer one
// with one set of weights for all experts, moved along the gradient after every layer of a pass.
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

  // As ExpertHistories::record(); of passes without `of_window` nothing is learned. `window`: tokens that passes take.
  void record(LayerId layer, std::span<const int32_t> used, int64_t count, std::span<const char> of_window,
              double window);
  // Sets next_pass of the layer's histories, whose rates are up to date, for a pass of `window` tokens. -1 where
  // nothing was recorded of the layer.
  void expect(LayerId layer, double window, std::span<ExpertHistory> histories);
  // Recent tokens used the expert at this rate, as far as is known. For before anything is recorded of its layer.
  void set_rate(ExpertKey key, double rate);

  const Weights& weights() const { return weights_; }

 private:
  struct OfExpert {
    double quick_rate = 0;   // of tokens
    double last_passes = 0;  // share of passes; of tokens where the layer has `of_tokens`
    double more_passes = 0;  // likewise
    Weights inputs{};        // that next_pass was computed from
  };
  struct OfLayer {
    std::vector<OfExpert> experts;
    bool recorded = false;
    bool of_tokens = true;  // since the last prompt there was no window
  };
  void learn(OfLayer& layer, std::span<const char> of_window);

  Weights weights_;
  std::vector<OfLayer> layers_;
};

}  // namespace drafthorse
