#include "engine/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "draft/batch_drafter.h"
#include "engine/generation.h"
#include "engine/work.h"
#include "plan/batch_depth.h"

namespace drafthorse {
namespace {

// Of a draft that is the target at fewer bits, before anything was seen.
constexpr double kItselfAcceptance = 0.95;

ModelCost cost_of(const GgufIndex& index, const Model& model) {
  const uint64_t kv = KvCache::position_bytes(model.config(), model.kv().shape().type);
  return assumed_model_cost(model_work(index, model),
                            {.skew = kSkewOfMany, .kv_bytes_per_key = static_cast<double>(kv)});
}

double residents_per_layer(const LoadedModel& model) {
  if (model.cache == nullptr) return 0;
  if (model.device_experts != nullptr) {
    return static_cast<double>(model.device_experts->slots().held()) / model.model->layout().moe_layers();
  }
  return static_cast<double>(model.cache->residents()) / model.model->layout().moe_layers();
}

// Of a device, whose copies nobody sees end; 0: not known.
double link_busy_s(const LoadedModel& target, uint64_t bytes) {
  const double rate = target.device_experts != nullptr ? target.device_experts->tier().link_bytes_per_s() : 0;
  return rate > 0 ? static_cast<double>(bytes) / rate : 0;
}

}  // namespace

// A request that waits or was admitted.
struct Batch::Sequence {
  BatchRequest request;
  int32_t number = -1;  // in the KV caches
  uint64_t bytes = 0;   // booked for it
  std::shared_ptr<Sampler> sampler;
  Generation text;
  BatchResult result;

  // Its part of the iteration under way.
  std::vector<int32_t> tokens;   // that the target runs
  std::vector<int32_t> drafted;  // the last ones of them
  bool chooses = false;          // logits of the token before the drafted ones, and of these, are wanted
  int32_t accepted = 0;
  int32_t chosen = 0;
  bool decided = false;  // nothing more of the window can become text

  void begin_iteration() {
    tokens.clear();
    drafted.clear();
    chooses = decided = false;
    accepted = chosen = 0;
  }

  // Most tokens a draft may have: no more than can be generated, less the target's own.
  int64_t room(int32_t context) const {
    int64_t room = context - static_cast<int64_t>(text.tokens.size());
    if (request.token_limit >= 0) room = std::min(room, request.token_limit - result.generated_tokens);
    return room - 1;
  }
};

struct Batch::Parts {
  explicit Parts(LoadedModel& of) : target(of) {}

