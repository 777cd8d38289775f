// UTF-8, taken strictly: no overlong forms, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace drafthorse {

inline constexpr uint32_t kInvalidUtf8 = 0xffffffff;

// Bytes of the character that begins with this one, 0 where none does.
inline size_t utf8_length(uint32_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xc2) return 0;
  if (lead < 0xe0) return 2;
  if (lead < 0xf0) return 3;
  return lead < 0xf5 ? 4 : 0;
}

// The first code point of `text`, which must not be empty and moves past it; kInvalidUtf8, and `text` stays, for what
// is none.
inline uint32_t next_code_point(std::string_view& text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t lead = byte(0);
  const size_t length = utf8_length(lead);
  if (length == 0 || length > text.size()) return kInvalidUtf8;
  uint32_t code = length == 1 ? lead : lead & (0x7fU >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return kInvalidUtf8;
    code = code << 6 | (byte(i) & 0x3f);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kSmallest[length] || code > 0x10ffff) return kInvalidUtf8;
  text.remove_prefix(length);
  return code;
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    if (next_code_point(text) == kInvalidUtf8) return false;
  }
  return true;
}

}  // namespace drafthorse
