// Ctrl-C: the first one asks, the second one ends the process the hard way.
#pragma once

#include <atomic>

namespace drafthorse::cli {

// While it lives, Ctrl-C sets the flag; if it is still set when the next one comes, that one kills. One at a time.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  std::atomic<bool>* flag();
};

}  // namespace drafthorse::cli