  LoadedModel& target;
  std::unique_ptr<BatchDrafter> drafter;         // or none
  std::optional<BatchDepthPolicy> depth_policy;  // none where the depth is given, or nobody drafts
  double resident_experts = 0;                   // when it began, of each layer
  std::vector<int> rooms;                        // of those that generate, in the order of admission
  std::vector<int64_t> left, behind;             // likewise (BatchState)
  BatchDepthChoice choice;                       // of the iteration
  // Requests that sample alike but for their seeds share a sampler, unless it has a grammar, which remembers.
  std::vector<std::weak_ptr<Sampler>> samplers;
  std::deque<std::unique_ptr<Sequence>> waiting;
  std::vector<std::unique_ptr<Sequence>> active;  // in the order of admission
  std::vector<Sequence*> running;                 // those in the pass, in its order
  std::vector<int32_t> free_numbers;
  uint64_t free_bytes = 0;
  uint64_t bytes_read = 0;  // of experts, into the fastest tier, as of the last iteration
  std::vector<BatchResult> finished;
};

Batch::Batch(Engine& engine) : engine_(engine), parts_(std::make_unique<Parts>(engine.target())) {
  CHECK(engine.options().batch.has_value());
  Parts& parts = *parts_;
  const int32_t sequences = parts.target.model->kv().shape().sequences;
  for (int32_t number = sequences - 1; number >= 0; --number) parts.free_numbers.push_back(number);
  parts.free_bytes = engine.batch_bytes();
  if (engine.draft_pass() != nullptr) {
    parts.drafter = std::make_unique<ModelBatchDrafter>(*engine.draft_pass(), parts.target.model->config().n_vocab);
    // While the draft computes, what the target's next pass begins with is read.
    if (parts.target.cache != nullptr) {
      engine.draft_pass()->set_background([tier = parts.target.fastest_tier()] { tier->poll(); });
    }
  } else if (!engine.drafter_names_in_use().empty()) {
    parts.drafter = std::make_unique<NgramBatchDrafter>(sequences, engine.context());
  }
  if (parts.drafter != nullptr && !engine.options().draft_depth) {
    const std::optional<BatchCosts>& known = engine.options().batch->costs;
    BatchDepthOptions options;
    BatchCosts& costs = options.costs;
    costs = known ? *known : BatchCosts{.target = cost_of(engine.target_index(), *parts.target.model)};
    if (const FastTier* fastest = parts.target.fastest_tier(); fastest != nullptr && fastest->load_bytes_per_s() > 0) {
      costs.load_bytes_per_s = fastest->load_bytes_per_s();
    }
    options.max_depth = kMostBatchDepth;
    if (engine.draft_pass() == nullptr) {
      costs.draft.reset();
    } else {
      if (!costs.draft) costs.draft = cost_of(engine.draft_index(), engine.draft_pass()->model());
      // The same model at fewer bits agrees with itself. Told nothing, the policy would never draft so deep that it
      // pays, and so never learn it.
      if (engine.draft_pass()->model().shares_kv()) options.acceptance = kItselfAcceptance;
    }
    parts.depth_policy.emplace(std::move(options));
  }
  parts.target.pass->set_read_ahead(find_batch_regime(engine.options().batch->regime)->read_ahead);
}

Batch::~Batch() = default;

Status Batch::submit(BatchRequest request) {
  if (request.prompt.empty()) return usage_error("the prompt is empty");
  if (static_cast<int64_t>(request.prompt.size()) >= engine_.context()) {
    return usage_error(fmt::format("the prompt has {} tokens and leaves no room in the context of {}",
                                   request.prompt.size(), engine_.context()));
  }
  RETURN_IF_ERROR(check_sampling(request.sampling));
  if (request.sampling.rejection) return usage_error("rejection sampling is for one text at a time");
  auto sequence = std::make_unique<Sequence>();
  sequence->request = std::move(request);
  parts_->waiting.push_back(std::move(sequence));
  return {};
}

bool Batch::idle() const { return parts_->waiting.empty() && parts_->active.empty(); }
int64_t Batch::waiting() const { return static_cast<int64_t>(parts_->waiting.size()); }
int64_t Batch::active() const { return static_cast<int64_t>(parts_->active.size()); }

std::vector<BatchResult> Batch::take_finished() { return std::exchange(parts_->finished, {}); }

void Batch::finish(Sequence& sequence, Status status) {
  BatchResult& result = sequence.result;
  result.id = sequence.request.id;
  result.status = std::move(status);
  result.text += sequence.text.take_text();
  if (!result.status.ok()) result.text += sequence.text.stop_text.take_rest();
  result.stop = sequence.text.stop;
  result.prompt_tokens = static_cast<int64_t>(sequence.request.prompt.size());
  parts_->finished.push_back(std::move(result));
}

Status Batch::choose_sampler(Sequence& sequence) {
  const SamplingOptions& wanted = sequence.request.sampling;
  std::vector<std::weak_ptr<Sampler>>& samplers = parts_->samplers;
  std::erase_if(samplers, [](const std::weak_ptr<Sampler>& one) { return one.expired(); });
  for (const std::weak_ptr<Sampler>& one : samplers) {
    if (!wanted.grammar.empty()) break;
    std::shared_ptr<Sampler> known = one.lock();
    known->set_seed(wanted.seed);
    if (known->options() != wanted) continue;
    sequence.sampler = std::move(known);
    return {};
  }
  ASSIGN_OR_RETURN(sequence.sampler, Sampler::create(engine_.tokenizer(), wanted));
  sequence.sampler->begin(sequence.request.prompt.size());
  if (wanted.grammar.empty()) samplers.push_back(sequence.sampler);
  return {};
}

Sampler& Batch::sampler_of(Sequence& sequence) {
  if (sequence.request.sampling.grammar.empty()) {
    sequence.sampler->set_seed(sequence.request.sampling.seed);
    sequence.sampler->begin(sequence.request.prompt.size());
  }
  return *sequence.sampler;
}

// What a request takes of the memory for sequences: its text, should it become as long as it may, and its sampler,
// unless it is the one booked for all.
uint64_t Batch::bytes_needed(const BatchRequest& request) const {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t most =
      request.token_limit < 0 ? engine_.context() : std::min<int64_t>(engine_.context(), prompt + request.token_limit);
  SamplingOptions common = engine_.options().sampling;
  common.seed = request.sampling.seed;
  const bool booked = common.grammar.empty() && common == request.sampling;
  return engine_.sequence_bytes(most) +
         (booked ? 0 : sampler_bytes(request.sampling, engine_.tokenizer().n_tokens(), engine_.depth_limit()));
}

void Batch::admit() {
  Parts& parts = *parts_;
  while (!parts.waiting.empty() && !parts.free_numbers.empty()) {
    std::unique_ptr<Sequence>& next = parts.waiting.front();
    next->bytes = bytes_needed(next->request);
    // One text alone always has room: what its grammar takes beyond that is the reserve's.
    if (next->bytes > parts.free_bytes && !parts.active.empty()) return;
    std::unique_ptr<Sequence> sequence = std::move(next);
    parts.waiting.pop_front();
    sequence->text.stop_text = StopText(sequence->request.stop_texts);
    if (sequence->request.token_limit == 0) {
      sequence->text.stop = StopReason::kTokenLimit;
      finish(*sequence, {});
      continue;
    }
    if (Status status = choose_sampler(*sequence); !status.ok()) {
      finish(*sequence, std::move(status));
      continue;
    }
    sequence->bytes = std::min(sequence->bytes, parts.free_bytes);
    parts.free_bytes -= sequence->bytes;
    sequence->number = parts.free_numbers.back();
    parts.free_numbers.pop_back();
    sequence->text.tokens = sequence->request.prompt;
    parts.active.push_back(std::move(sequence));
  }
}

// Whether all of the text but its last token is in the KV cache.
bool Batch::generates(const Sequence& sequence) const {
  return parts_->target.model->kv().length(sequence.number) + 1 == static_cast<int32_t>(sequence.text.tokens.size());
}

// Tokens that a request without a limit is likely to make still, by what memory was planned for.
int64_t Batch::likely_left(const Sequence& sequence) const {
  const int64_t typical = engine_.options().batch->typical_tokens;
  if (sequence.request.token_limit >= 0 || typical <= 0) return std::numeric_limits<int64_t>::max();
  return std::max<int64_t>(1, typical - static_cast<int64_t>(sequence.text.tokens.size()));
}

int32_t Batch::choose_depth() {
  Parts& parts = *parts_;
  const KvCache& kv = parts.target.model->kv();
  int64_t prompt_tokens = 0;
  parts.rooms.clear();
  parts.left.clear();
  parts.behind.clear();
  parts.choice = {};
  for (const auto& one : parts.active) {
    if (!generates(*one)) {
      prompt_tokens += static_cast<int64_t>(one->text.tokens.size()) - kv.length(one->number);
      continue;
    }
    ++last_.generating;
    last_.cached_positions += kv.length(one->number);
    const int64_t room = std::max<int64_t>(0, one->room(engine_.context()));
    parts.rooms.push_back(static_cast<int>(std::min<int64_t>(room, kMaxDraftDepth)));
    parts.left.push_back(std::min(room + 1, likely_left(*one)));
    const auto length = static_cast<int32_t>(one->text.tokens.size());
    parts.behind.push_back(parts.drafter != nullptr ? parts.drafter->behind(one->number, length) : 0);
  }
  if (parts.drafter == nullptr || last_.generating == 0) return 0;
  const int32_t columns = parts.target.model->workspace().shape().columns;
  const int32_t fit = columns / last_.generating - 1;
  if (!parts.depth_policy) return std::min(*engine_.options().draft_depth, fit);
  parts.resident_experts = residents_per_layer(parts.target);
  parts.choice = parts.depth_policy->choose(batch_state(prompt_tokens, fit));
  return parts.choice.depth;
}

BatchState Batch::batch_state(int64_t prompt_tokens, int32_t most_depth) const {
  const int64_t riding =
      std::min<int64_t>(prompt_tokens, parts_->target.model->workspace().shape().columns - last_.generating);
  return {.sequences = last_.generating,
          .cached_positions = last_.cached_positions,
          .rooms = parts_->rooms,
          .left = parts_->left,
          .behind = parts_->behind,
          .prompt_tokens = riding,
          .prompt_token_keys = prompt_keys(riding),
          .resident_experts = parts_->resident_experts,
          .max_depth = most_depth};
}

// What the next so many tokens of prompts see, if they are taken in the order of admission.
int64_t Batch::prompt_keys(int64_t tokens) const {
  int64_t keys = 0;
  for (const auto& one : parts_->active) {
    if (generates(*one)) continue;
    const int64_t known = parts_->target.model->kv().length(one->number);
    const int64_t part = std::min(tokens, static_cast<int64_t>(one->text.tokens.size()) - known);
    keys += part * known + part * (part + 1) / 2;
    tokens -= part;
  }
  return keys;
}

Status Batch::draft(int32_t depth) {
  std::vector<DraftRequest> requests;
  std::vector<Sequence*> sequences;
  size_t next = 0;  // of those that generate, as choose_depth() saw them
  for (const auto& one : parts_->active) {
    if (!generates(*one)) continue;
    const size_t i = next++;
    const int64_t room = std::clamp<int64_t>(one->room(engine_.context()), 0, depth);
    if (room == 0 || !parts_->choice.drafts_for(i)) continue;
    sequences.push_back(one.get());
    last_.asked_tokens += room;
    last_.caught_up_tokens += parts_->behind[i];
    requests.push_back({one->number,
                        one->text.tokens,
                        static_cast<int32_t>(room),
                        [this, sequence = one.get()]() -> Sampler& { return sampler_of(*sequence); },
                        {}});
  }
  if (requests.empty()) return {};
  const int64_t start = engine_.clock().now_ns();
  const Status status = parts_->drafter->draft(requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    sequences[i]->drafted = std::move(requests[i].drafted);
    last_.drafted_tokens += static_cast<int64_t>(sequences[i]->drafted.size());
  }
  const int64_t end = engine_.clock().now_ns();
  last_.draft_s = seconds(end - start);
  if (engine_.options().trace != nullptr) engine_.options().trace->span(Span::kDraft, last_.drafted_tokens, start, end);
  return status;
}

// The windows of all that generate, then as much of the others' prompts as there is room for.
std::vector<BatchRun> Batch::lay_out() {
  const KvCache& kv = parts_->target.model->kv();
  std::vector<BatchRun> runs;
  int64_t room = parts_->target.model->workspace().shape().columns;
  parts_->running.clear();
  const auto add = [&](Sequence& one) {
    parts_->running.push_back(&one);
    runs.push_back({{one.tokens, one.number}, one.chooses ? static_cast<int32_t>(one.drafted.size()) + 1 : 0});
    room -= static_cast<int64_t>(one.tokens.size());
  };
  for (const auto& one : parts_->active) {
    if (!generates(*one)) continue;
    one->tokens.push_back(one->text.tokens.back());
    one->tokens.insert(one->tokens.end(), one->drafted.begin(), one->drafted.end());
    one->chooses = true;
    last_.window_tokens += static_cast<int64_t>(one->tokens.size());
    add(*one);
  }
  for (const auto& one : parts_->active) {
    if (generates(*one) || room == 0) continue;
    const auto rest = std::span(one->text.tokens).subspan(static_cast<size_t>(kv.length(one->number)));
    const auto part = rest.first(static_cast<size_t>(std::min<int64_t>(room, static_cast<int64_t>(rest.size()))));
    one->tokens.assign(part.begin(), part.end());
    // With the prompt's last token its first own one is chosen.
    one->chooses = part.size() == rest.size();
    const auto tokens = static_cast<int64_t>(part.size());
    last_.prompt_tokens += tokens;
    last_.prompt_token_keys += tokens * kv.length(one->number) + tokens * (tokens + 1) / 2;
    add(*one);
  }
  return runs;
}

Status Batch::verify(std::span<const BatchRun> runs) {
  LoadedModel& target = parts_->target;
  if (FastTier* fastest = target.fastest_tier(); fastest != nullptr) {
    fastest->set_window(static_cast<double>(last_.window_tokens + last_.prompt_tokens));
  }
  const int64_t start = engine_.clock().now_ns();
  RETURN_IF_ERROR(target.pass->run_batch(runs));
  if (Trace* trace = engine_.options().trace; trace != nullptr) {
    trace->span(Span::kVerify, last_.window_tokens + last_.prompt_tokens, start, engine_.clock().now_ns());
  }
  target.pass->record_prompt();
  const PassStats& pass = target.pass->stats();
  last_.pass_s = seconds(pass.duration_ns);
  last_.attention_s = seconds(pass.stage_ns);
  last_.stall_s = seconds(pass.stall_ns);
  last_.experts_s = last_.pass_s - last_.attention_s - last_.stall_s;
  if (target.cache != nullptr) {
    const LayerCacheStats all = sum(target.cache->stats());
    uint64_t bytes = all.bytes_demanded + all.bytes_prefetched;
    if (target.device_experts != nullptr) {
      const DeviceLayerStats device = total_of(target.device_experts->stats());
      bytes = device.bytes_copied + device.bytes_prefetched;
    }
    last_.bytes_read = bytes - std::exchange(parts_->bytes_read, bytes);
  }
  return {};
}

// The target's choices, in blocks of as many logits as there is room for.
void Batch::accept() {
  const int64_t start = engine_.clock().now_ns();
  ForwardPass& pass = *parts_->target.pass;
  std::vector<std::pair<Sequence*, size_t>> places;  // of logits: whose, and before which drafted token
  for (Sequence* one : parts_->running) {
    for (size_t i = 0; one->chooses && i <= one->drafted.size(); ++i) places.emplace_back(one, i);
  }
  const auto block = static_cast<size_t>(parts_->target.model->workspace().shape().max_window);
  for (size_t first = 0; first < places.size(); first += block) {
    const size_t count = std::min(block, places.size() - first);
    pass.head(static_cast<int32_t>(first), static_cast<int32_t>(count));
    for (size_t i = 0; i < count; ++i) {
      const auto [sequence, place] = places[first + i];
      if (!sequence->decided) decide(*sequence, place, pass.logits(static_cast<int32_t>(i)));
    }
  }
  const int64_t end = engine_.clock().now_ns();
  last_.head_s = seconds(end - start);
  if (Trace* trace = engine_.options().trace; trace != nullptr) {
    trace->span(Span::kHead, static_cast<int64_t>(places.size()), start, end);
  }
}

// What follows the window's tokens up to `place` drafted ones: the draft's next, or the target's own.
void Batch::decide(Sequence& sequence, size_t place, std::span<const float> logits) {
  const int32_t proposed = place < sequence.drafted.size() ? sequence.drafted[place] : kNoToken;
  const int32_t token = sampler_of(sequence).decide(logits, sequence.text.tokens, proposed);
  sequence.decided = true;
  if (token == kNoToken) {
    if (sequence.chosen == 0) sequence.result.status = no_token_left(sequence.request.sampling);
    return;
  }
  const bool goes_on = sequence.text.append(token, engine_.tokenizer());
  if (sequence.text.stop != StopReason::kEndOfText) ++sequence.chosen;
  if (!goes_on || token != proposed) return;
  ++sequence.accepted;
  sequence.decided = false;
}

// What the iteration leaves: KV caches as long as the texts, those that are done out of the way.
void Batch::settle() {
  Parts& parts = *parts_;
  KvCache& kv = parts.target.model->kv();
  for (Sequence* one : parts.running) {
    if (!one->chooses) continue;
    const auto drafted = static_cast<int32_t>(one->drafted.size());
    kv.truncate(kv.length(one->number) - (drafted - one->accepted), one->number);
    if (drafted > 0) parts.drafter->commit(one->number, static_cast<int32_t>(one->text.tokens.size()));
    one->result.generated_tokens += one->chosen;
    one->result.accepted_tokens += one->accepted;
    last_.generated_tokens += one->chosen;
    last_.accepted_tokens += one->accepted;
    one->result.text += one->text.take_text();
    const int64_t limit = one->request.token_limit;
    if (one->text.stop != StopReason::kNone) continue;
    if (limit >= 0 && one->result.generated_tokens >= limit) {
      one->text.stop = StopReason::kTokenLimit;
    } else if (static_cast<int32_t>(one->text.tokens.size()) >= engine_.context()) {
      one->text.stop = StopReason::kContextFull;
    }
  }
  std::erase_if(parts.active, [&](const std::unique_ptr<Sequence>& one) {
    if (one->text.stop == StopReason::kNone && one->result.status.ok()) return false;
    kv.release(one->number);
    if (parts.drafter != nullptr) parts.drafter->release(one->number);
    parts.free_numbers.push_back(one->number);
    parts.free_bytes += one->bytes;
    finish(*one, std::move(one->result.status));
    return true;
  });
  parts.running.clear();  // some of them are gone
}

void Batch::note(int64_t start_ns) {
  ++stats_.iterations;
  stats_.busy_s += seconds(engine_.clock().now_ns() - start_ns);
  stats_.sum.add(last_);
}

// What the iteration tells about the next ones' depth.
void Batch::learn() {
  std::vector<int64_t> reached(static_cast<size_t>(last_.depth));
  std::vector<int64_t> accepted(static_cast<size_t>(last_.depth));
  for (const Sequence* one : parts_->running) {
    for (int32_t i = 0; i < static_cast<int32_t>(one->drafted.size()) && i <= one->accepted; ++i) {
      ++reached[static_cast<size_t>(i)];
      if (i < one->accepted) ++accepted[static_cast<size_t>(i)];
    }
  }
  parts_->depth_policy->observe({.depth = last_.depth,
                                 .sequences = last_.generating,
                                 .window_tokens = last_.window_tokens,
                                 .drafted_tokens = last_.drafted_tokens,
                                 .asked_tokens = last_.asked_tokens,
                                 .cached_positions = last_.cached_positions,
                                 .resident_experts = parts_->resident_experts,
                                 .prompt_tokens = last_.prompt_tokens,
                                 .prompt_token_keys = last_.prompt_token_keys,
                                 .caught_up_tokens = last_.caught_up_tokens,
                                 .draft_s = last_.draft_s,
                                 .pass_s = last_.pass_s,
                                 .stages_s = last_.attention_s,
                                 .experts_s = last_.experts_s,
                                 .stall_s = last_.stall_s,
                                 .head_s = last_.head_s,
                                 .link_busy_s = link_busy_s(parts_->target, last_.bytes_read),
                                 .bytes_read = last_.bytes_read,
                                 .reached = reached,
                                 .accepted = accepted});
}

Status Batch::step() {
  const int64_t start = engine_.clock().now_ns();
  admit();
  stats_.most_sequences = std::max(stats_.most_sequences, active());
  if (parts_->active.empty()) return {};
  last_ = {};
  for (const auto& one : parts_->active) one->begin_iteration();

  // 1. Draft.
  last_.depth = choose_depth();
  if (Trace* trace = engine_.options().trace; trace != nullptr && parts_->drafter != nullptr) {
    trace->depth(last_.depth, explain(), engine_.clock().now_ns());
  }
  if (last_.depth > 0) RETURN_IF_ERROR(draft(last_.depth));

  // 2. Verify, the prompts' parts riding along.
  const std::vector<BatchRun> runs = lay_out();
  if (Status status = verify(runs); !status.ok()) {
    forget_drafts();
    return status;
  }

  // 3. Accept.
  accept();
  if (parts_->depth_policy) learn();
  settle();
  note(start);
  return {};
}

// What the drafter holds of tokens that nobody verified.
void Batch::forget_drafts() {
  for (const auto& one : parts_->active) {
    if (!one->drafted.empty()) {
      parts_->drafter->commit(one->number, static_cast<int32_t>(one->text.tokens.size()));
    }
  }
}

void BatchIteration::add(const BatchIteration& other) {
  generating += other.generating;
  window_tokens += other.window_tokens;
  prompt_tokens += other.prompt_tokens;
  prompt_token_keys += other.prompt_token_keys;
  asked_tokens += other.asked_tokens;
  caught_up_tokens += other.caught_up_tokens;
  drafted_tokens += other.drafted_tokens;
  accepted_tokens += other.accepted_tokens;
  generated_tokens += other.generated_tokens;
  cached_positions += other.cached_positions;
  draft_s += other.draft_s;
  pass_s += other.pass_s;
  attention_s += other.attention_s;
  experts_s += other.experts_s;
  stall_s += other.stall_s;
  head_s += other.head_s;
  bytes_read += other.bytes_read;
}

std::string Batch::explain() const {
  const std::string who = parts_->drafter == nullptr ? "nobody" : std::string(parts_->drafter->name());
  if (!parts_->depth_policy) return fmt::format("{} drafts, depth {}: as asked for", who, last_.depth);
  return fmt::format("{} drafts; {}", who, parts_->depth_policy->explain(batch_state(0, kMostBatchDepth)));
}

}  // namespace drafthorse
