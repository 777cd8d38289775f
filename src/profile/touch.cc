// What memory costs that a process uses for the first time: the system finds and clears it.
#include <algorithm>

#include "base/arena.h"
#include "base/clock.h"
#include "base/units.h"
#include "profile/measure.h"

namespace drafthorse {

Status measure_first_touch(MachineProfile& profile) {
  constexpr uint64_t kBytes = 128 * kMiB;
  constexpr uint64_t kPage = 4096;
  constexpr int kRounds = 3;
  const SteadyClock clock;
  double least = 0;
  for (int round = 0; round < kRounds; ++round) {
    ASSIGN_OR_RETURN(const Arena arena, Arena::reserve(kBytes));
    const int64_t start = clock.now_ns();
    for (uint64_t at = 0; at < kBytes; at += kPage) arena.data()[at] = std::byte{1};
    const double taken = seconds(clock.now_ns() - start) / static_cast<double>(kBytes);
    // Where a virtual machine gives what it does not use back to its host, the first round has to get it from there.
    least = round == 0 ? taken : std::min(least, taken);
  }
  profile.first_touch_s_per_byte = least;
  return {};
}

}  // namespace drafthorse
