#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "io/read_queue.h"

namespace drafthorse {

namespace {

// Every read is really done; only what the caller is told about it changes.
class FaultQueue final : public ReadQueue {
 public:
  FaultQueue(std::unique_ptr<ReadQueue> inner, InjectedFaults faults)
      : inner_(std::move(inner)), faults_(faults), name_(std::string(inner_->name()) + " with faults") {
    tickets_.resize(inner_->capacity());
    for (size_t i = tickets_.size(); i > 0; --i) free_.push_back(i - 1);
  }

  std::string_view name() const override { return name_; }
  size_t capacity() const override { return inner_->capacity(); }
  size_t in_flight() const override { return inner_->in_flight(); }

  void submit(std::span<const ReadRequest> requests) override {
    CHECK(in_flight() + requests.size() <= capacity());
    renumbered_.assign(requests.begin(), requests.end());
    for (ReadRequest& request : renumbered_) {
      const size_t ticket = free_.back();
      free_.pop_back();
      tickets_[ticket] = {request.tag, next_number_++};
      request.tag = ticket;
    }
    inner_->submit(renumbered_);
  }

  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    const size_t count = inner_->reap(out, wait);
    for (ReadCompletion& completion : out.first(count)) {
      const auto ticket = static_cast<size_t>(completion.tag);
      free_.push_back(ticket);
      completion.tag = tickets_[ticket].tag;
      disturb(tickets_[ticket].number, completion);
    }
    return count;
  }

 private:
  struct Ticket {
    uint64_t tag = 0;    // the caller's
    int64_t number = 0;  // of the request, in the order of submission
  };

  void disturb(int64_t number, ReadCompletion& completion) const {
    const bool fails = faults_.fail_at >= 0 && number >= faults_.fail_at &&
                       (faults_.fail_count < 0 || number - faults_.fail_at < faults_.fail_count);
    if (fails) {
      completion.error = EIO;
      completion.bytes = 0;
    } else if (number == faults_.short_at) {
      completion.bytes /= 2;
    }
  }

  const std::unique_ptr<ReadQueue> inner_;
  const InjectedFaults faults_;
  const std::string name_;
  int64_t next_number_ = 0;
  std::vector<Ticket> tickets_;  // by the tag the inner queue sees
  std::vector<size_t> free_;
  std::vector<ReadRequest> renumbered_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_fault_injecting_queue(std::unique_ptr<ReadQueue> inner, InjectedFaults faults) {
  CHECK(inner != nullptr);
  return std::make_unique<FaultQueue>(std::move(inner), faults);
}

}  // namespace drafthorse
