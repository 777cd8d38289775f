#include "engine/stop_text.h"

#include <algorithm>

namespace drafthorse {

StopText::StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

bool StopText::push(std::string_view piece) {
  if (found_) return true;
  held_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop, safe_));
  if (first != std::string::npos) {
    found_ = true;
    held_.resize(first);
    safe_ = first;
    return found_;
  }
  // What is left may still be where a stop begins.
  const auto may_begin = [this](std::string_view rest) {
    return std::any_of(stops_.begin(), stops_.end(), [&](const std::string& stop) { return stop.starts_with(rest); });
  };
  while (safe_ < held_.size() && !may_begin(std::string_view(held_).substr(safe_))) ++safe_;
  return found_;
}

std::string StopText::take() {
  std::string text = held_.substr(0, safe_);
  held_.erase(0, safe_);
  safe_ = 0;
  return text;
}

std::string StopText::take_rest() {
  safe_ = held_.size();
  return take();
}

}  // namespace drafthorse
