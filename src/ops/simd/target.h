// DRAFTHORSE_TARGET(gcc_list, clang_list): what follows in this file is compiled for these instruction sets. After all
// includes of other libraries, whose inline functions are shared with the rest of the program.
#pragma once

#define DRAFTHORSE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define DRAFTHORSE_TARGET(list) \
  DRAFTHORSE_PRAGMA(clang attribute push(__attribute__((target(list))), apply_to = function))
#define DRAFTHORSE_TARGET_END DRAFTHORSE_PRAGMA(clang attribute pop)
#else
#define DRAFTHORSE_TARGET(list) DRAFTHORSE_PRAGMA(GCC target(list))
#define DRAFTHORSE_TARGET_END
#endif
