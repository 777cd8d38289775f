#include "svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace drafthorse::cli {
namespace {

constexpr double kWidth = 860;
constexpr double kCharacter = 7.6;  // of the labels' font, on average, where it is a wide one

std::string text_at(double x, double y, const char* css_class, const char* anchor, const std::string& words) {
  return fmt::format(R"(<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>)", x, y, css_class, anchor,
                     escaped(words)) +
         '\n';
}

std::string line_at(double x1, double y1, double x2, double y2, const std::string& css_class) {
  return fmt::format(R"(<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>)", x1, y1, x2, y2,
                     css_class) +
         '\n';
}

std::string rect_at(double x, double y, double width, double height, const std::string& css_class,
                    const std::string& title, const std::string& attributes = "") {
  return fmt::format(
             R"(<rect x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}" class="{}"{}><title>{}</title></rect>)", x,
             y, width, height, css_class, attributes, escaped(title)) +
         '\n';
}

std::string framed(double height, const std::string& body) {
  return fmt::format(R"(<svg viewBox="0 0 {:.0f} {:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">)", kWidth,
                     height) +
         '\n' + body + "</svg>\n";
}

// 1, 2 or 5 times a power of ten, so that there are about `count` steps up to `most`.
double round_step(double most, int count) {
  const double rough = std::max(most, 1e-12) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

std::string number(double value) {
  return value >= 100  ? fmt::format("{:.0f}", value)
         : value >= 10 ? fmt::format("{:.1f}", value)
                       : fmt::format("{:.2f}", value);
}

std::string range_words(const std::string& what, const Spread& value) {
  return fmt::format("{}: {} ({} to {})", what, number(value.median), number(value.low), number(value.high));
}

double longest(const std::vector<std::string>& labels) {
  size_t most = 0;
  for (const std::string& label : labels) most = std::max(most, label.size());
  return static_cast<double>(most) * kCharacter;
}

// A shape for each line, so that colour is not all that tells them apart.
std::string marker(size_t line, double x, double y, const std::string& title) {
  const std::string css = fmt::format("s{} marker", line % 6);
  const std::string inside = fmt::format("<title>{}</title>", escaped(title));
  switch (line % 4) {
    case 0:
      return fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="4.5" class="{}">{}</circle>)", x, y, css, inside) + '\n';
    case 1:
      return rect_at(x - 4, y - 4, 8, 8, css, title);
    case 2:
      return fmt::format(R"(<path d="M{:.1f} {:.1f}l5 9h-10z" class="{}">{}</path>)", x, y - 5, css, inside) + '\n';
    default:
      return fmt::format(R"(<path d="M{:.1f} {:.1f}l5 5l-5 5l-5 -5z" class="{}">{}</path>)", x, y - 5, css, inside) +
             '\n';
  }
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<uint8_t>(c) < 0x20 && c != '\n' && c != '\t' ? '?' : c;
    }
  }
  return out;
}

std::string bar_chart(const std::vector<BarGroup>& groups, const std::string& unit) {
  constexpr double kBar = 17, kGap = 5, kHead = 24, kValue = 150;
  double most = 0;
  std::vector<std::string> labels;
  for (const BarGroup& group : groups) {
    for (const Bar& bar : group.bars) {
      labels.push_back(bar.label);
      most = std::max(most, bar.value.high);
    }
  }
  const double left = longest(labels) + 14;
  const double step = round_step(most, 5);
  const double top_value = std::max(step, most);
  const double scale = (kWidth - left - kValue) / top_value;
  std::string bars;
  std::string grid;
  double y = 6;
  for (const BarGroup& group : groups) {
    bars += text_at(0, y + 14, "group", "start", group.label);
    y += kHead;
    const double bottom = y + static_cast<double>(group.bars.size()) * (kBar + kGap);
    for (double at = 0; at <= top_value * 1.0001; at += step) {
      grid += line_at(left + at * scale, y - 3, left + at * scale, bottom, at == 0 ? "axis" : "grid");
    }
    for (const Bar& bar : group.bars) {
      const double middle = y + kBar / 2;
      bars += text_at(left - 8, middle + 4, "label", "end", bar.label);
      bars += rect_at(left, y, bar.value.median * scale, kBar, bar.marked ? "s0" : "plain",
                      range_words(bar.label, bar.value) + ' ' + unit);
      bars += line_at(left + bar.value.low * scale, middle, left + bar.value.high * scale, middle, "whisker");
      for (const double end : {bar.value.low, bar.value.high}) {
        bars += line_at(left + end * scale, middle - 4, left + end * scale, middle + 4, "whisker");
      }
      const double value_at = left + std::max(bar.value.high, bar.value.median) * scale + 8;
      bars += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" class="value">{}<tspan class="note" dx="8">{}</tspan></text>)",
                          value_at, middle + 4, number(bar.value.median), escaped(bar.note)) +
              '\n';
      y += kBar + kGap;
    }
    y += 8;
  }
  for (double at = 0; at <= top_value * 1.0001; at += step) {
    grid += text_at(left + at * scale, y + 15, "tick", "middle", number(at));
  }
  grid += text_at(left + top_value * scale / 2, y + 33, "label", "middle", unit);
  return framed(y + 40, grid + bars);
}

