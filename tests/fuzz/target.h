// A fuzz target: one function that takes any bytes and must come back. What it finds wrong is a CHECK or a sanitizer's
// report. libFuzzer calls it with bytes of its own making, replay.cc with files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// NOLINTNEXTLINE(readability-identifier-naming): the name is libFuzzer's
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace drafthorse::fuzz {

inline std::string text_of(const uint8_t* data, size_t size) { return {reinterpret_cast<const char*>(data), size}; }

}  // namespace drafthorse::fuzz
