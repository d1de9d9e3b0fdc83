/* Reads an image of LeNet-5 as float32 from standard input and writes the scores of both networks. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "lenet5.h"
#include "other.h"

static int say(const char *name, int32_t status, const char *message) {
  if (status != 0) fprintf(stderr, "%s: %s (%d)\n", name, message, (int)status);
  return status != 0;
}

int main(void) {
  static float image[LENET5_INPUT_SIZE], scores[LENET5_SCORES_SIZE], others[OTHER_SCORES_SIZE];
  const size_t bytes = LENET5_ARENA_BYTES > OTHER_ARENA_BYTES ? LENET5_ARENA_BYTES : OTHER_ARENA_BYTES;
  void *arena = aligned_alloc(64, (bytes + 63) / 64 * 64); /* one after the other: they may share it */

  fprintf(stderr, "%s; %s\n", lenet5_version, other_version);
  if (say("lenet5", lenet5_check(), lenet5_message(lenet5_check()))) return 1;
  if (fread(image, sizeof *image, LENET5_INPUT_SIZE, stdin) != LENET5_INPUT_SIZE) return 2;

  int32_t status = lenet5_run(image, scores, arena);
  if (say("lenet5", status, lenet5_message(status))) return 3;
  status = other_run(image, others, arena);
  if (say("other", status, other_message(status))) return 4;

  fwrite(scores, sizeof *scores, LENET5_SCORES_SIZE, stdout);
  fwrite(others, sizeof *others, OTHER_SCORES_SIZE, stdout);
  free(arena);
  return 0;
}