std::string line_chart(const LineChart& chart) {
  constexpr double kLeft = 62, kTop = 34, kPlot = 250, kRight = 24;
  double most = 0;
  for (const Line& line : chart.lines) {
    for (const LinePoint& point : line.points) most = std::max(most, point.value.high);
  }
  for (const PlotMark& mark : chart.marks) most = std::max(most, mark.value);
  const double step = round_step(most, 5);
  const double top_value = std::max(step, std::ceil(most / step) * step);
  const double last = static_cast<double>(std::max<size_t>(chart.ticks.size(), 2) - 1);
  const double inset = 26;
  const auto x_of = [&](double position) {
    return kLeft + inset + (kWidth - kLeft - kRight - 2 * inset) * position / last;
  };
  const auto y_of = [&](double value) { return kTop + kPlot * (1 - value / top_value); };
  std::string out;
  for (double at = 0; at <= top_value * 1.0001; at += step) {
    out += line_at(kLeft, y_of(at), kWidth - kRight, y_of(at), at == 0 ? "axis" : "grid");
    out += text_at(kLeft - 8, y_of(at) + 4, "tick", "end", number(at));
  }
  for (size_t i = 0; i < chart.ticks.size(); ++i) {
    out += text_at(x_of(static_cast<double>(i)), kTop + kPlot + 18, "tick", "middle", chart.ticks[i]);
  }
  out += text_at((kLeft + kWidth - kRight) / 2, kTop + kPlot + 38, "label", "middle", chart.x_label);
  double legend = kLeft;
  for (size_t i = 0; i < chart.lines.size(); ++i) {
    out += marker(i, legend + 5, 10, chart.lines[i].name);
    out += text_at(legend + 15, 14, "label", "start", chart.lines[i].name);
    legend += 34 + static_cast<double>(chart.lines[i].name.size()) * kCharacter;
  }
  out += text_at(kWidth - kRight, 14, "label", "end", chart.y_label);
  for (size_t i = 0; i < chart.lines.size(); ++i) {
    std::string path;
    std::string markers;
    for (const LinePoint& point : chart.lines[i].points) {
      const double x = x_of(point.position);
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x, y_of(point.value.median));
      out += line_at(x, y_of(point.value.low), x, y_of(point.value.high), "whisker");
      const auto tick = static_cast<size_t>(std::lround(point.position));
      markers += marker(i, x, y_of(point.value.median),
                        range_words(chart.lines[i].name + " at " + (tick < chart.ticks.size() ? chart.ticks[tick] : ""),
                                    point.value));
      if (chart.lines.size() == 1) {
        // Below where a mark is in the way.
        const bool below = std::any_of(chart.marks.begin(), chart.marks.end(), [&](const PlotMark& mark) {
          return std::abs(mark.position.value_or(point.position) - point.position) < 0.2 &&
                 mark.value >= point.value.median;
        });
        const double y = below ? y_of(point.value.low) + 18 : y_of(point.value.high) - 9;
        markers += text_at(x, y, "value", "middle", number(point.value.median));
      }
    }
    out += fmt::format(R"(<path d="{}" class="l{}"/>)", path.empty() ? "M0 0" : path, i % 6) + '\n' + markers;
  }
  double label_row = kTop + kPlot - 10;
  // In the lower left corner, clear of the labels of the first position.
  double level_row = label_row - 17 * static_cast<double>(chart.lines.size());
  for (const PlotMark& mark : chart.marks) {
    const std::string css = fmt::format("l{} mark", mark.line % 6);
    const double y = y_of(mark.value);
    if (!mark.position) {
      out += line_at(kLeft, y, kWidth - kRight, y, css);
      out += text_at(kLeft + 8, level_row, "note", "start", "dashed level: " + mark.label);
      level_row -= 17;
      continue;
    }
    const double x = x_of(std::clamp(*mark.position, 0.0, last));
    out += line_at(x, kTop, x, kTop + kPlot, css);
    out += fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="7" class="ring l{}"><title>{}</title></circle>)", x, y,
                       mark.line % 6, escaped(mark.label)) +
           '\n';
    const bool to_left = x > kWidth * 0.6;
    out += text_at(to_left ? x - 8 : x + 8, label_row, "note", to_left ? "end" : "start", mark.label);
    label_row -= 17;
  }
  return framed(kTop + kPlot + 46, out);
}

