// Another run of this very program, in a process of its own.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

namespace drafthorse::cli {

struct ChildResult {
  int exit_code = 0;   // negative: the signal that ended it
  std::string errors;  // what it wrote to standard error
};

// Runs `drafthorse ARGUMENTS...` to its end, its text thrown away. When *interrupted becomes true it is interrupted as
// by Ctrl-C, once; Ctrl-C at the terminal itself does not reach it. It does not outlive this process. `waiting` is
// called several times a second. exit_code 127 where it cannot be started.
ChildResult run_child(const std::vector<std::string>& arguments, const std::atomic<bool>& interrupted,
                      const std::function<void()>& waiting);

// One line that a shell takes as these arguments.
std::string shell_words(const std::vector<std::string>& arguments);

}  // namespace drafthorse::cli
