// Seconds as a function of a count (tokens, rows of an expert), from a few measured points. Pure.
//
// SpecMoEOff (2508.21706, its optimiser) fits one line, seconds = a + b x, to each micro-benchmark. A kernel that reads
// its weights once and then multiplies is no line at few rows: one through all of `drafthorse profile`'s points is off
// by 20 to 30 % at its worst for the common weight types. So a curve is straight between neighbouring points and goes
// on as the last piece does; with two points it is their line.
#pragma once

#include <utility>
#include <vector>

namespace drafthorse {

class CostCurve {
 public:
  struct Point {
    double count = 0;
    double seconds = 0;
    bool operator==(const Point&) const = default;
  };

  CostCurve() = default;  // costs nothing
  // By ascending count. Seconds that fall with the count are taken for noise: the smaller count's are lowered.
  explicit CostCurve(std::vector<Point> points);
  // max(floor_s, per_count_s * count): a roofline.
  static CostCurve roofline(double floor_s, double per_count_s);
  // base_s + per_count_s * count.
  static CostCurve line(double base_s, double per_count_s);

  // 0 for a count of 0 or less: what is not done costs nothing. Below the first point as much as there.
  double at(double count) const;

  // What any count above 0 costs: reading weights, launching.
  double base() const { return points_.empty() ? 0 : points_.front().seconds; }

  // Point by point; both are evaluated at all counts of either.
  CostCurve plus(const CostCurve& other) const;
  CostCurve scaled(double factor) const;
  bool operator==(const CostCurve&) const = default;

 private:
  std::vector<Point> points_;
};

struct LinearFit {
  double base = 0;
  double slope = 0;
  double worst_error = 0;  // relative, over the points
};

// Least squares of relative errors, neither part below 0: small counts weigh as much as large ones.
LinearFit fit_line(const std::vector<CostCurve::Point>& points);

}  // namespace drafthorse