std::string heat_map(const HeatMap& map) {
  constexpr double kRow = 22, kTop = 4;
  const double left = longest(map.rows) + 14;
  const double width =
      std::min(64.0, (kWidth - left - 4) / static_cast<double>(std::max<size_t>(1, map.columns.size())));
  const bool numbers = width >= 30;
  std::string out;
  double y = kTop;
  for (size_t row = 0; row < map.rows.size(); ++row) {
    out += text_at(left - 8, y + kRow / 2 + 4, "label", "end", map.rows[row]);
    for (size_t column = 0; column < map.cells[row].size(); ++column) {
      const double value = map.cells[row][column];
      const double x = left + width * static_cast<double>(column);
      const std::string what = fmt::format("{}, {} {}", map.rows[row], map.column_label,
                                           column < map.columns.size() ? map.columns[column] : "");
      if (value < 0) {
        out += rect_at(x, y, width - 2, kRow - 2, "missing", what + ": nothing to show");
        continue;
      }
      out += rect_at(x, y, width - 2, kRow - 2, "cell", fmt::format("{}: {:.1f} %", what, 100 * value),
                     fmt::format(R"( fill-opacity="{:.2f}")", 0.06 + 0.94 * value));
      if (numbers) {
        out += text_at(x + width / 2 - 1, y + kRow / 2 + 3, value > 0.5 ? "in-dark" : "in-light", "middle",
                       fmt::format("{:.0f}", 100 * value));
      }
    }
    y += kRow;
  }
  const size_t every = std::max<size_t>(1, static_cast<size_t>(std::ceil(22 / width)));
  for (size_t column = 0; column < map.columns.size(); column += every) {
    out +=
        text_at(left + width * (static_cast<double>(column) + 0.5) - 1, y + 14, "tick", "middle", map.columns[column]);
  }
  out += text_at(left, y + 32, "label", "start", map.column_label);
  return framed(y + 38, out);
}

std::string lanes_chart(const std::vector<LaneGroup>& groups, double length_ms) {
  constexpr double kLane = 16, kGap = 4, kHead = 24;
  std::vector<std::string> labels;
  for (const LaneGroup& group : groups) {
    for (const Lane& lane : group.lanes) labels.push_back(lane.label);
  }
  const double left = longest(labels) + 14;
  const double scale = (kWidth - left - 20) / length_ms;
  std::string out;
  double y = 6;
  for (const LaneGroup& group : groups) {
    out += text_at(0, y + 14, "group", "start", group.label);
    y += kHead;
    for (const Lane& lane : group.lanes) {
      out += text_at(left - 8, y + kLane / 2 + 4, "label", "end", lane.label);
      out += rect_at(left, y, length_ms * scale, kLane, "lane", lane.label);
      for (const auto& [start, length] : lane.spans) {
        out += rect_at(left + start * scale, y, std::max(0.3, length * scale), kLane, lane.css_class,
                       fmt::format("{}: {:.2f} to {:.2f} ms", lane.label, start, start + length));
      }
      y += kLane + kGap;
    }
    y += 8;
  }
  const double step = round_step(length_ms, 8);
  for (double at = 0; at <= length_ms * 1.0001; at += step) {
    out += line_at(left + at * scale, y - 4, left + at * scale, y + 2, "axis");
    out += text_at(left + at * scale, y + 15, "tick", "middle", fmt::format("{:g}", at));
  }
  out += text_at(left + length_ms * scale / 2, y + 33, "label", "middle", "milliseconds");
  return framed(y + 40, out);
}

}  // namespace drafthorse::cli
