// What a person sees on standard error: progress, one live status line, notices. Quiet where there is no terminal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace drafthorse::cli {

class Console {
 public:
  Console();
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // A bar that overwrites itself; nothing without a terminal. part: 0 to 1.
  void progress(std::string_view what, double part);
  void end_progress();

  // A line kept at the terminal's last row while text streams above it; nothing without a terminal.
  void status(const std::string& line);
  void end_status();

  // Nothing but errors from now on.
  void set_quiet() { quiet_ = true; }

  // Whole lines, written unless quiet.
  void line(std::string_view text);
  // Whole lines, always written.
  void error(std::string_view text);

 private:
  void reserve_last_row();

  bool error_is_terminal_ = false;
  bool output_is_terminal_ = false;
  bool output_is_elsewhere_ = false;  // a file: what a pipe leads to may share our screen, so it counts as neither
  bool bar_shown_ = false;
  bool quiet_ = false;
  int reserved_rows_ = 0;  // height of the terminal whose last row is ours, 0: none is
  int64_t last_shown_ns_ = 0;
};

}  // namespace drafthorse::cli
