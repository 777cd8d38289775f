// Drafts with a smaller model, which keeps its own KV cache.
#pragma once

#include "draft/drafter.h"
#include "forward/forward_pass.h"

namespace drafthorse {

class ModelDrafter final : public Drafter {
 public:
  // `pass` runs the draft model and must outlive the drafter. The two vocabularies are the same but may be padded to
  // different sizes: a token the target does not have is never proposed, one the draft does not have is read as
  // another (a draft's input decides how good it is, never what the text is).
  ModelDrafter(ForwardPass& pass, int32_t target_vocabulary) : pass_(pass), target_vocabulary_(target_vocabulary) {}

  std::string_view name() const override { return "model"; }
  int32_t reach(std::span<const int32_t>, int32_t depth) override { return depth; }
  Result<std::vector<int32_t>> prepare(std::span<const int32_t> text, int32_t scored, Sampler& sampler) override;
  Result<std::vector<int32_t>> draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) override;
  void accept(int32_t accepted) override;
  void truncate(int32_t length) override;

 private:
  Status run(std::span<const int32_t> tokens, int32_t logits_wanted);

  ForwardPass& pass_;
  int32_t target_vocabulary_;
  int32_t committed_ = 0;    // rows of the KV cache that hold tokens of the text, whatever became of a draft since
  int32_t text_length_ = 0;  // of the last draft's text
  int32_t drafted_ = 0;      // tokens it proposed
};

}  // namespace drafthorse
