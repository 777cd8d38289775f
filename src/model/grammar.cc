#include "model/grammar.h"

#include <fmt/format.h>
#include <llama.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>

#include "model/grammar_check.h"

namespace drafthorse {
namespace {

// libllama's parser writes what is wrong straight to the process's standard error. For the microseconds it runs,
// that leads to memory, so that the reason ends up in our sentence.
class StandardErrorCapture {
 public:
  StandardErrorCapture() : memory_(memfd_create("grammar errors", MFD_CLOEXEC)), saved_(dup(STDERR_FILENO)) {
    if (memory_ < 0 || saved_ < 0) return;
    std::fflush(stderr);
    dup2(memory_, STDERR_FILENO);
  }
  ~StandardErrorCapture() {
    finish();
    if (memory_ >= 0) close(memory_);
  }
  StandardErrorCapture(const StandardErrorCapture&) = delete;
  StandardErrorCapture& operator=(const StandardErrorCapture&) = delete;

  std::string finish() {
    std::string text;
    if (saved_ < 0) return text;
    if (memory_ >= 0) {
      std::fflush(stderr);
      dup2(saved_, STDERR_FILENO);
      text.resize(4096);
      const ssize_t length = pread(memory_, text.data(), text.size(), 0);
      text.resize(static_cast<size_t>(std::max<ssize_t>(0, length)));
    }
    close(saved_);
    saved_ = -1;
    return text;
  }

 private:
  int memory_;
  int saved_;
};

// "parse: error parsing grammar: expecting ::= at xyz\n\n<the grammar>" -> "expecting ::= at 'xyz'", one line.
std::string reason(const std::string& errors) {
  constexpr std::string_view kBefore = "error parsing grammar: ";
  constexpr std::string_view kAt = " at ";
  constexpr size_t kMostShown = 40;
  const size_t begin = errors.find(kBefore);
  if (begin == std::string::npos) return {};
  std::string text = errors.substr(begin + kBefore.size());
  const size_t at = text.find(kAt);
  std::string rest = at == std::string::npos ? "" : text.substr(at + kAt.size());
  text = text.substr(0, std::min(at, text.find('\n')));
  if (at == std::string::npos) return text;
  rest = rest.substr(0, rest.find('\n')).substr(0, kMostShown);
  std::erase_if(rest,
                [](char c) { return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7e; });
  return rest.empty() ? fmt::format("{} at the end of a line", text) : fmt::format("{} at '{}'", text, rest);
}

// libllama reports the other errors through its log.
struct LogScope {
  std::string errors;
  ggml_log_callback before = nullptr;
  void* before_data = nullptr;
  LogScope() {
    llama_log_get(&before, &before_data);
    llama_log_set(
        [](ggml_log_level level, const char* text, void* self) {
          if (level == GGML_LOG_LEVEL_ERROR) static_cast<LogScope*>(self)->errors += text;
        },
        this);
  }
  ~LogScope() { llama_log_set(before, before_data); }
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;
};

}  // namespace

const char* json_grammar() {
  return R"(root ::= object | array
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" space (member ("," space member)*)? "}" space
member ::= string ":" space value
array ::= "[" space (value ("," space value)*)? "]" space
string ::= "\"" character* "\"" space
character ::= [^"\\\x00-\x1F\x7F] | "\\" escape
escape ::= ["\\/bfnrt] | "u" hex hex hex hex
hex ::= [0-9a-fA-F]
number ::= "-"? integer fraction? exponent? space
integer ::= "0" | [1-9] [0-9]{0,18}
fraction ::= "." [0-9]{1,18}
exponent ::= [eE] [+-]? [0-9]{1,3}
space ::= " " | "\n" [ \t]{0,24} |
)";
}

void Grammar::SamplerDeleter::operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }

Result<std::unique_ptr<Grammar>> Grammar::parse(const llama_vocab* vocab, int32_t n_vocab, const std::string& text) {
  RETURN_IF_ERROR(check_grammar(text));
  std::string why;
  SamplerPtr sampler;
  {
    LogScope log;
    StandardErrorCapture errors;
    sampler.reset(llama_sampler_init_grammar(vocab, text.c_str(), "root"));
    why = reason(errors.finish());
    if (why.empty()) why = log.errors.substr(0, log.errors.find('\n'));
  }
  if (sampler == nullptr) {
    return usage_error(fmt::format("the grammar cannot be used: {}", why.empty() ? "it is not in GBNF notation" : why));
  }
  std::unique_ptr<Grammar> grammar(new Grammar(std::move(sampler), n_vocab));
  grammar->restart();
  return grammar;
}

void Grammar::restart() {
  tokens_.clear();
  states_.clear();
  states_.push_back({SamplerPtr(llama_sampler_clone(initial_.get())), {}});
}

void Grammar::accept(int32_t token) {
  State next;
  if (states_.back().sampler != nullptr && allowed(token)) {
    next.sampler.reset(llama_sampler_clone(states_.back().sampler.get()));
    try {
      llama_sampler_accept(next.sampler.get(), token);
    } catch (const std::exception&) {  // what libllama throws where nothing can follow
      next.sampler.reset();
    }
  }
  tokens_.push_back(token);
  states_.push_back(std::move(next));
  if (states_.size() > kStates) states_.pop_front();
}

void Grammar::move_to(std::span<const int32_t> generated) {
  const auto same = static_cast<size_t>(
      std::mismatch(tokens_.begin(), tokens_.end(), generated.begin(), generated.end()).first - tokens_.begin());
  const size_t taken_back = tokens_.size() - same;
  if (taken_back >= states_.size()) {
    restart();
  } else {
    states_.resize(states_.size() - taken_back);
    tokens_.resize(same);
  }
  for (size_t i = tokens_.size(); i < generated.size(); ++i) accept(generated[i]);
}

void Grammar::allowed(std::span<const int32_t> tokens, std::vector<uint8_t>& out) {
  State& state = states_.back();
  out.assign(tokens.size(), 0);
  if (state.sampler == nullptr) return;
  if (state.verdicts.empty()) state.verdicts.assign(static_cast<size_t>(n_vocab_), kUnknown);
  std::vector<llama_token_data> unknown;
  for (const int32_t token : tokens) {
    if (state.verdicts[token] == kUnknown) unknown.push_back({token, 0, 0});
  }
  if (!unknown.empty()) {
    llama_token_data_array array = {unknown.data(), unknown.size(), -1, false};
    llama_sampler_apply(state.sampler.get(), &array);
    for (const llama_token_data& one : unknown) state.verdicts[one.id] = std::isinf(one.logit) ? kRefused : kAllowed;
  }
  for (size_t i = 0; i < tokens.size(); ++i) out[i] = state.verdicts[tokens[i]] == kAllowed ? 1 : 0;
}

bool Grammar::allowed(int32_t token) {
  std::vector<uint8_t> out;
  allowed({&token, 1}, out);
  return out[0] != 0;
}

}  // namespace drafthorse
