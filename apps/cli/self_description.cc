#include "self_description.h"

#include <fmt/format.h>

#include <algorithm>

namespace drafthorse::cli {
namespace {

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size()) {
    text.replace(at, what.size(), with);
  }
  return text;
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_snames()) flags.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

// Flags that take one of a few words.
constexpr std::pair<const char*, const char*> kWords[] = {
    {"--io", "uring pread list"},
    {"--kv", "f16 q8_0"},
    {"--regime", "auto stream cache layered list"},
    {"--regimes", "auto stream cache layered"},
    {"--policy", "auto sp-moe sp-moe-sync on-demand adapmoe moe-infinity specter next-use list"},
    {"--predictor", "none cross cross-norm draft-router fitted next-gate frequency trace combined list"},
    {"--prefetch", "none cutoff cutoff-sync next-layer top ahead deadline list"},
    {"--eviction", "lru lfu lru-layer stale-first activation next-use circle spread draft-guided list"},
    {"--cutoff", "auto"},
    {"--depth", "auto 0 1 2 4 8 16"},
    {"--preset", "this rtx3090 rtx4090 a100"},
    {"--scale", "mixtral-8x7b phi-3.5-moe deepseek-v2-lite"},
    {"--stack", "native paper"},
    {"--hardware", "a30 rtx4090d"},
    {"--batched-reads", "on off"},
    {"--suite", "quick policies ablation cutoff memory depth all"},
    {"--policies", "all auto sp-moe sp-moe-sync on-demand adapmoe moe-infinity specter next-use"},
    {"--budgets", "20% 35% 50% 75% 100%"},
    {"--depths", "off auto 0 1 2 4 8 16"},
    {"--cutoffs", "auto 0 1 2 4"},
    {"--isa", "portable avx2 avx-vnni avx512 avx512-bf16 list"},
    {"--draft-depth", "auto 0 1 2 4 8 16"},
    {"--accept", "noise rejection"},
    {"--writer", "draft target"},
    {"--drafter", "auto model shared-kv ngram resident none list"}};

std::string roff(const std::string& text) {
  std::string out = replaced(replaced(text, "\\", "\\e"), "-", "\\-");
  // A dot or quote at the beginning of a line would be an instruction.
  if (!out.empty() && (out[0] == '.' || out[0] == '\'')) out = "\\&" + out;
  return out;
}

std::string options_roff(const CLI::App& app) {
  std::string text;
  for (const CLI::Option* option : app.get_options()) {
    std::vector<std::string> names;
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    if (names.empty()) names.push_back(option->get_name());
    std::string head;
    for (const std::string& name : names) head += (head.empty() ? "\\fB" : ", \\fB") + roff(name) + "\\fR";
    const std::string type = option->get_type_size() > 0 ? option->get_type_name() : "";
    if (!type.empty()) head += " \\fI" + roff(type) + "\\fR";
    text += ".TP\n" + head + "\n" + roff(option->get_description()) + "\n";
  }
  return text;
}

}  // namespace

std::string bash_completion(const CLI::App& app) {
  std::string names;
  std::string cases;
  for (const CLI::App* command : commands_of(app)) {
    names += (names.empty() ? "" : " ") + command->get_name();
    cases += fmt::format("    {}) flags='{}' ;;\n", command->get_name(), fmt::join(flags_of(*command), " "));
  }
  std::string words;
  for (const auto& [flag, choices] : kWords) {
    words += fmt::format("    {}) COMPREPLY=($(compgen -W '{}' -- \"$word\")); return ;;\n", flag, choices);
  }
  return fmt::format(R"(# bash completion for drafthorse
_drafthorse() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command='' flags='' i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case " {0} " in *" ${{COMP_WORDS[i]}} "*) command=${{COMP_WORDS[i]}}; break ;; esac
  done
  case $before in
{1}  esac
  case $command in
    '') COMPREPLY=($(compgen -W '{0} {2}' -- "$word")); return ;;
{3}  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    *) if [ "$command" = completion ]; then COMPREPLY=($(compgen -W 'bash zsh' -- "$word"))
       else COMPREPLY=($(compgen -f -- "$word")); fi ;;
  esac
}}
complete -o filenames -F _drafthorse drafthorse
)",
                     names, words, fmt::join(flags_of(app), " "), cases);
}

