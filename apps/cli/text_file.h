// Small files that a user names: grammars, templates, chats.
#pragma once

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

namespace drafthorse::cli {

// All of it; nothing where it cannot be opened or read (a folder can be opened).
inline std::optional<std::string> read_text_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) return std::nullopt;
  std::string text;
  char piece[4096];
  while (const size_t count = std::fread(piece, 1, sizeof(piece), file.get())) text.append(piece, count);
  if (std::ferror(file.get()) != 0) return std::nullopt;
  return text;
}

}  // namespace drafthorse::cli
