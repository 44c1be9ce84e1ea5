// The one entry into the kernels on the CPU.
#include "host.hpp"

// 0: launched; 1: there is no kernel of that name; 2: it takes another number of arguments.
extern "C" int gpu_launch(const char *name, const unsigned *grid, unsigned block, unsigned dynamic, void **arguments, unsigned argument_count,
                          unsigned order, unsigned threads) {
  const auto found = gpu::kernels().find(name);
  if (found == gpu::kernels().end()) return 1;
  if (found->second.arguments != argument_count) return 2;
  gpu::run({grid[0], grid[1], grid[2]}, {block, 1, 1}, dynamic, found->second.entry, arguments, order, threads);
  return 0;
}