std::string zsh_completion(const CLI::App& app) {
  const auto quoted = [](std::string text) {
    for (const char* special : {"[", "]", ":"}) text = replaced(text, special, std::string("\\") + special);
    return replaced(text, "'", "'\\''");
  };
  std::string commands;
  std::string cases;
  for (const CLI::App* command : commands_of(app)) {
    commands += fmt::format("    '{}:{}'\n", command->get_name(), quoted(command->get_description()));
    cases += fmt::format("    {}) _arguments", command->get_name());
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        const bool optional = option->get_items_expected_min() == 0;
        std::string action =
            option->get_items_expected_max() > 0 ? (optional ? "::value:_files" : ":value:_files") : "";
        for (const auto& [flag, choices] : kWords) {
          if (flag == "--" + name) action = fmt::format(":value:({})", choices);
        }
        // '(-m --model)'{-m,--model}'[what it is]:value:_files'
        std::string spelled = fmt::format("'--{}", name);
        if (!option->get_snames().empty()) {
          const std::string& letter = option->get_snames().front();
          spelled = fmt::format("'(-{0} --{1})'{{-{0},--{1}}}'", letter, name);
        }
        cases += fmt::format(" \\\n      {}[{}]{}'", spelled, quoted(option->get_description()), action);
      }
    }
    cases +=
        fmt::format(" \\\n      '*:{}' ;;\n", command->get_name() == "completion" ? "shell:(bash zsh)" : "file:_files");
  }
  return fmt::format(R"(#compdef drafthorse
# zsh completion for drafthorse
_drafthorse() {{
  local -a commands
  commands=(
{}  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
{}  esac
}}
# Run for a completion, from a folder in fpath; or read by eval.
if [ "$funcstack[1]" = _drafthorse ]; then
  _drafthorse "$@"
else
  compdef _drafthorse drafthorse
fi
)",
                     commands, cases);
}

std::string man_page(const CLI::App& app, const std::string& version) {
  std::string text = fmt::format(".TH DRAFTHORSE 1 \"\" \"drafthorse {}\"\n.SH NAME\ndrafthorse \\- {}\n", version,
                                 roff(app.get_description()));
  text += ".SH SYNOPSIS\n\\fBdrafthorse\\fR \\fICOMMAND\\fR [\\fIflags\\fR]\n.SH COMMANDS\n";
  for (const CLI::App* command : commands_of(app)) {
    text += fmt::format(".TP\n\\fB{}\\fR\n{}\n", roff(command->get_name()), roff(command->get_description()));
  }
  for (const CLI::App* command : commands_of(app)) {
    std::string title = command->get_name();
    std::transform(title.begin(), title.end(), title.begin(),
                   [](char c) { return static_cast<char>(std::toupper(c)); });
    text += fmt::format(".SH {} FLAGS\n{}", roff(title), options_roff(*command));
  }
  text += R"(.SH FILES
.TP
\fI~/.config/drafthorse/config\fR
Defaults: lines of \fIkey = value\fR, a key being a long flag without its dashes. The command line wins.
.TP
\fI~/.cache/drafthorse/profile.json\fR
What \fBdrafthorse profile\fR measured.
.TP
\fIDRAFT.fitted-to-TARGET.gguf\fR
What \fBdrafthorse calibrate\fR fitted, beside the draft.
.SH ENVIRONMENT
XDG_CONFIG_HOME and XDG_CACHE_HOME move those folders.
.SH EXIT STATUS
0 fine, 1 failed while running, 2 usage, 3 a file, 4 memory, 5 some requests of a batch failed, 130 interrupted.
)";
  return text;
}

}  // namespace drafthorse::cli
