#include "simulate/compute_cost.h"

#include <algorithm>

namespace drafthorse {
namespace {

// y = base + slope * x, neither below 0, with the mean of y kept.
struct LineFit {
  double n = 0, x = 0, xx = 0, y = 0, xy = 0;

  void add(double at, double value) {
    ++n;
    x += at;
    xx += at * at;
    y += value;
    xy += at * value;
  }
  void solve(double& base, double& slope) const {
    constexpr double kLeastVariance = 0.05;
    if (n == 0) return;
    const double mean_x = x / n;
    const double mean_y = y / n;
    const double variance = xx / n - mean_x * mean_x;
    slope = variance > kLeastVariance ? (xy / n - mean_x * mean_y) / variance : 0.5 * mean_y / mean_x;
    slope = std::clamp(slope, 0.0, mean_y / mean_x);
    base = std::max(0.0, mean_y - slope * mean_x);
  }
};

// y = a * u + b * v, neither below 0, with the sum of y kept.
struct PlaneFit {
  double uu = 0, uv = 0, vv = 0, uy = 0, vy = 0, u = 0, v = 0, y = 0;

  void add(double first, double second, double value) {
    uu += first * first;
    uv += first * second;
    vv += second * second;
    uy += first * value;
    vy += second * value;
    u += first;
    v += second;
    y += value;
  }
  void solve(double& a, double& b) const {
    if (u <= 0 || v <= 0) return;
    const double determinant = uu * vv - uv * uv;
    if (determinant > 1e-6 * uu * vv) {
      a = (uy * vv - vy * uv) / determinant;
      b = (vy * uu - uy * uv) / determinant;
    } else {  // each expert had as many tokens: the weights' share is not told apart from the rows'
      a = y / u;
      b = 0;
    }
    if (a < 0) {
      a = 0;
      b = y / v;
    } else if (b < 0) {
      a = y / u;
      b = 0;
    }
    const double said = a * u + b * v;
    const double scale = said > 0 ? y / said : 0;
    a *= scale;
    b *= scale;
  }
};

// The table's value for `at` tokens, 1 or more, fractions included.
double look_up(const std::vector<double>& table, double at) {
  if (table.size() == 1) return table.front() * at;
  const size_t left = std::min(static_cast<size_t>(at) - 1, table.size() - 2);
  return std::max(0.0, table[left] + (table[left + 1] - table[left]) * (at - 1 - static_cast<double>(left)));
}

int distinct(const std::vector<ExpertId>& used) {
  std::vector<ExpertId> sorted = used;
  std::sort(sorted.begin(), sorted.end());
  return static_cast<int>(std::unique(sorted.begin(), sorted.end()) - sorted.begin());
}

}  // namespace

double ComputeCost::stage(int tokens) const {
  return stage_table.empty() ? stage_s + stage_token_s * tokens : look_up(stage_table, tokens);
}

double ComputeCost::experts(int experts, int rows) const {
  if (expert_table.empty()) return expert_s * experts + expert_row_s * rows;
  return experts > 0 ? experts * look_up(expert_table, static_cast<double>(rows) / experts) : 0;
}

double ComputeCost::head(int tokens) const {
  return head_table.empty() ? head_s + head_token_s * tokens : look_up(head_table, tokens);
}

ComputeCost measured_cost(const RoutingTrace& trace) {
  ComputeCost cost;
  LineFit stages;
  LineFit heads;
  PlaneFit experts;
  double draft_s = 0;
  double drafted = 0;
  for (const TracedText& text : trace.texts) {
    for (const TracedCycle& cycle : text.cycles) {
      if (cycle.depth > 0) {
        draft_s += cycle.draft_s;
        drafted += cycle.tokens - 1;
      }
      heads.add(cycle.tokens, cycle.head_s);
      for (size_t layer = 0; layer < cycle.used.size(); ++layer) {
        if (cycle.used[layer].empty()) continue;
        const TracedLayerTimes& times = cycle.times[layer];
        stages.add(cycle.tokens, times.stage_s);
        experts.add(distinct(cycle.used[layer]), static_cast<double>(cycle.used[layer].size()), times.experts_s);
      }
    }
  }
  cost.draft_token_s = drafted > 0 ? draft_s / drafted : 0;
  stages.solve(cost.stage_s, cost.stage_token_s);
  heads.solve(cost.head_s, cost.head_token_s);
  experts.solve(cost.expert_s, cost.expert_row_s);
  return cost;
}

}  // namespace drafthorse
