/* Workers that spin for a millisecond, then sleep.
 *
 * Why not a pool that there is: with libgomp the child of a fork hangs, every calling thread has workers of its own, and
 * there is one more library to find. TVM's needs libtvm_runtime, pins the caller to a core, hangs after a fork too, and
 * spins for 63 ms. A launch of an empty kernel on two threads takes 0.18 µs, with libgomp 0.46 (1.3 in another run), with
 * TVM's 1.3 (medians, two cores of an AMD EPYC).
 *
 * TVMCNN_PAUSE is the instruction set's way to wait a moment, see targets/.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  MAX_THREADS = 64,
  SPIN_NANOSECONDS = 1000000, /* after its last task a worker sleeps: idle networks cost no CPU time */
  SHARES = 2, /* a thread takes half of its tasks, then half of the rest: an atomic operation waits for all stores
                 before it (with an eighth at a time 2 % of MobileNetV2's time); who is done takes from the others */
  PAUSES = 64,                /* between two looks at the clock, which cost 20 ns each */
  PATIENCE = 4096,            /* pauses before the caller lets a worker that was preempted have the CPU */
  STACK_BYTES = 1 << 20,      /* kernels take up to 256 KB */
};

/* `entry` is (job number << 16) | closed << 15 | workers inside: one word, so that nobody enters a job that is over. */
#define CLOSED 0x8000u

typedef struct {
  _Alignas(64) _Atomic int32_t next; /* the first task of this thread's part that nobody has taken */
  int32_t end;
} part;

typedef struct {
  _Atomic int32_t busy;     /* 1 while a caller has the pool */
  _Atomic int32_t closing;  /* libraries that wait for it, to end its workers */
  _Atomic uintptr_t owner;  /* the caller that has it */
  int32_t workers;      /* threads started */
  pthread_t ids[MAX_THREADS];
  _Alignas(64) _Atomic uint32_t entry;
  _Atomic int32_t sleepers;
  _Alignas(64) _Atomic int32_t registered; /* 1 once fork calls forget_workers */
  _Alignas(64) tvmcnn_kernel kernel; /* the job: written before `entry` opens it */
  const void *frame;
  char *scratch;
  int64_t scratch_bytes;
  int32_t threads;
  part parts[MAX_THREADS];
  _Atomic int32_t tracing;  /* 1 while a thread traces its launches */
  _Atomic uintptr_t tracer; /* which, as soon as it is ready */
  tvmcnn_span *traced, *spans; /* its own; of the job, NULL if nobody wants to know */
  int32_t most;
  _Atomic int32_t noted;
} pool;

extern pool tvmcnn_pool_3; /* pool.s */
_Static_assert(sizeof(pool) <= 16384, "pool.s reserves less");
#define P (&tvmcnn_pool_3)

static bool started; /* workers may run this library's code */

int64_t tvmcnn_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void run(int32_t self, char *scratch, int32_t first, int32_t last) {
  if (P->spans == NULL) {
    P->kernel(P->frame, scratch, first, last);
    return;
  }
  int64_t begin = tvmcnn_now();
  P->kernel(P->frame, scratch, first, last);
  int32_t place = atomic_fetch_add_explicit(&P->noted, 1, memory_order_relaxed);
  if (place < P->most) P->spans[place] = (tvmcnn_span){begin, tvmcnn_now(), self, first, last};
}

/* Take and run tasks: those of part `self` first, which stays with this thread from kernel to kernel and so in its cache,
 * then those that are left of the others. */
static void work(int32_t self) {
  char *scratch = P->scratch + self * P->scratch_bytes;
  for (int32_t i = 0; i < P->threads; ++i) {
    part *from = &P->parts[(self + i) % P->threads];
    for (;;) {
      int32_t next = atomic_load_explicit(&from->next, memory_order_relaxed);
      int32_t left = from->end - next;
      if (left <= 0) break;
      int32_t count = (left + SHARES - 1) / SHARES;
      if (atomic_compare_exchange_weak_explicit(&from->next, &next, next + count, memory_order_relaxed,
                                                memory_order_relaxed))
        run(self, scratch, next, next + count);
    }
  }
}

