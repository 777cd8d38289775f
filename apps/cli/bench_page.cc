#include "bench_page.h"

#include <fmt/format.h>

#include "svg_plot.h"

namespace drafthorse::cli {
namespace {

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f23; --soft: #5c6570; --rule: #d9dee3; --plain: #a9b3bd;
  --c0: #0b66b2; --c1: #c2540a; --c2: #0a7d5a; --c3: #9a4fa8; --c4: #8a6d00; --c5: #5b6770; --lane: #f0f2f4;
  --error: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e4e7ea; --soft: #9aa4ae; --rule: #343a41;
  --plain: #66717c; --c0: #58a9ec; --c1: #f0955a; --c2: #4cc79c; --c3: #cf93da; --c4: #d6b84a; --c5: #a9b3bd;
  --lane: #20252a; --error: #ff8a80; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --plain: #999; --lane: #eee; }
  figure, table { break-inside: avoid; } body { max-width: none; padding: 0; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 920px;
  margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 44px 0 6px; }
h3 { font-size: 16px; margin: 22px 0 6px; } p { margin: 6px 0; }
.soft, figcaption { color: var(--soft); font-size: 13px; }
code { font: 12.5px ui-monospace, monospace; overflow-wrap: anywhere; }
figure { margin: 16px 0 26px; } svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 3px 5px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; color: var(--soft); }
.error { border: 2px solid var(--error); color: var(--error); padding: 10px 14px; font-weight: 600; }
.key i { display: inline-block; width: 11px; height: 11px; margin: 0 5px 0 14px; vertical-align: -1px; }
svg text { fill: var(--ink); font-size: 12.5px; } svg .tick, svg .note { fill: var(--soft); font-size: 11.5px; }
svg .group { font-weight: 600; } svg .value { font-weight: 600; } svg .value .note { font-weight: 400; }
svg .axis { stroke: var(--soft); } svg .grid { stroke: var(--rule); } svg .whisker { stroke: var(--ink); opacity: .65; }
svg .plain { fill: var(--plain); } svg .lane { fill: var(--lane); } svg .marker { stroke: var(--paper); }
svg .missing { fill: none; stroke: var(--rule); } svg .cell { fill: var(--c0); }
svg .in-dark { fill: #fff; } svg .in-light { fill: var(--ink); }
svg .mark { stroke-dasharray: 5 4; stroke-width: 1.4; } svg .ring { fill: none; stroke-width: 2.2; }
@media (prefers-color-scheme: dark) { svg .in-dark { fill: #0b0d0f; } }
@media print { svg .in-dark { fill: #fff; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
)";

std::string colour_rules() {
  std::string css;
  for (int i = 0; i < 6; ++i) {
    css += fmt::format(
        "svg .s{0} {{ fill: var(--c{0}); }} svg .l{0} {{ fill: none; stroke: var(--c{0}); stroke-width: 2; }}\n", i);
  }
  return css +
         "svg .mark.l0, svg .mark.l1, svg .mark.l2, svg .mark.l3, svg .mark.l4, svg .mark.l5 { stroke-width: 1.3; }\n";
}

}  // namespace

std::string file_name(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string figure(const std::string& title, const std::string& svg, const std::string& caption) {
  return fmt::format("<figure>\n<h3>{}</h3>\n{}<figcaption>{}</figcaption>\n</figure>\n", escaped(title), svg, caption);
}

std::string different_texts_warning(const std::vector<std::string>& different) {
  if (different.empty()) return "";
  return "<p class=\"error\">Texts differ, which must not happen; the figures below compare runs that did "
         "different things.<br/>" +
         escaped(different.front()) +
         (different.size() > 1 ? fmt::format("<br/>and {} more", different.size() - 1) : "") + "</p>\n";
}

std::string html_page(const std::string& title, const std::string& body) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"/>\n<title>{}</title>\n"
      "<style>{}{}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
      escaped(title), kStyle, colour_rules(), body);
}

}  // namespace drafthorse::cli
