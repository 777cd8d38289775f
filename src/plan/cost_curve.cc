#include "plan/cost_curve.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace drafthorse {

CostCurve::CostCurve(std::vector<Point> points) : points_(std::move(points)) {
  if (points_.empty()) return;
  for (size_t i = points_.size() - 1; i-- > 0;) {
    CHECK(points_[i].count < points_[i + 1].count);
    points_[i].seconds = std::min(points_[i].seconds, points_[i + 1].seconds);
  }
  CHECK(points_.front().count >= 0 && points_.front().seconds >= 0);
  if (points_.size() == 1) {
    const Point only = points_.front();
    points_.push_back(only.count > 0 ? Point{2 * only.count, 2 * only.seconds} : Point{1, only.seconds});
  }
}

CostCurve CostCurve::roofline(double floor_s, double per_count_s) {
  if (per_count_s <= 0) return line(floor_s, 0);
  if (floor_s <= 0) return line(0, per_count_s);
  const double knee = floor_s / per_count_s;
  return CostCurve({{0, floor_s}, {knee, floor_s}, {2 * knee, 2 * floor_s}});
}

CostCurve CostCurve::line(double base_s, double per_count_s) {
  return CostCurve({{0, base_s}, {1, base_s + per_count_s}});
}

double CostCurve::at(double count) const {
  if (points_.empty() || count <= 0) return 0;
  if (count <= points_.front().count) return points_.front().seconds;
  size_t right = 1;
  while (right + 1 < points_.size() && points_[right].count < count) ++right;
  const Point& a = points_[right - 1];
  const Point& b = points_[right];
  return a.seconds + (b.seconds - a.seconds) / (b.count - a.count) * (count - a.count);
}

CostCurve CostCurve::plus(const CostCurve& other) const {
  if (points_.empty()) return other;
  if (other.points_.empty()) return *this;
  std::vector<double> counts;
  for (const Point& point : points_) counts.push_back(point.count);
  for (const Point& point : other.points_) counts.push_back(point.count);
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  // What at() says of 0 is that nothing is done.
  const auto value = [](const CostCurve& curve, double count) { return count > 0 ? curve.at(count) : curve.base(); };
  std::vector<Point> sum;
  for (const double count : counts) sum.push_back({count, value(*this, count) + value(other, count)});
  return CostCurve(std::move(sum));
}

CostCurve CostCurve::scaled(double factor) const {
  CostCurve out = *this;
  for (Point& point : out.points_) point.seconds *= factor;
  return out;
}

LinearFit fit_line(const std::vector<CostCurve::Point>& points) {
  LinearFit fit;
  // Weighted by 1 / seconds^2.
  double w = 0, wx = 0, wxx = 0, wy = 0, wxy = 0;
  for (const auto& [count, seconds] : points) {
    if (seconds <= 0) continue;
    const double weight = 1 / (seconds * seconds);
    w += weight;
    wx += weight * count;
    wxx += weight * count * count;
    wy += weight * seconds;
    wxy += weight * count * seconds;
  }
  if (w == 0) return fit;
  const double determinant = w * wxx - wx * wx;
  fit.slope = determinant > 1e-12 * w * wxx ? (w * wxy - wx * wy) / determinant : 0;
  fit.base = (wy - fit.slope * wx) / w;
  if (fit.slope < 0) {
    fit.slope = 0;
    fit.base = wy / w;
  } else if (fit.base < 0) {
    fit.base = 0;
    fit.slope = wxy / wxx;
  }
  for (const auto& [count, seconds] : points) {
    if (seconds <= 0) continue;
    fit.worst_error = std::max(fit.worst_error, std::abs(fit.base + fit.slope * count - seconds) / seconds);
  }
  return fit;
}

}  // namespace drafthorse
