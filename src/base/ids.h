// Strong ids: a layer is not an expert and an expert is not a slot.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace drafthorse {

enum class LayerId : int32_t {};
enum class ExpertId : int32_t {};
enum class SlotId : int32_t {};

constexpr int32_t index(LayerId id) { return static_cast<int32_t>(id); }
constexpr int32_t index(ExpertId id) { return static_cast<int32_t>(id); }
constexpr int32_t index(SlotId id) { return static_cast<int32_t>(id); }

// One routed expert of one layer: the unit that is loaded, cached and evicted.
struct ExpertKey {
  LayerId layer{};
  ExpertId expert{};

  friend auto operator<=>(const ExpertKey&, const ExpertKey&) = default;
};

}  // namespace drafthorse

template <>
struct std::hash<drafthorse::ExpertKey> {
  size_t operator()(const drafthorse::ExpertKey& key) const noexcept {
    return (static_cast<size_t>(key.layer) << 20) ^ static_cast<size_t>(key.expert);
  }
};
