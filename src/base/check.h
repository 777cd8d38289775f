// CHECK is for our bugs only: it prints the broken condition and aborts. It stays on in release builds.
// Whatever input or the machine can cause is a Status (status.h).
#pragma once

#include <cstdio>
#include <cstdlib>

namespace drafthorse {

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\nThis is a bug in drafthorse; please report it.\n", file, line,
               condition);
  std::abort();
}

}  // namespace drafthorse

#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::drafthorse::check_failed(__FILE__, __LINE__, #condition))
