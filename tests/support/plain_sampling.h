// What the chain of samplers should leave, written plainly: the reference for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <span>
#include <vector>

#include "model/sampler.h"

namespace drafthorse {

// Probabilities by token. `text` is what the penalty looks at; `allowed` is the grammar's word (empty: all).
inline std::vector<double> plain_distribution(std::span<const float> logits, std::span<const int32_t> text,
                                              const SamplingOptions& o, const std::set<int32_t>& masked = {},
                                              const std::vector<bool>& allowed = {}) {
  struct Candidate {
    int32_t token;
    double logit;
    double p;
  };
  std::vector<Candidate> candidates;
  const size_t look_at = std::min(text.size(), static_cast<size_t>(o.repeat_last_n));
  const std::set<int32_t> lately(text.end() - static_cast<std::ptrdiff_t>(look_at), text.end());
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto token = static_cast<int32_t>(i);
    if (masked.contains(token) || (!allowed.empty() && !allowed[i])) continue;
    double logit = logits[i];
    if (lately.contains(token)) logit = logit > 0 ? logit / o.repeat_penalty : logit * o.repeat_penalty;
    candidates.push_back({token, logit, 0});
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  const auto normalise = [&](double temperature) {
    double sum = 0;
    for (Candidate& one : candidates) sum += one.p = std::exp((one.logit - candidates[0].logit) / temperature);
    for (Candidate& one : candidates) one.p /= sum;
  };
  std::vector<double> p(logits.size());
  if (candidates.empty()) return p;
  if (o.temperature == 0) {
    p[candidates[0].token] = 1;
    return p;
  }
  if (o.top_k > 0) candidates.resize(std::min(candidates.size(), static_cast<size_t>(o.top_k)));
  normalise(1);
  if (o.top_p < 1) {
    double sum = 0;
    size_t kept = 0;
    while (kept < candidates.size() && sum < o.top_p) sum += candidates[kept++].p;
    candidates.resize(kept);
  }
  if (o.min_p > 0) {
    const double least = candidates[0].p * o.min_p;
    std::erase_if(candidates, [&](const Candidate& one) { return one.p < least; });
  }
  normalise(o.temperature);
  for (const Candidate& one : candidates) p[one.token] = one.p;
  return p;
}

}  // namespace drafthorse
