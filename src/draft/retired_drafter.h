// Stands where a drafter was whose model has been given up: drafters are known by their place.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "draft/drafter.h"

namespace drafthorse {

class RetiredDrafter final : public Drafter {
 public:
  explicit RetiredDrafter(std::string name) : name_(std::move(name)) {}

  std::string_view name() const override { return name_; }
  Result<std::vector<int32_t>> prepare(std::span<const int32_t>, int32_t, Sampler&) override {
    return std::vector<int32_t>();
  }
  int32_t reach(std::span<const int32_t>, int32_t) override { return 0; }
  Result<std::vector<int32_t>> draft(std::span<const int32_t>, int32_t, Sampler&) override {
    return std::vector<int32_t>();
  }
  void accept(int32_t) override {}
  void truncate(int32_t) override {}

 private:
  std::string name_;
};

}  // namespace drafthorse
