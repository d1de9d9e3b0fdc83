/* A judge of races for the shim: g++ -fsanitize=thread calls before each load and store, and these calls come here.
 *
 * A race is two threads of a block at one byte of shared or device memory with no barrier between them, or two blocks
 * of a launch at one of device memory, of which one at least writes. It ends the process in whatever order threads and
 * blocks run. A shuffle is no barrier. Without the flag nothing is judged. */
#pragma once

#ifdef __SANITIZE_THREAD__
#define SHIM_UNJUDGED __attribute__((no_sanitize_thread))
extern char shim_shared_first[] __asm__("__start_shim_shared") __attribute__((weak, visibility("hidden")));
extern char shim_shared_last[] __asm__("__stop_shim_shared") __attribute__((weak, visibility("hidden")));

namespace shim {

/* Who wrote and read a byte last, at which time; `blocks` says of which launch several blocks read it. */
struct Byte {
  unsigned written, writer, read, reader, threads, blocks;
};
struct Memory {
  const char *first, *last;
  Byte *bytes;
  bool of_blocks; /* shared memory */
};
inline Memory memories[64];
inline unsigned known;
inline unsigned now, block_began, launch_began; /* barriers so far; at the start of this block, of this launch */
inline bool judging;

SHIM_UNJUDGED inline void know(const void *first, size_t size, bool of_blocks) {
  if (known == sizeof memories / sizeof *memories) fail("more pieces of memory than the judge of races knows");
  auto at = static_cast<const char *>(first);
  memories[known++] = {at, at + size, static_cast<Byte *>(calloc(size, sizeof(Byte))), of_blocks};
}

/* Every block's shared memory is the same here: one piece, whose bytes no other block's threads have. */
SHIM_UNJUDGED inline void know_shared() {
  static bool done;
  if (!done && shim_shared_first != shim_shared_last) know(shim_shared_first, shim_shared_last - shim_shared_first, true);
  done = true;
}

SHIM_UNJUDGED inline void judge(const void *address, size_t size, bool writes) {
  if (!judging) return;
  auto at = static_cast<const char *>(address);
  for (unsigned i = 0; i < known; i++) {
    const Memory &memory = memories[i];
    if (at < memory.first || at >= memory.last) continue;
    for (size_t offset = 0; offset < size; offset++) {
      Byte &byte = memory.bytes[at - memory.first + offset];
      bool other_thread = byte.written == now && byte.writer != current;
      bool other_block = byte.written >= launch_began && byte.written < block_began && !memory.of_blocks;
      if (writes) {
        other_thread |= byte.read == now && (byte.reader != current || byte.threads == now);
        other_block |= !memory.of_blocks && byte.read >= launch_began &&
                       (byte.read < block_began || byte.blocks == launch_began);
      }
      if (other_thread) fail("two threads race: no barrier between their accesses");
      if (other_block) fail("two blocks race");
      if (writes) {
        byte.written = now, byte.writer = current;
      } else {
        if (byte.read == now && byte.reader != current) byte.threads = now;
        if (byte.read >= launch_began && byte.read < block_began) byte.blocks = launch_began;
        byte.read = now, byte.reader = current;
      }
    }
    return;
  }
}

}  // namespace shim

#define SHIM_HOOK(name, size, writes) \
  extern "C" SHIM_UNJUDGED __attribute__((used)) void name(void *at) { shim::judge(at, size, writes); }
#define SHIM_HOOKS(size)                           \
  SHIM_HOOK(__tsan_read##size, size, false)          \
  SHIM_HOOK(__tsan_write##size, size, true)          \
  SHIM_HOOK(__tsan_unaligned_read##size, size, false) \
  SHIM_HOOK(__tsan_unaligned_write##size, size, true)
SHIM_HOOKS(1)
SHIM_HOOKS(2)
SHIM_HOOKS(4)
SHIM_HOOKS(8)
SHIM_HOOKS(16)
#define SHIM_RANGE(name, writes) \
  extern "C" SHIM_UNJUDGED __attribute__((used)) void name(void *at, size_t size) { shim::judge(at, size, writes); }
SHIM_RANGE(__tsan_read_range, false)
SHIM_RANGE(__tsan_write_range, true)
#define SHIM_IGNORED(name) \
  extern "C" SHIM_UNJUDGED __attribute__((used)) void name(void *) {}
SHIM_IGNORED(__tsan_init)
SHIM_IGNORED(__tsan_func_entry)
SHIM_IGNORED(__tsan_func_exit)
SHIM_IGNORED(__tsan_vptr_read)
extern "C" SHIM_UNJUDGED __attribute__((used)) void __tsan_vptr_update(void **, void *) {}
#else
namespace shim {
inline unsigned now, block_began, launch_began;
inline bool judging;
inline void know(const void *, size_t, bool) {}
inline void know_shared() {}
}  // namespace shim
#endif
