// Lines typed at a terminal, with editing and the history of this chat. What is typed is echoed on standard error:
// standard output is the model's.
#pragma once

#include <memory>
#include <string>

namespace drafthorse::cli {

class LineEditor {
 public:
  enum class Got { kLine, kInterrupt, kEnd };

  LineEditor();
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // kLine: `line` without its newline. kInterrupt: Ctrl-C, what was typed is dropped. kEnd: Ctrl-D on an empty line, or
  // the terminal is gone.
  Got read(const std::string& prompt, std::string& line);
  void remember(const std::string& line);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace drafthorse::cli
