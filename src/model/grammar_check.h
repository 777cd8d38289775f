// Reads a grammar (GBNF) before libllama does, which would not come back from some, or not survive them:
//   - a repetition {3,2} asks it for 2^64 rules; one beyond 2000 it takes for "without end";
//   - a rule that begins with itself, behind something that may be empty only through another rule, grows without end;
//   - its search for such rules follows every path: rules that each begin with the next one twice take 2^n steps;
//   - groups and rules that begin with each other are worked through by recursion, without a limit.
// Found by fuzzing (tests/fuzz/grammar_target.cc) and by reading. Grammars that pass are given to it unchanged.
#pragma once

#include <string_view>

#include "base/status.h"

namespace drafthorse {

// kUsage, naming the line where there is one, unless `text` is a grammar with a rule `root` that libllama can take.
// Names of tokens, <...>, are left to libllama.
Status check_grammar(std::string_view text);

}  // namespace drafthorse
