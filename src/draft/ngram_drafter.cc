#include "draft/ngram_drafter.h"

#include <algorithm>
#include <bit>

namespace drafthorse {
namespace {

size_t table_size(int32_t context) { return std::bit_ceil(static_cast<size_t>(std::max(context, 1))); }

}  // namespace

NgramDrafter::NgramDrafter(int32_t context) : last_place_(table_size(context), kNowhere) {
  tokens_.reserve(static_cast<size_t>(context));
  place_before_.reserve(static_cast<size_t>(context));
}

uint64_t NgramDrafter::bytes(int32_t context) {
  return (table_size(context) + 2 * static_cast<uint64_t>(context)) * sizeof(int32_t);
}

size_t NgramDrafter::hash_before(size_t end) const {
  uint64_t hash = 0;
  for (size_t i = end - kGram; i < end; ++i) {
    hash = (hash + static_cast<uint64_t>(tokens_[i]) + 1) * 0x9E3779B97F4A7C15ULL;
    hash ^= hash >> 29;
  }
  return hash & (last_place_.size() - 1);
}

// The n-gram that ends with the text is entered when a token follows it: it is no place of its own yet.
void NgramDrafter::push(int32_t token) {
  const size_t end = tokens_.size();
  if (end >= kGram) {
    int32_t& last = last_place_[hash_before(end)];
    place_before_.push_back(last);
    last = static_cast<int32_t>(end);
  }
  tokens_.push_back(token);
}

void NgramDrafter::pop() {
  tokens_.pop_back();
  const size_t end = tokens_.size();
  if (end < kGram) return;
  last_place_[hash_before(end)] = place_before_.back();
  place_before_.pop_back();
}

void NgramDrafter::truncate(int32_t length) {
  while (tokens_.size() > static_cast<size_t>(length)) pop();
}

void NgramDrafter::follow(std::span<const int32_t> text) {
  truncate(static_cast<int32_t>(std::min(tokens_.size(), text.size())));
  for (const int32_t token : text.subspan(tokens_.size())) push(token);
}

NgramDrafter::Match NgramDrafter::find() const {
  Match best;
  const size_t end = tokens_.size();
  if (end < kGram) return best;
  int32_t place = last_place_[hash_before(end)];
  for (int32_t looked = 0; place != kNowhere && looked < kMostPlaces && best.length < kMostMatch; ++looked) {
    const auto at = static_cast<size_t>(place);
    const size_t most = std::min<size_t>(at, kMostMatch);
    size_t length = 0;
    while (length < most && tokens_[at - 1 - length] == tokens_[end - 1 - length]) ++length;
    // Other n-grams share the chain where their hashes meet.
    if (length >= kGram && static_cast<int32_t>(length) > best.length) best = {place, static_cast<int32_t>(length)};
    place = place_before_[at - kGram];
  }
  return best;
}

Result<std::vector<int32_t>> NgramDrafter::prepare(std::span<const int32_t> text, int32_t scored, Sampler&) {
  std::vector<int32_t> choices;
  for (int32_t i = 0; i < scored; ++i) {
    follow(text.first(text.size() - static_cast<size_t>(scored - i)));
    const Match match = find();
    choices.push_back(match.next == kNowhere ? kNoToken : tokens_[static_cast<size_t>(match.next)]);
  }
  follow(text);
  return choices;
}

int32_t NgramDrafter::reach(std::span<const int32_t> text, int32_t depth) {
  follow(text);
  return std::min(depth, 2 * find().length);
}

std::vector<int32_t> NgramDrafter::foresight(std::span<const int32_t> text, int32_t depth) {
  std::vector<int32_t> tokens;
  const int32_t most = reach(text, depth);
  const auto next = static_cast<size_t>(find().next);
  for (size_t i = 0; i < static_cast<size_t>(most); ++i) {
    // A match that overlaps the text's end goes on in what has just been said: the text repeats itself.
    tokens.push_back(next + i < text.size() ? text[next + i] : tokens[next + i - text.size()]);
  }
  return tokens;
}

Result<std::vector<int32_t>> NgramDrafter::draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) {
  std::vector<int32_t> drafted;
  std::vector<int32_t> ahead(text.begin(), text.end());
  for (const int32_t token : foresight(text, depth)) {
    if (!sampler.propose_token(token, ahead)) break;
    drafted.push_back(token);
    ahead.push_back(token);
    if (sampler.is_end(token)) break;
  }
  return drafted;
}

}  // namespace drafthorse
