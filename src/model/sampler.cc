#include "model/sampler.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/sampling.h"

namespace drafthorse {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();
// How many of the likeliest tokens the grammar is asked about, before it is asked about the whole vocabulary: to find
// one that is allowed, and all that truncation may keep.
constexpr size_t kFirstAsked[] = {1, 8, 256};
constexpr size_t kFirstCandidates[] = {256, 2048};

struct SamplerDeleter {
  void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
};
using SamplerPtr = std::unique_ptr<llama_sampler, SamplerDeleter>;

struct Scored {
  double score;
  int32_t id;
  // Best first; of equals the lowest id.
  bool operator<(const Scored& other) const { return score > other.score || (score == other.score && id < other.id); }
};

// The k ids at which logit / temperature + noise is largest (the logit alone where there is no noise), best first;
// fewer where no more are possible. `at(i)` gives the i-th logit and its id. Most logits are too far below the best
// for any noise, which costs a comparison to see.
template <typename At>
void best_scores(size_t count, const At& at, double temperature, const Noise* noise, size_t k,
                 std::vector<Scored>& best) {
  const double scale = noise != nullptr ? 1 / temperature : 1;
  const double most_noise = noise != nullptr ? Noise::gumbel_bound(0) : 0;
  best.clear();  // a heap, the least of the best first
  double least = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < count; ++i) {
    const auto [logit, id] = at(i);
    double score = static_cast<double>(logit) * scale;
    if (score == -std::numeric_limits<double>::infinity() || score + most_noise < least) continue;
    if (noise != nullptr) {
      const uint64_t bits = noise->bits(id);
      if (score + Noise::gumbel_bound(bits) < least) continue;
      score += Noise::gumbel(bits);
    }
    const Scored one = {score, id};
    if (best.size() == k) {
      if (!(one < best.front())) continue;
      std::pop_heap(best.begin(), best.end());
      best.pop_back();
    }
    best.push_back(one);
    std::push_heap(best.begin(), best.end());
    if (best.size() == k) least = best.front().score;
  }
  std::sort_heap(best.begin(), best.end());
}

template <typename At>
int32_t noisy_argmax(size_t count, const At& at, double temperature, const Noise& noise) {
  std::vector<Scored> best;
  best_scores(count, at, temperature, &noise, 1, best);
  return best.empty() ? kNoToken : best[0].id;
}

}  // namespace

struct Sampler::Chain {
  SamplerPtr penalties;   // nullptr: none
  SamplerPtr truncation;  // nullptr: none
};

Status check_sampling(const SamplingOptions& o) {
  // Written so that NaN is refused too.
  if (!(o.temperature >= 0 && o.temperature <= 100)) {
    return usage_error(fmt::format("a temperature of {} makes no sense: give 0 (greedy) to 100", o.temperature));
  }
  if (o.top_k < 0) return usage_error(fmt::format("top-k {} makes no sense: give 0 (all tokens) or more", o.top_k));
  if (!(o.top_p > 0 && o.top_p <= 1)) {
    return usage_error(fmt::format("top-p {} makes no sense: give more than 0, up to 1 (all tokens)", o.top_p));
  }
  if (!(o.min_p >= 0 && o.min_p <= 1)) {
    return usage_error(fmt::format("min-p {} makes no sense: give 0 (all tokens) to 1", o.min_p));
  }
  if (!(o.repeat_penalty > 0 && o.repeat_penalty <= 100)) {
    return usage_error(
        fmt::format("a repeat penalty of {} makes no sense: give more than 0; 1 is none", o.repeat_penalty));
  }
  if (o.repeat_last_n < 0) return usage_error("the repeat penalty looks at 0 tokens or more");
  if (o.ignore_end && !o.grammar.empty()) {
    return usage_error("a grammar decides where the text ends: --ignore-eos cannot be combined with it");
  }
  return {};
}

