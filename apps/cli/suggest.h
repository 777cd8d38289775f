// "Did you mean": the name that a mistyped one is closest to.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace drafthorse::cli {

// The candidate with the fewest typing errors (letters wrong, missing, too many or swapped), if those are few for a
// word of this length; else empty.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

// "there is no flag --evicton; did you mean --eviction?" for the first unknown flag or command among the arguments; the
// second half where something is near. Empty: all are known.
std::string unknown_word(const CLI::App& app, const std::vector<std::string>& arguments);

// The names and "list", for a flag that prints them.
std::vector<std::string> with_list(std::vector<std::string> names);

// For CLI::Option::check: the value is one of `names`; else a message that lists them and suggests one.
CLI::Validator one_of(const std::vector<std::string>& names);

}  // namespace drafthorse::cli
