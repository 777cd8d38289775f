#include "plan/miss_placement.h"

#include <algorithm>
#include <numeric>

namespace drafthorse {
namespace {

// The host must save at least this share of the time: an expert it computes will be missing again.
constexpr double kLeastGain = 0.1;

}  // namespace

std::vector<bool> compute_on_host(std::span<const MissingExpert> missing) {
  std::vector<bool> on_host(missing.size());
  // Those first that spare the link most for the host's time: some prefix of them is the best choice.
  std::vector<size_t> order(missing.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return missing[a].host_s * missing[b].copy_s < missing[b].host_s * missing[a].copy_s;
  });
  double copies_s = 0;
  for (const MissingExpert& one : missing) copies_s += one.copy_s;
  const double all_copied_s = copies_s;
  double host_s = 0;
  double best_s = all_copied_s * (1 - kLeastGain);
  size_t best = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    copies_s -= missing[order[i]].copy_s;
    host_s += missing[order[i]].host_s;
    const double ends_s = std::max(copies_s, host_s);
    if (ends_s < best_s) {
      best_s = ends_s;
      best = i + 1;
    }
  }
  for (size_t i = 0; i < best; ++i) on_host[order[i]] = true;
  return on_host;
}

}  // namespace drafthorse
