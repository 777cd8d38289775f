// Drafts from the text itself: what followed the last time the text ended as it ends now. No model, no I/O.
//
// (Yang et al., Inference with Reference, arXiv 2304.04487; known as prompt lookup.) Of the earlier places whose last
// tokens are the text's, the longest match counts, the most recent of equals. They are found as LZ77 compressors find
// theirs: a table from the hash of kGram tokens to the last place that ends in them, and a chain from each place to
// the one before it. A look-up compares at most kMostPlaces places over kMostMatch tokens; a token costs one entry,
// and taking it back restores the one before.
#pragma once

#include "draft/drafter.h"

namespace drafthorse {

class NgramDrafter final : public Drafter {
 public:
  // Fewer matching tokens are chance.
  static constexpr int32_t kGram = 3;

  // Texts of up to `context` tokens. Vocabulary: the target's.
  explicit NgramDrafter(int32_t context);
  static uint64_t bytes(int32_t context);

  std::string_view name() const override { return "ngram"; }
  Result<std::vector<int32_t>> prepare(std::span<const int32_t> text, int32_t scored, Sampler& sampler) override;
  // A match of n tokens is trusted for 2 n; 0 without one.
  int32_t reach(std::span<const int32_t> text, int32_t depth) override;
  std::vector<int32_t> foresight(std::span<const int32_t> text, int32_t depth) override;
  Result<std::vector<int32_t>> draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) override;
  void accept(int32_t) override {}
  void truncate(int32_t length) override;

 private:
  static constexpr int32_t kMostPlaces = 64;
  static constexpr int32_t kMostMatch = 32;
  static constexpr int32_t kNowhere = -1;

  // An earlier place: the index of the token that followed there.
  struct Match {
    int32_t next = kNowhere;
    int32_t length = 0;
  };
  void follow(std::span<const int32_t> text);  // tokens_ becomes `text`
  void push(int32_t token);
  void pop();
  Match find() const;
  size_t hash_before(size_t end) const;  // of the n-gram that ends before index `end`

  std::vector<int32_t> tokens_;
  std::vector<int32_t> last_place_;    // by hash: `end` of the last n-gram with it, or kNowhere
  std::vector<int32_t> place_before_;  // by end - kGram: what last_place_ held before
};

}  // namespace drafthorse
