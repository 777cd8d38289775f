// Texts at which generation stops. They may span tokens, so text is held back for as long as it may be the beginning
// of one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace drafthorse {

class StopText {
 public:
  // Empty ones are ignored.
  explicit StopText(std::vector<std::string> stops);

  // Takes the next piece of text. True once a stop has been seen: it, and what follows it, is never released. Of
  // several that are complete the one that begins first counts.
  bool push(std::string_view piece);
  bool found() const { return found_; }

  // Text that cannot be part of a stop any more; each byte is released once.
  std::string take();
  // All that is held back, for when generation ends without a stop.
  std::string take_rest();

 private:
  std::vector<std::string> stops_;
  std::string held_;  // not released yet
  size_t safe_ = 0;   // bytes of held_ that can be released
  bool found_ = false;
};

}  // namespace drafthorse
