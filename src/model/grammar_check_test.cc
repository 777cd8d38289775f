#include "model/grammar_check.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

#include "model/grammar.h"

namespace drafthorse {
namespace {

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

// Rules that each begin with the next one twice.
std::string doubling(int rules) {
  std::string text = "root ::= r0\n";
  for (int i = 0; i < rules; ++i) {
    text += fmt::format("r{} ::= r{} \"x\" | r{} \"y\"\n", i, i + 1, i + 1);
  }
  return text + fmt::format("r{} ::= \"z\"\n", rules);
}

std::string chain(int rules) {
  std::string text = "root ::= r0\n";
  for (int i = 0; i < rules; ++i) text += fmt::format("r{} ::= r{}\n", i, i + 1);
  return text + fmt::format("r{} ::= \"z\"\n", rules);
}

TEST(GrammarCheck, TakesWhatTheNotationAllows) {
  for (const std::string text :
       {json_grammar(), "root ::= \"a\"", "root::=\"a\"",
        "# first\n\nroot ::= # here\n  \"a\" |\n  b # there\r\nb ::= .", "root ::= (\n \"a\"\n | \"b\"\n)+ \"c\"",
        "root ::= [^\\r\\n\\x0b] [a-z-] [-a] [\\]\\[\\-\\\\] []", "root ::= |",
        "root ::= \"\" \"a\"{0} \"b\"{2} \"c\"{1,} \"d\"{0,3} \"e\"{ 1 , 2 }", "root ::= \"a\"?*+",
        "root ::= \"\\u00e4\\U0001F40Eä🐎\\\"\"", "root ::= <[12]> !<|end|>"}) {
    EXPECT_TRUE(check_grammar(text).ok()) << text << ": " << check_grammar(text).message();
  }
  EXPECT_TRUE(check_grammar(doubling(10)).ok());
  EXPECT_TRUE(check_grammar(chain(5000)).ok());
  EXPECT_TRUE(check_grammar("root ::= space{20} \"a\"{0,1500} \"b\"?{15}\nspace ::= \" \" | \"\"").ok());
  EXPECT_TRUE(check_grammar("root ::= (" + repeated("\"a\" | ", 50) + "\"b\"){0,1000}").ok());
  EXPECT_TRUE(check_grammar("root ::= " + repeated("(", 90) + "\"a\"" + repeated(")", 90)).ok());
}

TEST(GrammarCheck, NamesWhatIsWrong) {
  const std::pair<std::string, const char*> cases[] = {
      {"root ::= \"a\"{3,2}", "{3,2}"},
      {"root ::= \"a\"{1,2001}", "more than 2000"},
      {"root ::= \"a\"{99999999999999999999}", "more than 2000"},
      {"root ::= \"abc\"{2000} \"abc\"{2000}" + repeated(" \"abc\"{2000}", 40), "more than 200000"},
      {"root ::= \"a\"\nx ::= *", "line 2: nothing stands before '*'"},
      {"root ::= \"\"+", "nothing stands before '+'"},
      {"root ::= \"a\"{0}*", "nothing stands before '*'"},
      {"root ::= \"a\"{", "a number"},
      {"root ::= \"a\"{1", "closed with '}'"},
      {"root ::= \"\\q\"", "escape"},
      {"root ::= \"\\u00g0\"", "4 hexadecimal"},
      {"root ::= [a-", "without its end"},
      {"root ::= \"a", "where \" was expected"},
      {"root ::= (\"a\"", "closed with ')'"},
      {"root ::= \"a\" )", "')' was not expected"},
      {"root ::= <end", "closed with '>'"},
      {"root ::= !a", "'<' was expected"},
      {"root : \"a\"", "::= was expected"},
      {"= \"a\"", "name was expected"},
      {"root ::= a", "'a' is used and not defined"},
      {"start ::= \"a\"", "no rule 'root'"},
      {"root ::= \"\xe2\" \"a\"", "UTF-8"},
      {"root ::= root \"a\" | \"b\"", "begins with itself"},
      // Empty only through another rule: libllama does not see that and asks for memory without end.
      {"root ::= a root \"x\" | \"y\"\na ::= b\nb ::= \"c\"?", "begins with itself"},
      {"root ::= \"a\"? (\"b\"* root)", "begins with itself"},
      {doubling(40), "too many ways"},
      {doubling(11), "too many ways"},
      {"root ::= space{1000} \"x\"\nspace ::= \" \" | \"\"", "too many ways"},
      {"root ::= \"a\"?{1000}", "too many ways"},
      {"root ::= \"x\" (\"a\"?){1000} \"y\"", "too many ways"},
      {chain(20000), "more than 10000 rules"},
      {"root ::= " + repeated("(", 200'000), "more than 100 groups"},
      {"root ::= " + repeated("(\"a\"){0,500} ", 40), "more than 10000 rules"},
  };
  for (const auto& [text, said] : cases) {
    const Status status = check_grammar(text);
    EXPECT_EQ(status.kind(), StatusKind::kUsage) << text.substr(0, 100);
    EXPECT_NE(status.message().find(said), std::string::npos) << text.substr(0, 100) << ": " << status.message();
  }
}

}  // namespace
}  // namespace drafthorse
