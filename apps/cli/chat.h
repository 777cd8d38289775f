// A chat at the terminal, and what a chat of one turn needs.
#pragma once

#include <string>

#include "console.h"
#include "engine/conversation.h"
#include "engine/engine.h"
#include "run_command.h"

namespace drafthorse::cli {

// By name or from a file. kUsage where it is neither.
Result<ChatTemplate> read_chat_template(const std::string& name_or_file);

// The template asked for (a name or a file; empty: none is), the model's own, or the plain one; the latter with a
// notice.
Result<ChatTemplate> choose_chat_template(const std::string& name_or_file, const Engine& engine, Console& console);

// Reads questions from the terminal and answers them until /bye. Returns the process's exit code.
int chat(Engine& engine, const RunFlags& flags, Console& console);

}  // namespace drafthorse::cli
