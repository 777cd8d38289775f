// Drafts greedily with a smaller model, which keeps its own KV cache.
#pragma once

#include "draft/drafter.h"
#include "forward/forward_pass.h"

namespace drafthorse {

class ModelDrafter final : public Drafter {
 public:
  // `pass` runs the draft model and must outlive the drafter.
  explicit ModelDrafter(ForwardPass& pass) : pass_(pass) {}

  Result<std::vector<int32_t>> prepare(std::span<const int32_t> text, int32_t scored) override;
  Result<std::vector<int32_t>> draft(std::span<const int32_t> text, int32_t depth) override;
  void accept(int32_t accepted) override;
  void reset() override { pass_.model().kv().truncate(0); }

 private:
  ForwardPass& pass_;
  int32_t text_length_ = 0;  // of the last draft's text
  int32_t drafted_ = 0;      // tokens it proposed
};

}  // namespace drafthorse