uint64_t sampler_bytes(const SamplingOptions& options, int32_t n_vocab, int32_t depth) {
  const auto vocabulary = static_cast<uint64_t>(n_vocab);
  const auto ahead = static_cast<uint64_t>(depth) + 1;
  uint64_t bytes = vocabulary * (sizeof(float) + sizeof(llama_token_data) + sizeof(int32_t) + 1);
  // States of the grammar with a verdict per token, and the candidates libllama unpacks: code points of each token.
  if (!options.grammar.empty()) {
    constexpr uint64_t kUnpackedTokenBytes = 160;
    bytes += vocabulary * (Grammar::kStates + kUnpackedTokenBytes);
  }
  if (options.rejection) bytes += vocabulary * sizeof(float) * (ahead + 1);
  return bytes;
}

Sampler::Sampler(const Tokenizer& tokenizer, const SamplingOptions& options)
    : tokenizer_(tokenizer),
      options_(options),
      n_vocab_(tokenizer.n_tokens()),
      chain_(std::make_unique<Chain>()),
      work_(static_cast<size_t>(n_vocab_)) {}

Sampler::~Sampler() = default;

Result<std::unique_ptr<Sampler>> Sampler::create(const Tokenizer& tokenizer, const SamplingOptions& options) {
  RETURN_IF_ERROR(check_sampling(options));
  std::unique_ptr<Sampler> sampler(new Sampler(tokenizer, options));
  const int32_t n_vocab = sampler->n_vocab_;
  if (!options.grammar.empty()) {
    ASSIGN_OR_RETURN(sampler->grammar_, Grammar::parse(tokenizer.vocabulary(), n_vocab, options.grammar));
  }
  if (options.ignore_end) {
    for (int32_t token = 0; token < n_vocab; ++token) {
      if (tokenizer.is_end(token)) sampler->end_tokens_.push_back(token);
    }
  }
  Chain& chain = *sampler->chain_;
  if (options.repeat_penalty != 1 && options.repeat_last_n > 0) {
    chain.penalties.reset(
        llama_sampler_init_penalties(n_vocab, options.repeat_last_n, static_cast<float>(options.repeat_penalty), 0, 0));
  }
  if (options.random() && sampler->truncates()) {
    chain.truncation.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    const auto add = [&](llama_sampler* one) { llama_sampler_chain_add(chain.truncation.get(), one); };
    if (options.top_k > 0) add(llama_sampler_init_top_k(options.top_k));
    if (options.top_p < 1) add(llama_sampler_init_top_p(static_cast<float>(options.top_p), 1));
    if (options.min_p > 0) add(llama_sampler_init_min_p(static_cast<float>(options.min_p), 1));
  }
  return sampler;
}

void Sampler::begin(size_t prompt_tokens) {
  prompt_tokens_ = prompt_tokens;
  proposals_.clear();
}

void Sampler::load(std::span<const float> logits) {
  const size_t known = std::min(logits.size(), work_.size());
  for (size_t i = 0; i < known; ++i) {
    // Damaged weights can give anything; what is no number is no candidate.
    work_[i] = logits[i] <= std::numeric_limits<float>::max() ? logits[i] : kImpossible;
  }
  std::fill(work_.begin() + static_cast<std::ptrdiff_t>(known), work_.end(), kImpossible);
}

// libllama's penalties are looked up for each candidate: it is shown only those that have one.
void Sampler::penalize(std::span<const int32_t> text) {
  for (const int32_t token : end_tokens_) work_[token] = kImpossible;
  if (chain_->penalties == nullptr) return;
  const std::span<const int32_t> last = text.last(std::min(text.size(), static_cast<size_t>(options_.repeat_last_n)));
  llama_sampler_reset(chain_->penalties.get());
  ids_.assign(last.begin(), last.end());
  for (const int32_t token : ids_) llama_sampler_accept(chain_->penalties.get(), token);
  std::sort(ids_.begin(), ids_.end());
  ids_.erase(std::unique(ids_.begin(), ids_.end()), ids_.end());
  candidates_.clear();
  for (const int32_t token : ids_) candidates_.push_back({token, work_[token], 0});
  llama_token_data_array array = {candidates_.data(), candidates_.size(), -1, false};
  llama_sampler_apply(chain_->penalties.get(), &array);
  for (size_t i = 0; i < array.size; ++i) work_[array.data[i].id] = array.data[i].logit;
}

