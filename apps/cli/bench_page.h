// What the reports of all kinds of bench have in common: one HTML page that needs nothing else. Pure.
#pragma once

#include <string>
#include <vector>

namespace drafthorse::cli {

// A whole page with the style sheet that svg_plot.h's classes need.
std::string html_page(const std::string& title, const std::string& body);

// A drawing with its title; the caption is HTML already.
std::string figure(const std::string& title, const std::string& svg, const std::string& caption);

// For the top of a page; empty where `different` is.
std::string different_texts_warning(const std::vector<std::string>& different);

// The last part of a path.
std::string file_name(const std::string& path);

}  // namespace drafthorse::cli
