// On libedit: BSD licence as far as a program of ours may be passed on (readline is GPL), in every distribution, knows
// UTF-8, and its wide-character editor needs no configuration.
#include "line_editor.h"

#include <histedit.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>

namespace drafthorse::cli {

struct LineEditor::Impl {
  EditLine* editor = nullptr;
  History* history = nullptr;
  std::string prompt;
  bool interrupted = false;

  static Impl& of(EditLine* editor) {
    void* data = nullptr;
    el_get(editor, EL_CLIENTDATA, &data);
    return *static_cast<Impl*>(data);
  }
  static char* show_prompt(EditLine* editor) { return of(editor).prompt.data(); }
  static unsigned char on_interrupt(EditLine* editor, int) {
    of(editor).interrupted = true;
    return CC_EOF;
  }
};

LineEditor::LineEditor() : impl_(std::make_unique<Impl>()) {
  constexpr int kHistory = 1000;
  std::setlocale(LC_CTYPE, "");
  // Without a locale only ASCII could be typed.
  if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
  impl_->history = history_init();
  HistEvent event;
  history(impl_->history, &event, H_SETSIZE, kHistory);
  history(impl_->history, &event, H_SETUNIQUE, 1);
  EditLine* editor = el_init("drafthorse", stdin, stderr, stderr);
  impl_->editor = editor;
  el_set(editor, EL_CLIENTDATA, impl_.get());
  el_set(editor, EL_PROMPT, &Impl::show_prompt);
  el_set(editor, EL_EDITOR, "emacs");
  el_set(editor, EL_HIST, history, impl_->history);
  // While a line is edited Ctrl-C is a key like any other.
  el_set(editor, EL_SETTY, "-d", "-isig", nullptr);
  el_set(editor, EL_ADDFN, "drop-line", "Drops what was typed", &Impl::on_interrupt);
  el_set(editor, EL_BIND, "^C", "drop-line", nullptr);
  // Ctrl-D typed while an answer is made, or before the editor has set the terminal, reaches it as a NUL: the terminal
  // driver's mark for the end of input.
  el_set(editor, EL_BIND, "^@", "em-delete-or-list", nullptr);
  el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
}

LineEditor::~LineEditor() {
  el_end(impl_->editor);
  history_end(impl_->history);
}

LineEditor::Got LineEditor::read(const std::string& prompt, std::string& line) {
  impl_->prompt = prompt;
  impl_->interrupted = false;
  int count = 0;
  const char* text = el_gets(impl_->editor, &count);
  if (impl_->interrupted) return Got::kInterrupt;
  if (text == nullptr || count <= 0) return Got::kEnd;
  line.assign(text, static_cast<size_t>(count));
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  return Got::kLine;
}

void LineEditor::remember(const std::string& line) {
  HistEvent event;
  history(impl_->history, &event, H_ENTER, line.c_str());
}

}  // namespace drafthorse::cli
