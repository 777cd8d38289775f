#include "engine/calibration_text.h"

#include <algorithm>

#include "engine/calibration.h"
#include "engine/session.h"

namespace drafthorse {
namespace {

constexpr size_t kWritten = 192;     // tokens written on from an opening
constexpr size_t kMostOpening = 64;  // tokens of it that are kept

// As people sample: varied, and seldom out of its mind.
SamplingOptions writing_options(uint64_t seed) {
  SamplingOptions options;
  options.temperature = 0.8;
  options.top_p = 0.95;
  options.seed = seed;
  return options;
}

constexpr std::string_view kOpenings[] = {
    "def read_lines(path):\n    \"\"\"Return all lines of a file.\"\"\"\n",
    "The lighthouse keeper had not spoken to anyone for three weeks when",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "The causes of the war are disputed among historians. One view is that",
    "#include <vector>\n#include <algorithm>\n\n// Sorts the words by length.\nvoid sort_by_length(",
    "Q: Why is the sky blue?\nA:",
    "import json\nimport sys\n\ndef main():\n    with open(sys.argv[1]) as f:\n",
    "To make the soup, first cut the onions into small pieces. Then",
    "Theorem. There are infinitely many prime numbers.\n\nProof.",
    "function sum(values) {\n  let total = 0;\n",
    "Dear Sir or Madam,\n\nI am writing to you because",
    "Photosynthesis is the process by which plants",
    "SELECT name, count(*) FROM orders",
    "Die Stadt liegt an einem Fluss und",
    "def test_parse_number():\n    assert parse(\"12\") == 12\n",
    "Le lendemain matin, il faisait froid et",
    "User: Can you explain how a computer stores numbers?\nAssistant: Of course.",
    "La casa estaba vacía cuando",
    "for i in range(10):\n    print(i)\n",
    "Breaking news: the government announced on Tuesday that",
    "In this paper we study the problem of",
    "// Copyright\npackage main\n\nimport \"fmt\"\n\nfunc main() {\n",
    "Once upon a time there was a little girl who",
    "| name | value |\n|---|---|\n| a | 1 |\n",
};

class TextJoiner {
 public:
  TextJoiner(const Engine& engine, int32_t positions)
      : beginning_(engine.tokenizer().tokenize("")),
        window_(static_cast<size_t>(calibration_window(engine))),
        most_(static_cast<size_t>(positions)) {}

  // Each text begins as the model's texts do.
  void add(std::span<const int32_t> tokens) {
    for (const int32_t token : tokens) {
      if (full()) return;
      if (texts_.empty() || texts_.back().size() == window_) {
        texts_.push_back(beginning_);
        total_ += beginning_.size();
      }
      texts_.back().push_back(token);
      ++total_;
    }
  }
  bool full() const { return total_ >= most_; }
  double part() const { return std::min(1.0, static_cast<double>(total_) / static_cast<double>(most_)); }
  std::vector<std::vector<int32_t>> take() { return std::move(texts_); }

 private:
  std::vector<int32_t> beginning_;
  size_t window_;
  size_t most_;
  size_t total_ = 0;
  std::vector<std::vector<int32_t>> texts_;
};

// `text` written on by the draft model.
Status write_with_draft(Engine& engine, Sampler& sampler, size_t length, std::vector<int32_t>& text) {
  ForwardPass& pass = *engine.draft().pass;
  pass.model().kv().truncate(0);
  const int32_t known = pass.model().config().n_vocab;
  size_t read = 0;
  while (text.size() < length) {
    std::vector<int32_t> readable(text.begin() + static_cast<std::ptrdiff_t>(read), text.end());
    for (int32_t& token : readable) token = token < known ? token : 0;
    RETURN_IF_ERROR(pass.run(readable, 1));
    read = text.size();
    const int32_t token = sampler.choose_freely(pass.logits(0), text.size());
    if (token == kNoToken || sampler.is_end(token)) break;
    text.push_back(token);
  }
  pass.model().kv().truncate(0);
  return {};
}

Status write_with_target(Session& session, size_t length, std::vector<int32_t>& text) {
  session.set_token_limit(static_cast<int64_t>(length - text.size()));
  RETURN_IF_ERROR(session.prefill(text, {}));
  while (session.stop_reason() == StopReason::kNone) RETURN_IF_ERROR(session.decode_step().status());
  text.assign(session.text().begin(), session.text().end());
  return {};
}

}  // namespace

std::span<const std::string_view> own_openings() { return kOpenings; }

Result<std::vector<std::vector<int32_t>>> write_texts(Engine& engine, std::span<const std::string> openings,
                                                      Writer writer, int32_t positions, const LoadProgress& progress) {
  CHECK(!openings.empty());
  const Tokenizer& tokenizer = engine.tokenizer();
  const std::vector<int32_t> between = tokenizer.tokenize_piece("\n\n", false);
  const size_t beginning = tokenizer.tokenize("").size();
  TextJoiner joiner(engine, positions);
  for (uint64_t number = 0; !joiner.full(); ++number) {
    if (engine.interrupted()) return interrupted_error();
    if (progress) progress("writing texts", joiner.part());
    if (number == openings.size() && joiner.part() == 0) return usage_error("the prompts hold no tokens");
    std::vector<int32_t> text = tokenizer.tokenize(openings[number % openings.size()]);
    if (text.size() > beginning + kMostOpening) text.resize(beginning + kMostOpening);
    if (text.empty()) text = between;
    const size_t length =
        std::min(text.size() + kWritten, static_cast<size_t>(std::max(1, calibration_window(engine) - 1)));
    if (text.size() < length) {
      ASSIGN_OR_RETURN(std::unique_ptr<Sampler> sampler, Sampler::create(tokenizer, writing_options(number)));
      if (writer == Writer::kDraft) {
        RETURN_IF_ERROR(write_with_draft(engine, *sampler, length, text));
      } else {
        Session session(engine, std::move(sampler));
        RETURN_IF_ERROR(write_with_target(session, length, text));
      }
    }
    joiner.add(std::span(text).subspan(std::min(beginning, text.size())));
    joiner.add(between);
  }
  return joiner.take();
}

std::vector<std::vector<int32_t>> cut_text(const Engine& engine, std::string_view text, int32_t positions) {
  TextJoiner joiner(engine, positions);
  joiner.add(engine.tokenizer().tokenize_piece(text, false));
  return joiner.take();
}

}  // namespace drafthorse