/* True if the job that `entry` shows is open and this worker is one of its threads; then it is inside. */
static bool enter(uint32_t entry, int32_t self) {
  while (!(entry & CLOSED)) {
    if (atomic_compare_exchange_weak_explicit(&P->entry, &entry, entry + 1, memory_order_acquire,
                                              memory_order_relaxed)) {
      if (self < P->threads) return true;
      atomic_fetch_sub_explicit(&P->entry, 1, memory_order_release);
      return false;
    }
  }
  return false;
}

/* Waits for jobs; one without a kernel ends it. */
static void *worker(void *argument) {
  int32_t self = (int32_t)(intptr_t)argument;
  uint32_t seen = 0; /* the job that this worker is done with */
  int64_t idle_since = tvmcnn_now();
  for (;;) {
    for (int i = 0; i < PAUSES; ++i) {
      uint32_t entry = atomic_load_explicit(&P->entry, memory_order_acquire);
      if (entry >> 16 != seen && !(entry & CLOSED)) {
        seen = entry >> 16;
        if (enter(entry, self)) {
          if (P->kernel == NULL) return NULL;
          work(self);
          atomic_fetch_sub_explicit(&P->entry, 1, memory_order_release);
          idle_since = 0;
        }
      }
      TVMCNN_PAUSE;
    }
    int64_t time = tvmcnn_now();
    if (idle_since == 0) idle_since = time;
    if (time - idle_since < SPIN_NANOSECONDS) continue;
    /* The kernel compares `entry` once more before it lets the thread sleep: a launch in between is not missed. */
    atomic_fetch_add(&P->sleepers, 1);
    uint32_t entry = atomic_load(&P->entry);
    if (entry >> 16 == seen || (entry & CLOSED)) syscall(SYS_futex, &P->entry, FUTEX_WAIT_PRIVATE, entry, NULL, NULL, 0);
    atomic_fetch_sub(&P->sleepers, 1);
    idle_since = tvmcnn_now();
  }
  return NULL;
}

/* The child of a fork has the caller's thread only. */
static void forget_workers(void) { memset(P, 0, offsetof(pool, registered)); }

/* Allow the workers the caller's CPUs but the one it is on. A virtual machine's Linux takes an idle CPU for one that the
 * host has preempted, and lets a thread wake beside the one that woke it, where both stay for up to 10 ms. MobileNetV2 on
 * two threads, called every 50 ms: 4.8 ms without this, 2.9 with it. */
static void keep_off(void) {
  cpu_set_t allowed;
  int here = sched_getcpu();
  if (here < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  if (CPU_COUNT(&allowed) > 1) CPU_CLR(here, &allowed);
  for (int32_t i = 0; i < P->workers; ++i) pthread_setaffinity_np(P->ids[i], sizeof allowed, &allowed);
}

/* Start workers until there are `threads` threads; fewer if the system gives no more, which changes no result. They take
 * no signals. */
static void start(int32_t threads) {
  if (!atomic_exchange(&P->registered, 1)) pthread_atfork(NULL, NULL, forget_workers);
  pthread_attr_t attributes;
  sigset_t all, old;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  started = true;
  while (P->workers + 1 < threads) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, worker, (void *)(intptr_t)(P->workers + 1)) != 0) break;
    P->ids[P->workers++] = thread;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attributes);
  keep_off();
}

static void wake(void) {
  keep_off();
  syscall(SYS_futex, &P->entry, FUTEX_WAKE_PRIVATE, P->workers, NULL, NULL, 0);
}

static void wake_as_they_are(void) { syscall(SYS_futex, &P->entry, FUTEX_WAKE_PRIVATE, P->workers, NULL, NULL, 0); }

/* Open the job that the pool holds. */
static void publish(void (*wake)(void)) {
  uint32_t job = (atomic_load(&P->entry) >> 16) + 1;
  atomic_store(&P->entry, job << 16);
  if (atomic_load(&P->sleepers) > 0) wake();
}

