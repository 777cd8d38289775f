#include "interrupts.h"

#include <csignal>

namespace drafthorse::cli {
namespace {

// A signal handler has no other way to reach anybody.
std::atomic<bool> g_interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_interrupt(int) {
  if (!g_interrupted.exchange(true)) return;
  std::signal(SIGINT, SIG_DFL);
  std::raise(SIGINT);
}

}  // namespace

Interrupts::Interrupts() {
  g_interrupted = false;
  std::signal(SIGINT, on_interrupt);
}

Interrupts::~Interrupts() { std::signal(SIGINT, SIG_DFL); }

std::atomic<bool>* Interrupts::flag() { return &g_interrupted; }

}  // namespace drafthorse::cli
