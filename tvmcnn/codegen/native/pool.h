/* Threads: one pool a process, shared by every compiled network in it. */
#ifndef TVMCNN_POOL_H_
#define TVMCNN_POOL_H_

#include <stdint.h>

/* Tasks `begin` to `end` of a kernel, in `scratch` that no other thread uses. */
typedef void (*tvmcnn_kernel)(const void *frame, char *scratch, int32_t begin, int32_t end);

/* Runs the `tasks` tasks of a kernel on up to `threads` threads, the caller's among them, and returns when all are done.
 * Thread i has the scratch from scratch + i * scratch_bytes. While another caller has the pool, the caller's thread does
 * all by itself: any number of threads may call at once. */
void tvmcnn_parallel(tvmcnn_kernel kernel, const void *frame, int32_t tasks, int32_t threads, char *scratch,
                     int64_t scratch_bytes);

/* Tasks that a thread ran without a pause, in nanoseconds of CLOCK_MONOTONIC. */
typedef struct {
  int64_t begin, end;
  int32_t thread, first, last; /* thread 0 is the caller's; tasks `first` to `last` - 1 */
} tvmcnn_span;

int64_t tvmcnn_now(void);

/* From now on what this thread launches is noted in `spans`, at most `most` of them. False if another thread's is. */
_Bool tvmcnn_trace_begin(tvmcnn_span *spans, int32_t most);

/* How many spans there were, those that found no room included. */
int32_t tvmcnn_trace_end(void);

#endif /* TVMCNN_POOL_H_ */