static void pause_of(int64_t nanoseconds) { nanosleep(&(struct timespec){.tv_nsec = nanoseconds}, NULL); }

/* dlclose, or the end of the process: no worker may be left in code that is unmapped. All end, since some may run another
 * library's; the next launch starts others, and registers with fork, which forgets this library too. `closing` lets no
 * caller take the pool again, so that it is free after the launch at hand; if that is this thread's own, the process is
 * ending in the middle of it. */
__attribute__((destructor)) static void end_workers(void) {
  int32_t idle = 0;
  if (!started) return;
  atomic_fetch_add(&P->closing, 1);
  for (; !atomic_compare_exchange_strong(&P->busy, &idle, 1); idle = 0) {
    if (atomic_load(&P->owner) == (uintptr_t)pthread_self()) return;
    pause_of(100000);
  }
  P->kernel = NULL, P->threads = MAX_THREADS;
  publish(wake_as_they_are); /* some may have ended already: of those glibc would set the caller's affinity */
  for (int tries = 1; P->workers > 0; ++tries) {
    if (pthread_tryjoin_np(P->ids[P->workers - 1], NULL) != EBUSY) {
      --P->workers;
      continue;
    }
    /* A worker that slept through 65536 jobs takes this one for the last that it saw: there is a next one. */
    if (tries % 100 == 0) publish(wake_as_they_are);
    pause_of(100000);
  }
  atomic_store(&P->registered, 0);
  atomic_fetch_or(&P->entry, CLOSED);
  atomic_fetch_sub(&P->closing, 1);
  atomic_store_explicit(&P->busy, 0, memory_order_release);
}

static int32_t smallest(int32_t a, int32_t b) { return a < b ? a : b; }

void tvmcnn_parallel(tvmcnn_kernel kernel, const void *frame, int32_t tasks, int32_t threads, char *scratch,
                     int64_t scratch_bytes) {
  threads = smallest(smallest(threads, tasks), MAX_THREADS);
  int32_t idle = 0;
  bool alone = threads < 2 || atomic_load_explicit(&P->closing, memory_order_relaxed) > 0;
  if (alone || !atomic_compare_exchange_strong(&P->busy, &idle, 1)) {
    kernel(frame, scratch, 0, tasks);
    return;
  }
  atomic_store_explicit(&P->owner, (uintptr_t)pthread_self(), memory_order_relaxed);
  if (P->workers + 1 < threads) start(threads);
  P->kernel = kernel, P->frame = frame, P->scratch = scratch, P->scratch_bytes = scratch_bytes;
  P->threads = threads;
  P->spans = atomic_load_explicit(&P->tracer, memory_order_relaxed) == (uintptr_t)pthread_self() ? P->traced : NULL;
  for (int32_t i = 0; i < threads; ++i) {
    atomic_store_explicit(&P->parts[i].next, (int32_t)((int64_t)tasks * i / threads), memory_order_relaxed);
    P->parts[i].end = (int32_t)((int64_t)tasks * (i + 1) / threads);
  }
  publish(wake);
  work(0);
  atomic_fetch_or(&P->entry, CLOSED);
  for (int i = 0; (atomic_load_explicit(&P->entry, memory_order_acquire) & (CLOSED - 1)) != 0; ++i) {
    if (i < PATIENCE)
      TVMCNN_PAUSE;
    else
      sched_yield();
  }
  atomic_store_explicit(&P->owner, 0, memory_order_relaxed);
  atomic_store_explicit(&P->busy, 0, memory_order_release);
}

bool tvmcnn_trace_begin(tvmcnn_span *spans, int32_t most) {
  int32_t nobody = 0;
  if (!atomic_compare_exchange_strong(&P->tracing, &nobody, 1)) return false;
  P->traced = spans, P->most = most;
  atomic_store(&P->noted, 0);
  atomic_store(&P->tracer, (uintptr_t)pthread_self());
  return true;
}

int32_t tvmcnn_trace_end(void) {
  int32_t noted = atomic_load(&P->noted);
  atomic_store(&P->tracer, 0);
  atomic_store(&P->tracing, 0);
  return noted;
}
