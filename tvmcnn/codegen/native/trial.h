/* What a library of trials is made of: calls that its generated source lists, and the functions that run them. */
#ifndef TVMCNN_TRIAL_H_
#define TVMCNN_TRIAL_H_

#include <stddef.h>
#include <stdint.h>

typedef struct {
  /* Runs the candidate's kernels on `memory`, with the constants that lie `constants` bytes behind the first. */
  void (*call)(char* memory, size_t constants);
  size_t stride; /* bytes from one copy of the constants to the next */
  int64_t copies; /* used in turn, so that a call finds its constants as cold as in the network */
  int64_t turn;
} tvmcnn_trial;

extern tvmcnn_trial tvmcnn_trials[];
extern const int32_t tvmcnn_trial_count;
extern int32_t tvmcnn_trial_supported(void);

/* FLOP of `count` rounds of independent fused multiply-adds on `lanes` lanes, which it does. In peak.c. */
extern double tvmcnn_peak(int64_t count, float* sink);

#endif /* TVMCNN_TRIAL_H_ */
