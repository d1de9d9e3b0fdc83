/* AMX's tiles: 8 KiB of registers, which Linux keeps only for a process that has asked for them (kernel 5.16). */
#ifndef TVMCNN_TILES_H_
#define TVMCNN_TILES_H_

#include <cpuid.h>

enum { TVMCNN_ARCH_PRCTL = 158, TVMCNN_ARCH_REQ_XCOMP_PERM = 0x1023, TVMCNN_XFEATURE_XTILEDATA = 18 };

/* 1 where the CPU has a feature of CPUID's leaf 7, EDX, and the process may use tiles from now on. */
static inline int tvmcnn_tiles(int bit) {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx >> bit & 1)) return 0;
  long status = TVMCNN_ARCH_PRCTL; /* the system call itself: no header of libc has its name for C11 */
  __asm__ volatile("syscall"
                   : "+a"(status)
                   : "D"((long)TVMCNN_ARCH_REQ_XCOMP_PERM), "S"((long)TVMCNN_XFEATURE_XTILEDATA)
                   : "rcx", "r11", "memory");
  return status == 0;
}

/* As the library is loaded, for programs that never call {name}_check. */
__attribute__((constructor)) static void tvmcnn_ask_for_tiles(void) { (void)tvmcnn_tiles(24); }

#endif /* TVMCNN_TILES_H_ */
