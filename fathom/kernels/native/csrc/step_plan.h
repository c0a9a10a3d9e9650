/* Memory of a step. */
#ifndef FATHOM_STEP_PLAN_H
#define FATHOM_STEP_PLAN_H

#include "step_run.h"

/* Floats of a row in each kind of buffer, the largest of all layers. */
typedef struct {
    int64_t projected, queries, latents, absorbed, entry, mixed, middle, pairs, normed, gathered;
    int64_t experts, chosen, kv_heads, key_width, value_width;
} fathom_sizes;

struct fathom_workspace {
    char *block, *attend;
    size_t bytes, attend_bytes;
    fathom_run *runs;
    int threads;
};

void fathom_measure(const fathom_model *model, fathom_sizes *sizes);
/* Give each thread's run, a copy of ``first``, its buffers for ``rows`` rows. */
int fathom_plan_memory(fathom_workspace *workspace, const fathom_run *first, int rows);

#endif
