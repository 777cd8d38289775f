#include "draft/batch_drafter.h"

#include <algorithm>

namespace drafthorse {

struct ModelBatchDrafter::Ahead {
  DraftRequest* request = nullptr;
  std::vector<int32_t> text;    // with what is drafted
  std::vector<int32_t> unread;  // tokens for the next pass
  int32_t length = 0;           // of the KV cache, when drafting began
};

ModelBatchDrafter::ModelBatchDrafter(ForwardPass& pass, int32_t target_vocabulary)
    : pass_(pass), target_vocabulary_(target_vocabulary), shares_kv_(pass.model().shares_kv()) {}

// Everything but the texts' last tokens, in passes as long as the workspace allows.
Status ModelBatchDrafter::catch_up(std::span<Ahead> all) {
  const int32_t columns = pass_.model().workspace().shape().columns;
  std::vector<BatchRun> runs;
  int32_t count = 0;
  const auto flush = [&]() -> Status {
    if (!runs.empty()) RETURN_IF_ERROR(pass_.run_batch(runs));
    runs.clear();
    count = 0;
    return {};
  };
  for (Ahead& one : all) {
    std::span<const int32_t> rest = one.unread;
    while (rest.size() > 1) {
      const size_t take = std::min(rest.size() - 1, static_cast<size_t>(columns - count));
      runs.push_back({{rest.first(take), one.request->sequence}, 0});
      count += static_cast<int32_t>(take);
      rest = rest.subspan(take);
      if (count == columns) RETURN_IF_ERROR(flush());
    }
  }
  RETURN_IF_ERROR(flush());
  for (Ahead& one : all) one.unread.erase(one.unread.begin(), one.unread.end() - 1);
  return {};
}

// One pass over the unread token of each, and what follows it.
Status ModelBatchDrafter::run(std::span<Ahead*> now) {
  std::vector<BatchRun> runs;
  for (const Ahead* one : now) runs.push_back({{one->unread, one->request->sequence}, 1});
  RETURN_IF_ERROR(pass_.run_batch(runs));
  const int32_t block = pass_.model().workspace().shape().max_window;
  for (int32_t first = 0; first < static_cast<int32_t>(now.size()); first += block) {
    const int32_t count = std::min(block, static_cast<int32_t>(now.size()) - first);
    pass_.head(first, count);
    for (int32_t i = 0; i < count; ++i) {
      Ahead& one = *now[static_cast<size_t>(first + i)];
      Sampler& sampler = one.request->sampler();
      one.unread.clear();
      const int32_t token = sampler.propose(pass_.logits(i), one.text);
      if (token == kNoToken) continue;
      CHECK(token < target_vocabulary_);
      one.request->drafted.push_back(token);
      one.text.push_back(token);
      // Nothing follows an end of text, and the last token is not run.
      const bool more = static_cast<int32_t>(one.request->drafted.size()) < one.request->depth;
      if (more && !sampler.is_end(token)) one.unread.push_back(readable(token, pass_.model().config()));
    }
  }
  return {};
}

Status ModelBatchDrafter::propose(std::span<Ahead> all) {
  RETURN_IF_ERROR(catch_up(all));
  const int32_t columns = pass_.model().workspace().shape().columns;
  std::vector<Ahead*> now;
  while (true) {
    now.clear();
    for (Ahead& one : all) {
      if (!one.unread.empty()) now.push_back(&one);
    }
    if (now.empty()) return {};
    // Those that a device attends to side by side, and so the host's, too.
    if (const MirroredAttention* mirror = pass_.model().mirror(); mirror != nullptr) {
      std::stable_partition(now.begin(), now.end(),
                            [&](const Ahead* one) { return mirror->holds(one->request->sequence); });
    }
    for (size_t first = 0; first < now.size(); first += static_cast<size_t>(columns)) {
      RETURN_IF_ERROR(run(std::span(now).subspan(first, std::min(static_cast<size_t>(columns), now.size() - first))));
    }
  }
}

Status ModelBatchDrafter::draft(std::span<DraftRequest> requests) {
  KvCache& kv = pass_.model().kv();
  std::vector<Ahead> all;
  for (DraftRequest& request : requests) {
    request.drafted.clear();
    if (request.depth == 0) continue;
    const int32_t known = kv.length(request.sequence);
    CHECK(known < static_cast<int32_t>(request.text.size()));
    Ahead one{&request, {request.text.begin(), request.text.end()}, {}, known};
    for (const int32_t token : request.text.subspan(static_cast<size_t>(known)))
      one.unread.push_back(readable(token, pass_.model().config()));
    CHECK(!shares_kv_ || one.unread.size() == 1);
    all.push_back(std::move(one));
  }
  const Status status = propose(all);
  // On the target's cache nothing of this is text yet. On one's own, commit() says how much is.
  for (const Ahead& one : all) {
    if (shares_kv_ || !status.ok()) kv.truncate(one.length, one.request->sequence);
  }
  return status;
}

int32_t ModelBatchDrafter::behind(int32_t sequence, int32_t length) const {
  return shares_kv_ ? 0 : length - 1 - pass_.model().kv().length(sequence);
}

void ModelBatchDrafter::commit(int32_t sequence, int32_t length) {
  if (shares_kv_) return;
  KvCache& kv = pass_.model().kv();
  // The last token is always run anew: what follows it is asked for.
  kv.truncate(std::min(kv.length(sequence), length - 1), sequence);
}

void ModelBatchDrafter::release(int32_t sequence) {
  if (!shares_kv_) pass_.model().kv().release(sequence);
}

Status NgramBatchDrafter::draft(std::span<DraftRequest> requests) {
  for (DraftRequest& request : requests) {
    request.drafted.clear();
    if (request.depth == 0) continue;
    std::unique_ptr<NgramDrafter>& drafter = drafters_[static_cast<size_t>(request.sequence)];
    if (drafter == nullptr) drafter = std::make_unique<NgramDrafter>(context_);
    Sampler& sampler = request.sampler();
    const int32_t reach = drafter->reach(request.text, request.depth);
    if (reach == 0) continue;
    ASSIGN_OR_RETURN(request.drafted, drafter->draft(request.text, reach, sampler));
  }
  return {};
}

}  // namespace drafthorse
