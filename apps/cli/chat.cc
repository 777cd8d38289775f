#include "chat.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "chat_file.h"
#include "engine/session.h"
#include "line_editor.h"
#include "output.h"
#include "sampling_flags.h"
#include "text_file.h"

namespace drafthorse::cli {
namespace {

constexpr const char* kHelp =
    "/help         this\n"
    "/clear        forget the chat and begin anew\n"
    "/stats        where the last answer's time and memory went\n"
    "/save FILE    write the chat to a file\n"
    "/load FILE    go on with a chat from a file\n"
    "/bye          leave; so does Ctrl-D on an empty line\n"
    "\"\"\"           begins and ends a message of several lines\n"
    "Ctrl-C        stops the answer, or drops the line being typed";
constexpr const char* kFence = "\"\"\"";

std::string trim(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

class Chat {
 public:
  Chat(Engine& engine, const RunFlags& flags, Console& console, ChatTemplate chat_template)
      : engine_(engine),
        flags_(flags),
        console_(console),
        session_(engine),
        conversation_(engine.tokenizer(), std::move(chat_template), flags.system) {
    std::vector<std::string> stops = flags.sampling.stops;
    for (const std::string& stop : conversation_.stop_texts()) stops.push_back(stop);
    session_.set_stop_texts(std::move(stops));
    session_.set_token_limit(flags.tokens);
  }

  int run() {
    console_.line(fmt::format("{}; up to {} tokens. /help shows what can be typed, /bye ends.",
                              engine_.options().target_path, engine_.context()));
    while (true) {
      std::string text;
      const LineEditor::Got got = read_message(text);
      if (got == LineEditor::Got::kEnd) {
        console_.line("");
        break;
      }
      if (got == LineEditor::Got::kInterrupt) {
        console_.line("\n/bye or Ctrl-D ends the chat");
        continue;
      }
      const std::string trimmed = trim(text);
      if (trimmed.empty()) continue;
      if (trimmed == "/bye" || trimmed == "/exit" || trimmed == "/quit") break;
      // A message of several lines is never a command.
      if (trimmed.starts_with('/') && trimmed.find('\n') == std::string::npos) {
        command(trimmed);
        continue;
      }
      const Status status = answer(text);
      if (!status.ok()) console_.line("drafthorse: " + status.message());
      if (!output_.ok()) return static_cast<int>(output_.kind());
    }
    return 0;
  }

 private:
  LineEditor::Got read_message(std::string& text) {
    std::string line;
    LineEditor::Got got = editor_.read(">>> ", line);
    if (got != LineEditor::Got::kLine) return got;
    if (!trim(line).starts_with(kFence)) {
      if (!line.empty()) editor_.remember(line);
      text = line;
      return got;
    }
    text = trim(line).substr(3);
    while (!text.ends_with(kFence)) {
      got = editor_.read("... ", line);
      if (got != LineEditor::Got::kLine) return got;
      text += '\n' + line;
    }
    text.resize(text.size() - 3);
    return got;
  }

  void command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string argument = space == std::string::npos ? "" : trim(line.substr(space));
    if ((name == "/save" || name == "/load") && argument.empty()) {
      console_.line(fmt::format("{} needs a file's name", name));
    } else if (name == "/save") {
      console_.line(save(argument));
    } else if (name == "/load") {
      console_.line(load(argument));
    } else if (name == "/help") {
      console_.line(kHelp);
    } else if (name == "/clear") {
      conversation_.clear();
      console_.line("forgotten; the system message stays");
    } else if (name == "/stats" && session_.stats().steps == 0) {
      console_.line("nothing has been answered yet");
    } else if (name == "/stats") {
      print_summary(console_, engine_, session_);
      print_stats(console_, engine_, session_.stats());
    } else {
      console_.line(fmt::format("there is no {}; /help lists what there is", name));
    }
  }

  // Ctrl-C, a full context and a read that failed end the answer, not the chat.
  Status answer(const std::string& question) {
    const std::vector<int32_t> tokens = conversation_.ask(question, session_.text());
    if (static_cast<int32_t>(tokens.size()) >= engine_.context()) {
      conversation_.withdraw();
      return usage_error(fmt::format("with this message the chat has {} tokens, and the context holds {}: {}",
                                     tokens.size(), engine_.context(), kWhenFull));
    }
    engine_.clear_interrupt();
    Status status = session_.prefill(tokens, [&](double part) { console_.progress("reading", part); });
    console_.end_progress();
    if (!status.ok()) {
      conversation_.withdraw();
      engine_.clear_interrupt();
      if (status.kind() != StatusKind::kInterrupted) return status;
      console_.line("stopped before the answer; the message is forgotten");
      return {};
    }
    std::string text;
    while (status.ok() && output_.ok() && session_.stop_reason() == StopReason::kNone) {
      const Result<std::vector<int32_t>> step = session_.decode_step();
      status = step.status();
      show(text, status.ok() ? session_.take_text() : session_.take_held_text());
    }
    if (!text.empty() && !text.ends_with('\n') && output_.ok()) output_ = write_output("\n");
    console_.line("");
    const bool whole = session_.stop_reason() != StopReason::kStopText;
    conversation_.answer(text, whole, session_.text().size() - tokens.size());
    const bool interrupted = status.kind() == StatusKind::kInterrupted;
    engine_.clear_interrupt();
    if (flags_.stats && session_.stats().steps > 0) print_summary(console_, engine_, session_);
    if (session_.stop_reason() == StopReason::kContextFull) {
      console_.line(fmt::format("note: the context of {} tokens is full, the answer ends here: {}", engine_.context(),
                                kWhenFull));
    }
    return interrupted ? Status() : status;
  }

  // Models write a space or a line break first; on the screen that is no part of an answer.
  void show(std::string& text, const std::string& more) {
    const bool begun = text.find_first_not_of(" \t\n") != std::string::npos;
    text += more;
    const size_t begin = begun ? 0 : more.find_first_not_of(" \t\n");
    if (begin == std::string::npos || more.empty()) return;
    output_ = write_output(std::string_view(more).substr(begin));
    if (!output_.ok()) console_.line("drafthorse: " + output_.message());
  }

  std::string save(const std::string& path) {
    std::ofstream file(path);
    file << chat_text(conversation_.messages());
    file.close();
    return file ? fmt::format("{}: {} messages written", path, conversation_.messages().size())
                : fmt::format("{}: cannot be written; check the folder and its permissions", path);
  }

  std::string load(const std::string& path) {
    const std::optional<std::string> text = read_text_file(path);
    if (!text) return fmt::format("{}: cannot be read; check the path", path);
    Result<std::vector<ChatMessage>> messages = parse_chat(*text, path);
    if (!messages.ok()) return messages.status().message();
    const size_t count = messages->size();
    const Status status = conversation_.set_messages(std::move(messages).value());
    if (!status.ok()) return fmt::format("{}: not a chat that /save wrote: {}", path, status.message());
    return fmt::format("{}: {} messages; the next answer reads them first", path, count);
  }

  static constexpr const char* kWhenFull =
      "/clear begins a new chat, /save FILE keeps this one; a larger --ctx holds longer ones";

  Engine& engine_;
  const RunFlags& flags_;
  Console& console_;
  Session session_;
  Conversation conversation_;
  LineEditor editor_;
  Status output_;
};

}  // namespace

Result<ChatTemplate> read_chat_template(const std::string& name_or_file) {
  const std::vector<std::string> names = ChatTemplate::names();
  if (std::find(names.begin(), names.end(), name_or_file) != names.end()) return ChatTemplate::create(name_or_file);
  const std::optional<std::string> text = read_text_file(name_or_file);
  if (!text || text->empty()) {
    return usage_error(
        fmt::format("--chat-template {}: neither a template's name nor a file; --chat-template list names those that "
                    "are built in",
                    name_or_file));
  }
  return ChatTemplate::create(*text);
}

Result<ChatTemplate> choose_chat_template(const std::string& name_or_file, const Engine& engine, Console& console) {
  if (!name_or_file.empty()) return read_chat_template(name_or_file);
  const std::string own = engine.tokenizer().chat_template();
  if (own.empty()) {
    console.line(
        "note: the model has no chat template, so a plain one is used (User: and Assistant:); it may not be made for "
        "chats; --chat-template chooses another");
    return ChatTemplate();
  }
  Result<ChatTemplate> result = ChatTemplate::create(own);
  if (result.ok()) return result;
  console.line(
      "note: the model's chat template is none that libllama knows, so a plain one is used (User: and Assistant:); "
      "--chat-template chooses another");
  return ChatTemplate();
}

int chat(Engine& engine, const RunFlags& flags, Console& console) {
  Result<ChatTemplate> chat_template = choose_chat_template(flags.chat_template, engine, console);
  if (!chat_template.ok()) {
    console.line("drafthorse: " + chat_template.status().message());
    return static_cast<int>(chat_template.status().kind());
  }
  return Chat(engine, flags, console, std::move(chat_template).value()).run();
}

}  // namespace drafthorse::cli
