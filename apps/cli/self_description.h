// Shell completion and the man page, made from the flags themselves so that they cannot fall behind.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace drafthorse::cli {

std::string bash_completion(const CLI::App& app);
std::string zsh_completion(const CLI::App& app);
// roff, section 1.
std::string man_page(const CLI::App& app, const std::string& version);

}  // namespace drafthorse::cli
