#include "model/grammar_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/utf8.h"

namespace drafthorse {
namespace {

constexpr uint64_t kMostRepetitions = 2000;  // libllama's own limit
constexpr int kMostNesting = 100;
constexpr uint64_t kMostRules = 10'000;      // groups and repetitions make rules of their own
constexpr uint64_t kMostElements = 200'000;  // characters and references, repetitions written out
constexpr double kMostPaths = 1e6;           // of first steps through the rules
constexpr double kMostBeginnings = 1024;     // of one rule: libllama compares each with each, at every token

struct Item {
  int rule = -1;  // -1: characters or a token, never empty
  bool may_be_left_out = false;
  bool empty_repeated = false;  // what is repeated may itself be left out, as in "a"?{5}
  uint64_t repeated = 1;        // rules that libllama makes of it, in a row
};
using Sequence = std::vector<Item>;
using Rule = std::vector<Sequence>;  // alternatives

bool is_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// Follows llama.cpp's notation to the letter, so that both see the same rules.
class GrammarReader {
 public:
  explicit GrammarReader(std::string_view text) : text_(text) {}

  Status read() {
    skip_space(true);
    while (!at_end()) RETURN_IF_ERROR(read_rule());
    return {};
  }

  const std::vector<Rule>& rules() const { return rules_; }
  int find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? -1 : found->second;
  }
  // Used somewhere, defined nowhere; empty: all are defined.
  std::string undefined() const {
    for (const auto& [name, rule] : by_name_) {
      if (rules_[rule].empty()) return name;
    }
    return {};
  }

 private:
  bool at_end() const { return position_ >= text_.size(); }
  char peek(size_t ahead = 0) const { return position_ + ahead < text_.size() ? text_[position_ + ahead] : '\0'; }
  bool take(std::string_view what) {
    if (!text_.substr(position_).starts_with(what)) return false;
    position_ += what.size();
    return true;
  }
  Status wrong(std::string_view what) const {
    const auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(position_), '\n');
    return usage_error(fmt::format("the grammar cannot be used: line {}: {}", line, what));
  }
  Status within(uint64_t value, uint64_t limit, std::string_view what) const {
    return value <= limit ? Status() : wrong(fmt::format("more than {} {}", limit, what));
  }

  void skip_space(bool lines_too) {
    while (!at_end()) {
      const char c = peek();
      if (c == '#') {
        while (!at_end() && peek() != '\n' && peek() != '\r') ++position_;
      } else if (c == ' ' || c == '\t' || (lines_too && (c == '\n' || c == '\r'))) {
        ++position_;
      } else {
        return;
      }
    }
  }

  int rule_named(const std::string& name) {
    const auto [found, is_new] = by_name_.emplace(name, static_cast<int>(rules_.size()));
    if (is_new) rules_.emplace_back();
    return found->second;
  }
  std::string read_name() {
    const size_t begin = position_;
    while (is_name(peek())) ++position_;
    return std::string(text_.substr(begin, position_ - begin));
  }

  Status read_rule() {
    const std::string name = read_name();
    if (name.empty()) return wrong("a rule's name was expected");
    skip_space(false);
    if (!take("::=")) return wrong(fmt::format("::= was expected after the name '{}'", name));
    const int rule = rule_named(name);
    skip_space(true);
    Rule alternatives;
    RETURN_IF_ERROR(read_alternatives(alternatives, 0));
    rules_[rule] = std::move(alternatives);
    if (!at_end() && !take("\r\n") && !take("\n") && !take("\r")) {
      return wrong(fmt::format("'{}' was not expected here", peek()));
    }
    skip_space(true);
    return within(rules_.size() + made_rules_, kMostRules, "rules, groups and repetitions");
  }

  Status read_alternatives(Rule& alternatives, int nesting) {
    do {
      if (!alternatives.empty()) skip_space(true);
      alternatives.emplace_back();
      RETURN_IF_ERROR(read_sequence(alternatives.back(), nesting));
    } while (take("|"));
    return {};
  }

  Status read_sequence(Sequence& sequence, int nesting) {
    uint64_t last_elements = 0;  // of what a repetition would repeat
    while (!at_end()) {
      const char c = peek();
      if (c == '*' || c == '+' || c == '?' || c == '{') {
        if (last_elements == 0) return wrong(fmt::format("nothing stands before '{}' that it could repeat", c));
        RETURN_IF_ERROR(read_repetition(sequence.back(), last_elements, nesting));
        if (sequence.back().repeated == 0) {  // none of it
          sequence.pop_back();
          last_elements = 0;
        }
      } else if (c == '"' || c == '[') {
        RETURN_IF_ERROR(read_characters(last_elements));
        if (last_elements > 0) sequence.push_back({});
      } else if (c == '.') {
        ++position_;
        sequence.push_back({});
        last_elements = 1;
      } else if (c == '<' || c == '!') {
        RETURN_IF_ERROR(read_token());
        sequence.push_back({});
        last_elements = 1;
      } else if (c == '(') {
        RETURN_IF_ERROR(read_group(sequence, nesting));
        last_elements = 1;
      } else if (is_name(c)) {
        sequence.push_back({.rule = rule_named(read_name())});
        last_elements = 1;
      } else {
        break;
      }
      elements_ += last_elements;
      RETURN_IF_ERROR(within(elements_, kMostElements, "characters and references, repetitions written out"));
      skip_space(nesting > 0);
    }
    return {};
  }

