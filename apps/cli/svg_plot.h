// Plots as SVG elements to stand inside an HTML page. Pure.
//
// Colours come from the page's style sheet by class: "s0" .. "s5" fill series, "l0" .. "l5" draw their lines; "axis",
// "grid", "label", "value", "note", "whisker", "cell", "missing" are what their names say. All texts are escaped here;
// every number drawn is also a text or a <title>, so that it can be read exactly.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sample_statistics.h"

namespace drafthorse::cli {

// For text and attribute values of HTML and XML; control characters, which XML forbids, become '?'.
std::string escaped(std::string_view text);

// Horizontal bars in groups, whiskers for the range, one scale from 0 on.
struct Bar {
  std::string label;
  Spread value;
  std::string note;     // behind the value
  bool marked = false;  // in the accent colour
};
struct BarGroup {
  std::string label;
  std::vector<Bar> bars;
};
std::string bar_chart(const std::vector<BarGroup>& groups, const std::string& unit);

// Lines over positions of the x axis, which are evenly spaced whatever they stand for.
struct LinePoint {
  double position = 0;
  Spread value;
};
struct Line {
  std::string name;
  std::vector<LinePoint> points;
};
// Something that has no place of its own on the axis, such as what a formula chose.
struct PlotMark {
  std::optional<double> position;  // nullopt: a level across the whole plot
  double value = 0;
  std::string label;
  size_t line = 0;  // whose colour it has
};
struct LineChart {
  std::vector<std::string> ticks;  // at positions 0, 1, ..
  std::string x_label;
  std::string y_label;
  std::vector<Line> lines;
  std::vector<PlotMark> marks;
};
std::string line_chart(const LineChart& chart);

// Shares between 0 and 1 as a table of shades; below 0: nothing to show.
struct HeatMap {
  std::vector<std::string> rows;
  std::vector<std::string> columns;
  std::string column_label;
  std::vector<std::vector<double>> cells;  // by row
};
std::string heat_map(const HeatMap& map);

// What happened when, in lanes. [start, length] in milliseconds.
struct Lane {
  std::string label;
  std::string css_class;
  std::vector<std::pair<double, double>> spans;
};
struct LaneGroup {
  std::string label;
  std::vector<Lane> lanes;
};
std::string lanes_chart(const std::vector<LaneGroup>& groups, double length_ms);

}  // namespace drafthorse::cli