void Sampler::refuse(Grammar& grammar) {
  ids_.clear();
  for (int32_t token = 0; token < n_vocab_; ++token) {
    if (work_[token] != kImpossible) ids_.push_back(token);
  }
  grammar.allowed(ids_, verdicts_);
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (verdicts_[i] == 0) work_[ids_[i]] = kImpossible;
  }
}

// What truncation may keep. Under a grammar the most likely tokens are asked about first: where enough of them are
// allowed, top-k and min-p never look further. Top-p needs the whole distribution.
void Sampler::take_candidates(Grammar* grammar) {
  candidates_.clear();
  for (int32_t token = 0; token < n_vocab_; ++token) {
    if (work_[token] != kImpossible) candidates_.push_back({token, work_[token], 0});
  }
  if (grammar == nullptr) return;
  const bool top_k_first = options_.top_k > 0;
  for (const size_t count : kFirstCandidates) {
    if (candidates_.size() <= count || (!top_k_first && options_.top_p < 1)) break;
    const auto likelier = [](const llama_token_data& a, const llama_token_data& b) {
      return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    };
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(candidates_.begin(), end - 1, candidates_.end(), likelier);
    const float least = (end - 1)->logit;
    ids_.clear();
    for (size_t i = 0; i < count; ++i) ids_.push_back(candidates_[i].id);
    grammar->allowed(ids_, verdicts_);
    std::vector<llama_token_data> kept;
    float most = kImpossible;
    for (size_t i = 0; i < count; ++i) {
      if (verdicts_[i] == 0) continue;
      kept.push_back(candidates_[i]);
      most = std::max(most, candidates_[i].logit);
    }
    const bool enough = top_k_first ? kept.size() >= static_cast<size_t>(options_.top_k)
                                    : least < most + static_cast<float>(std::log(options_.min_p));
    if (enough) {
      // As they would have come without the shortcut.
      std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
      candidates_ = std::move(kept);
      return;
    }
  }
  refuse(*grammar);
  std::erase_if(candidates_, [&](const llama_token_data& one) { return work_[one.id] == kImpossible; });
}

void Sampler::truncate(Grammar* grammar) {
  take_candidates(grammar);
  if (candidates_.empty() || chain_->truncation == nullptr) return;
  llama_token_data_array array = {candidates_.data(), candidates_.size(), -1, false};
  llama_sampler_apply(chain_->truncation.get(), &array);
  candidates_.resize(array.size);
}

int32_t Sampler::choose(std::span<const float> logits, std::span<const int32_t> text) {
  const bool plain = grammar_ == nullptr && chain_->penalties == nullptr && end_tokens_.empty();
  if (plain && !options_.random()) return greedy_token(logits.first(std::min(logits.size(), work_.size())));
  if (grammar_ != nullptr) grammar_->move_to(text.subspan(std::min(prompt_tokens_, text.size())));
  load(logits);
  penalize(text);
  const Noise noise(options_.seed, NoiseStream::kToken, text.size());
  std::vector<Scored> scored;
  if (options_.random() && truncates()) {
    truncate(grammar_.get());
    return noisy_argmax(
        candidates_.size(), [&](size_t i) { return std::pair(candidates_[i].logit, candidates_[i].id); },
        options_.temperature, noise);
  }
  const auto best = [&](size_t count) {
    best_scores(
        work_.size(), [&](size_t i) { return std::pair(work_[i], static_cast<int32_t>(i)); }, options_.temperature,
        options_.random() ? &noise : nullptr, count, scored);
    return scored.empty() ? kNoToken : scored[0].id;
  };
  if (grammar_ == nullptr) return best(1);
  // The best of those allowed is the first allowed one in the order of scores.
  for (const size_t count : kFirstAsked) {
    best(count);
    ids_.clear();
    for (const Scored& one : scored) ids_.push_back(one.id);
    grammar_->allowed(ids_, verdicts_);
    const auto first = std::find(verdicts_.begin(), verdicts_.end(), 1);
    if (first != verdicts_.end()) return scored[static_cast<size_t>(first - verdicts_.begin())].id;
    if (scored.size() < count) return kNoToken;
  }
  refuse(*grammar_);
  return best(1);
}