  Status read_group(Sequence& sequence, int nesting) {
    ++position_;
    RETURN_IF_ERROR(within(static_cast<uint64_t>(nesting) + 1, kMostNesting, "groups within each other"));
    skip_space(true);
    const auto group = static_cast<int>(rules_.size());
    rules_.emplace_back();
    Rule alternatives;
    RETURN_IF_ERROR(read_alternatives(alternatives, nesting + 1));
    if (!take(")")) return wrong("a group is not closed with ')'");
    rules_[group] = std::move(alternatives);
    sequence.push_back({.rule = group});
    return within(rules_.size() + made_rules_, kMostRules, "rules, groups and repetitions");
  }

  Status read_repetition(Item& item, uint64_t& elements, int nesting) {
    uint64_t least = 0;
    uint64_t most = 1;
    bool without_end = false;
    const char kind = peek();
    ++position_;
    if (kind == '*' || kind == '+') {
      least = kind == '+' ? 1 : 0;
      without_end = true;
    } else if (kind == '{') {
      RETURN_IF_ERROR(read_counts(least, most, without_end, nesting));
    }
    const uint64_t optional = without_end ? 1 : most - least;
    made_rules_ += optional;
    item.empty_repeated = item.empty_repeated || (item.may_be_left_out && least + optional > 1);
    item.may_be_left_out = item.may_be_left_out || least == 0;
    item.repeated *= least + optional;
    elements *= least + optional;
    return {};
  }

  Status read_counts(uint64_t& least, uint64_t& most, bool& without_end, int nesting) {
    skip_space(nesting > 0);
    RETURN_IF_ERROR(read_count(least));
    most = least;
    skip_space(nesting > 0);
    if (take(",")) {
      skip_space(nesting > 0);
      without_end = !is_digit(peek());
      if (!without_end) RETURN_IF_ERROR(read_count(most));
      skip_space(nesting > 0);
    }
    if (!take("}")) return wrong("a repetition is not closed with '}'");
    if (!without_end && most < least) return wrong(fmt::format("{{{},{}}} repeats less than it must", least, most));
    return {};
  }

  Status read_count(uint64_t& count) {
    if (!is_digit(peek())) return wrong("a number of repetitions was expected");
    for (count = 0; is_digit(peek()); ++position_) {
      count = std::min(10 * count + static_cast<uint64_t>(peek() - '0'), kMostRepetitions + 1);
    }
    return within(count, kMostRepetitions, "repetitions");
  }

  Status read_character() {
    if (!take("\\")) {
      std::string_view rest = text_.substr(position_);
      static_cast<void>(next_code_point(rest));  // the text is UTF-8
      position_ = text_.size() - rest.size();
      return {};
    }
    const char kind = peek();
    const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    if (digits == 0 && (kind == '\0' || std::string_view("trn\\\"[]-").find(kind) == std::string_view::npos)) {
      return wrong("an unknown escape after '\\'");
    }
    for (size_t i = 1; i <= digits; ++i) {
      if (!is_hex(peek(i))) return wrong(fmt::format("\\{} needs {} hexadecimal digits", kind, digits));
    }
    position_ += 1 + digits;
    return {};
  }

  // "..." or [...]
  Status read_characters(uint64_t& elements) {
    const char close = peek() == '"' ? '"' : ']';
    ++position_;
    if (close == ']') take("^");
    for (elements = 0; peek() != close; ++elements) {
      if (at_end()) return wrong(fmt::format("the end of the text, where {} was expected", close));
      RETURN_IF_ERROR(read_character());
      if (close != ']' || peek() != '-' || peek(1) == ']') continue;
      ++position_;
      if (at_end()) return wrong("a range of characters without its end");
      RETURN_IF_ERROR(read_character());
      ++elements;
    }
    ++position_;
    return {};
  }

  // <text> or <[id]>, after a ! or not.
  Status read_token() {
    take("!");
    if (!take("<")) return wrong("'<' was expected after '!'");
    const size_t end = text_.find('>', position_);
    if (end == std::string_view::npos) return wrong("a token is not closed with '>'");
    position_ = end + 1;
    return {};
  }

