#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace mli {

namespace portable {
extern const Kernels kernels;
}
#if defined(MLI_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> tables{&portable::kernels};
#if defined(MLI_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
      tables.push_back(&avx512::kernels);
    }
  }
#endif
  return tables;
}

const Kernels* find(const std::string& name) {
  std::string names;
  for (const Kernels* table : usable()) {
    if (name == table->name) return table;
    names += std::string(names.empty() ? "" : ", ") + table->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not usable here; usable: " + names);
}

const Kernels* initial() {
  const char* asked = std::getenv("MLI_FAST_ISA");
  return asked != nullptr && *asked != '\0' ? find(asked) : usable().back();
}

std::atomic<const Kernels*> current{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = current.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = initial();
    current.store(table, std::memory_order_release);
  }
  return *table;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : usable()) names.emplace_back(table->name);
  return names;
}

void select(const std::string& name) { current.store(find(name), std::memory_order_release); }

}  // namespace mli
