/* Which experts a token goes to: scores, selection, weights, capacity. As model/moe/router.py has it in evaluation. */
#include "splitmix64.h"
#include "step_run.h"

#include <math.h>
#include <string.h>

/* The first of the largest numbers that is not taken, -1 where all are. A NaN is never larger, so something is found. */
static int best_of(const float *x, int count, const uint8_t *taken) {
    int best = -1;
    for (int i = 0; i < count; i++)
        if (!taken[i] && (best < 0 || x[i] > x[best])) best = i;
    return best;
}

static void score(const fathom_router *router, float *x) {
    if (router->score == FATHOM_SIGMOID)
        for (int e = 0; e < router->experts; e++) x[e] = 1 / (1 + expf(-x[e]));
    else
        fathom_current->softmax(x, router->experts);
}

static float group_rank(const float *x, int width, int top2) {
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < width; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    return top2 ? first + second : first;
}

/* Mark the experts outside the best groups as taken; ``room`` holds a number and a mark for each group. */
static void limit_groups(const fathom_router *router, const float *choice, float *room, uint8_t *taken) {
    const int width = router->experts / router->groups;
    uint8_t *chosen = (uint8_t *)(room + router->groups);
    memset(chosen, 0, router->groups);
    for (int g = 0; g < router->groups; g++) room[g] = group_rank(choice + g * width, width, router->top2);
    for (int i = 0; i < router->chosen_groups; i++) chosen[best_of(room, router->groups, chosen)] = 1;
    for (int g = 0; g < router->groups; g++)
        if (!chosen[g]) memset(taken + g * width, 1, width);
}

static void select_by_hash(const fathom_router *router, int32_t token, int32_t *index, float *weight) {
    const int64_t place = (int64_t)fathom_mixed((uint64_t)(int64_t)token) % router->experts;
    index[0] = (int32_t)(place < 0 ? place + router->experts : place);
    weight[0] = router->scale;
}

void fathom_select(const fathom_router *router, const float *logits, int32_t token, float *room, int32_t *index,
                   float *weight) {
    const int experts = router->experts, chosen = router->chosen;
    if (router->score == FATHOM_HASH) {
        select_by_hash(router, token, index, weight);
        return;
    }
    float *scores = room, *ranks = scores + experts, *groups = ranks + experts, sum = 0;
    uint8_t *taken = (uint8_t *)(groups + 2 * router->groups);
    memcpy(scores, logits, experts * sizeof *scores);
    score(router, scores);
    for (int e = 0; e < experts; e++) ranks[e] = scores[e] + (router->selection_bias ? router->selection_bias[e] : 0);
    memset(taken, 0, experts);
    if (router->groups) limit_groups(router, ranks, groups, taken);
    for (int i = 0; i < chosen; i++) {
        index[i] = best_of(ranks, experts, taken);
        taken[index[i]] = 1;
        weight[i] = scores[index[i]];
        sum += weight[i];
    }
    for (int i = 0; i < chosen; i++)
        weight[i] = (router->normalize ? weight[i] / (sum + 1e-20f) : weight[i]) * router->scale;
}

/* An expert takes first choices in the order of the tokens, then second ones, up to its capacity. */
static void drop_beyond_capacity(const fathom_router *router, int rows, const fathom_assignment *a) {
    int places = (int)(router->capacity * rows / router->experts);
    if (places < 1) places = 1;
    memset(a->taken, 0, router->experts * sizeof *a->taken);
    for (int i = 0; i < router->chosen; i++)
        for (int64_t n = 0; n < rows; n++) {
            const int64_t pair = n * router->chosen + i;
            a->kept[pair] = a->taken[a->index[pair]]++ < places;
        }
}

void fathom_sort_pairs(const fathom_router *router, int rows, const fathom_assignment *a) {
    const int64_t pairs = (int64_t)rows * router->chosen;
    memset(a->kept, 1, pairs);
    if (router->capacity > 0) drop_beyond_capacity(router, rows, a);
    memset(a->offset, 0, (router->experts + 1) * sizeof *a->offset);
    for (int64_t i = 0; i < pairs; i++)
        a->offset[a->index[i] + 1] += a->kept[i];
    for (int e = 0; e < router->experts; e++) {
        a->taken[e] = a->offset[e];
        a->offset[e + 1] += a->offset[e];
    }
    for (int64_t i = 0; i < pairs; i++) {
        if (!a->kept[i]) continue;
        const int32_t place = a->taken[a->index[i]]++;
        a->token[place] = (int32_t)(i / router->chosen);
        a->share[place] = a->weight[i];
    }
}
