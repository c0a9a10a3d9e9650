/* Memory of a step. */
#ifndef FATHOM_STEP_PLAN_H
#define FATHOM_STEP_PLAN_H

#include "step_run.h"

struct fathom_workspace {
    char *block, *attend, *tiles;
    size_t bytes, attend_bytes, tiles_bytes;
    fathom_run *runs;
    int threads;
};

/* Give each thread's run, a copy of ``first``, its buffers. */
int fathom_plan_memory(fathom_workspace *workspace, const fathom_run *first);

#endif