  std::string_view text_;
  size_t position_ = 0;
  std::vector<Rule> rules_;  // empty: not defined yet
  std::map<std::string, int> by_name_;
  uint64_t made_rules_ = 0;
  uint64_t elements_ = 0;
};

// Which rules can be nothing at all.
std::vector<bool> empty_rules(const std::vector<Rule>& rules) {
  std::vector<bool> empty(rules.size());
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < rules.size(); ++i) {
      if (empty[i]) continue;
      empty[i] = std::any_of(rules[i].begin(), rules[i].end(), [&](const Sequence& sequence) {
        return std::all_of(sequence.begin(), sequence.end(), [&](const Item& item) {
          return item.may_be_left_out || (item.rule >= 0 && empty[item.rule]);
        });
      });
      changed = changed || empty[i];
    }
  }
  return empty;
}

// The ways on from the beginning of each rule.
class FirstSteps {
 public:
  explicit FirstSteps(const std::vector<Rule>& rules)
      : rules_(rules),
        empty_(empty_rules(rules)),
        state_(rules.size(), kNew),
        paths_(rules.size()),
        beginnings_(rules.size()) {}

  Status check() {
    double total = 0;
    for (size_t i = 0; i < rules_.size(); ++i) {
      if (state_[i] == kDone) continue;  // libllama does not begin there again either
      if (!visit(i)) return usage_error("the grammar cannot be used: a rule begins with itself (left recursion)");
      total += paths_[i];
    }
    if (most_beginnings() <= kMostBeginnings && total <= kMostPaths) return {};
    return usage_error(
        "the grammar cannot be used: its rules begin with each other in too many ways; write what "
        "alternatives have in common once");
  }

 private:
  enum State : uint8_t { kNew, kUnderWay, kDone };

  bool may_be_empty(const Item& item) const { return item.may_be_left_out || (item.rule >= 0 && empty_[item.rule]); }
  double beginnings_of(const Item& item) const {
    // Copies that may each be empty all begin at once, and behind each the rest of them again.
    const auto repeated = static_cast<double>(item.repeated);
    const bool all_begin = item.empty_repeated || (item.rule >= 0 && empty_[item.rule]);
    return (item.rule < 0 ? 1 : beginnings_[item.rule]) * (all_begin ? repeated * repeated : 1);
  }
  // From any place within a rule, once all rules have been visited.
  double most_beginnings() const {
    double most = *std::max_element(beginnings_.begin(), beginnings_.end());
    for (const Rule& rule : rules_) {
      for (const Sequence& sequence : rule) {
        double from_here = 0;
        for (auto item = sequence.rbegin(); item != sequence.rend(); ++item) {
          from_here = beginnings_of(*item) + (may_be_empty(*item) ? from_here : 0);
          most = std::max(most, from_here);
        }
      }
    }
    return most;
  }

  // Depth at most kMostRules. False for a rule that begins with itself.
  bool visit(size_t rule) {
    if (state_[rule] != kNew) return state_[rule] == kDone;
    state_[rule] = kUnderWay;
    double paths = 1;
    double beginnings = 0;
    for (const Sequence& sequence : rules_[rule]) {
      for (const Item& item : sequence) {
        if (item.rule >= 0) {
          if (!visit(static_cast<size_t>(item.rule))) return false;
          paths += static_cast<double>(item.repeated) * paths_[item.rule];
        }
        beginnings += beginnings_of(item);
        if (!may_be_empty(item)) break;
      }
    }
    paths_[rule] = paths;
    beginnings_[rule] = beginnings;
    state_[rule] = kDone;
    return true;
  }

  const std::vector<Rule>& rules_;
  std::vector<bool> empty_;
  std::vector<State> state_;
  std::vector<double> paths_;       // libllama's search for left recursion takes, from this rule
  std::vector<double> beginnings_;  // characters with all that may follow them, with which this rule can begin
};

}  // namespace

Status check_grammar(std::string_view text) {
  // A C string is what libllama takes.
  if (text.find('\0') != std::string_view::npos) return usage_error("the grammar holds a zero byte: it is not text");
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) return usage_error("the grammar is empty");
  if (!is_utf8(text)) return usage_error("the grammar is not UTF-8 text; save it as UTF-8");
  GrammarReader reader(text);
  RETURN_IF_ERROR(reader.read());
  if (reader.find("root") < 0) return usage_error("the grammar cannot be used: it has no rule 'root'");
  if (const std::string name = reader.undefined(); !name.empty()) {
    return usage_error(fmt::format("the grammar cannot be used: the rule '{}' is used and not defined", name));
  }
  return FirstSteps(reader.rules()).check();
}

}  // namespace drafthorse