void Sampler::distribution(std::span<const float> logits, std::span<const int32_t> text, std::vector<float>& p) {
  p.assign(work_.size(), 0);
  if (!options_.random()) {
    const int32_t token = choose(logits, text);
    if (token != kNoToken) p[token] = 1;
    return;
  }
  if (grammar_ != nullptr) grammar_->move_to(text.subspan(std::min(prompt_tokens_, text.size())));
  load(logits);
  penalize(text);
  truncate(grammar_.get());
  if (candidates_.empty()) return;
  float most = kImpossible;
  for (const llama_token_data& one : candidates_) most = std::max(most, one.logit);
  double sum = 0;
  const auto weight = [&](float logit) { return std::exp(static_cast<double>(logit - most) / options_.temperature); };
  for (const llama_token_data& one : candidates_) sum += weight(one.logit);
  for (const llama_token_data& one : candidates_) p[one.id] = static_cast<float>(weight(one.logit) / sum);
}

namespace {

int32_t draw(std::span<const float> p, const Noise& noise) {
  return noisy_argmax(
      p.size(), [&](size_t i) { return std::pair(std::log(p[i]), static_cast<int32_t>(i)); }, 1, noise);
}

}  // namespace

int32_t Sampler::choose_by_residual(std::span<const float> p, const Proposal& proposal, size_t position) const {
  std::vector<float> rest(p.begin(), p.end());
  const std::span<const float> q = proposal.q;
  for (size_t i = 0; i < q.size(); ++i) rest[i] = std::max(0.0F, p[i] - q[i]);
  if (q.empty()) rest[proposal.certain] = 0;
  const Noise noise(options_.seed, NoiseStream::kResidual, position);
  const int32_t token = draw(rest, noise);
  return token != kNoToken ? token : draw(p, noise);  // rounding can leave nothing
}

int32_t Sampler::propose(std::span<const float> logits, std::span<const int32_t> text) {
  if (!options_.rejection || !options_.random()) return choose(logits, text);
  Proposal& proposal = proposals_[text.size()];
  proposal.certain = kNoToken;
  distribution(logits, text, proposal.q);
  return draw(proposal.q, Noise(options_.seed, NoiseStream::kDraft, text.size()));
}

bool Sampler::propose_token(int32_t token, std::span<const int32_t> text) {
  if (std::find(end_tokens_.begin(), end_tokens_.end(), token) != end_tokens_.end()) return false;
  if (grammar_ != nullptr) {
    grammar_->move_to(text.subspan(std::min(prompt_tokens_, text.size())));
    if (!grammar_->allowed(token)) return false;
  }
  if (options_.rejection && options_.random()) proposals_[text.size()] = {{}, token};
  return true;
}

int32_t Sampler::decide(std::span<const float> logits, std::span<const int32_t> text, int32_t proposed) {
  if (!options_.rejection || !options_.random()) return choose(logits, text);
  const size_t position = text.size();
  distribution(logits, text, target_p_);
  if (proposed == kNoToken) return draw(target_p_, Noise(options_.seed, NoiseStream::kToken, position));
  const auto found = proposals_.find(position);
  CHECK(found != proposals_.end());
  const Proposal& proposal = found->second;
  const std::span<const float> q = proposal.q;
  CHECK(!q.empty() || proposal.certain == proposed);
  const double q_proposed = q.empty() ? 1.0 : static_cast<double>(q[proposed]);
  const double u = Noise(options_.seed, NoiseStream::kAccept, position).uniform();
  const int32_t token = u * q_proposed < static_cast<double>(target_p_[proposed])
                            ? proposed
                            : choose_by_residual(target_p_, proposal, position);
  proposals_.erase(proposals_.begin(), proposals_.upper_bound(position));
  return token;
}

int32_t Sampler::choose_freely(std::span<const float> logits, size_t position) {
  if (!options_.random()) return greedy_token(logits);
  load(logits);
  truncate(nullptr);
  return noisy_argmax(
      candidates_.size(), [&](size_t i) { return std::pair(candidates_[i].logit, candidates_[i].id); },
      options_.temperature, Noise(options_.seed, NoiseStream::kToken, position));
}

}  // namespace drafthorse
