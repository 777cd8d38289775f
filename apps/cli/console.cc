#include "console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/clock.h"

namespace drafthorse::cli {
namespace {

constexpr int64_t kRefreshNs = 100'000'000;
constexpr int kBarWidth = 30;
constexpr int kLeastBarWidth = 5;

// fmt::print throws where standard error cannot be written to; the text goes on without our remarks then.
void write_error(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

winsize terminal_size() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) size = {24, 80, 0, 0};
  return size;
}

bool is_file_or_null(int descriptor) {
  struct stat info {};
  if (fstat(descriptor, &info) != 0) return false;
  struct stat null {};
  const bool is_null = stat("/dev/null", &null) == 0 && S_ISCHR(info.st_mode) && info.st_rdev == null.st_rdev;
  return S_ISREG(info.st_mode) || is_null;
}

}  // namespace

Console::Console()
    : error_is_terminal_(isatty(STDERR_FILENO) != 0),
      output_is_terminal_(isatty(STDOUT_FILENO) != 0),
      output_is_elsewhere_(is_file_or_null(STDOUT_FILENO)) {}

Console::~Console() {
  end_progress();
  end_status();
}

void Console::progress(std::string_view what, double part) {
  if (!error_is_terminal_ || quiet_) return;
  const int64_t now = SteadyClock().now_ns();
  if (part < 1 && now - last_shown_ns_ < kRefreshNs) return;
  last_shown_ns_ = now;
  bar_shown_ = true;
  const int columns = terminal_size().ws_col;
  const std::string percent = fmt::format(" {:3.0f}%", part * 100);
  // A row that is too narrow for a bar beside the words has the words, as far as they go.
  const int width = std::min(kBarWidth, columns - static_cast<int>(what.size() + percent.size()) - 4);
  if (width < kLeastBarWidth) {
    write_error("\r\033[K" + (std::string(what) + percent).substr(0, static_cast<size_t>(columns - 1)));
    return;
  }
  const auto filled = static_cast<int>(std::clamp(part, 0.0, 1.0) * width);
  write_error(fmt::format("\r\033[K{} [{:#<{}}{:.<{}}]{}", what, "", filled, "", width - filled, percent));
}

void Console::end_progress() {
  if (bar_shown_) write_error("\r\033[K");
  bar_shown_ = false;
}

// Scrolling is limited to the rows above the last one, so that the streamed text never runs into the status.
void Console::reserve_last_row() {
  const winsize size = terminal_size();
  if (reserved_rows_ == size.ws_row || size.ws_row < 4) return;
  reserved_rows_ = size.ws_row;
  if (output_is_terminal_) write_error(fmt::format("\n\033[A\0337\033[1;{}r\0338", reserved_rows_ - 1));
}

void Console::status(const std::string& line) {
  if (!error_is_terminal_ || quiet_) return;
  const int64_t now = SteadyClock().now_ns();
  if (now - last_shown_ns_ < kRefreshNs) return;
  last_shown_ns_ = now;
  const std::string shown = line.substr(0, terminal_size().ws_col - 1U);
  if (output_is_elsewhere_) {  // the status has the screen for itself
    write_error(fmt::format("\r\033[K{}", shown));
    bar_shown_ = true;
  } else if (output_is_terminal_) {
    std::fflush(stdout);
    reserve_last_row();
    if (reserved_rows_ > 0) {
      write_error(fmt::format("\0337\033[{};1H\033[K\033[2m{}\033[0m\0338", reserved_rows_, shown));
    }
  }
}

void Console::end_status() {
  if (reserved_rows_ > 0 && output_is_terminal_) {
    std::fflush(stdout);
    write_error(fmt::format("\0337\033[{};1H\033[K\033[r\0338", reserved_rows_));
  }
  reserved_rows_ = 0;
  end_progress();
}

void Console::line(std::string_view text) {
  if (!quiet_) error(text);
}

void Console::error(std::string_view text) {
  end_progress();
  write_error(std::string(text) + '\n');
}

}  // namespace drafthorse::cli
