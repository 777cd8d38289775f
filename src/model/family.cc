#include "model/family.h"

namespace drafthorse {

const Family* find_family(const std::string& architecture) { return architecture == "llama" ? &kLlamaFamily : nullptr; }

}  // namespace drafthorse
