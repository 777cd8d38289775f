#include "child_run.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

namespace drafthorse::cli {
namespace {

constexpr auto kLook = std::chrono::milliseconds(20);
constexpr int kCannotStart = 127;

// Between fork and exec: nothing but calls that are allowed there.
[[noreturn]] void become(char* const* arguments, int errors, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kCannotStart);
  setpgid(0, 0);
  const int null = open("/dev/null", O_RDWR);
  if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 || dup2(errors, STDERR_FILENO) < 0) {
    _exit(kCannotStart);
  }
  std::signal(SIGINT, SIG_DFL);
  execv("/proc/self/exe", arguments);
  _exit(kCannotStart);
}

std::string all_of(int file) {
  std::string text;
  char piece[4096];
  lseek(file, 0, SEEK_SET);
  for (ssize_t count = read(file, piece, sizeof(piece)); count > 0; count = read(file, piece, sizeof(piece))) {
    text.append(piece, static_cast<size_t>(count));
  }
  return text;
}

}  // namespace

ChildResult run_child(const std::vector<std::string>& arguments, const std::atomic<bool>& interrupted,
                      const std::function<void()>& waiting) {
  std::string name = "drafthorse";
  std::vector<std::string> words = arguments;
  std::vector<char*> pointers = {name.data()};
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  const int errors = memfd_create("errors", MFD_CLOEXEC);
  if (errors < 0) return {kCannotStart, "no memory for its messages"};
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) become(pointers.data(), errors, parent);
  ChildResult result{kCannotStart, "no process can be started"};
  if (child > 0) {
    int status = 0;
    bool told = false;
    while (waitpid(child, &status, WNOHANG) == 0) {
      if (interrupted && !told) kill(child, SIGINT);
      told = interrupted;
      waiting();
      std::this_thread::sleep_for(kLook);
    }
    result.exit_code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    result.errors = all_of(errors);
  }
  close(errors);
  return result;
}

std::string shell_words(const std::vector<std::string>& arguments) {
  std::string line;
  for (const std::string& word : arguments) {
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "0123456789-_./,=:%+@") == std::string::npos;
    std::string quoted = "'";
    for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += (line.empty() ? "" : " ") + (plain ? word : quoted + "'");
  }
  return line;
}

}  // namespace drafthorse::cli
