/* Drawing from logits: penalties and masks, the highest few, weights, and one of them by a random number. */
#include "draw.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "pool.h"
#include "splitmix64.h"

#define FEW 16 /* numbers that are compared together; divides a block */
#define HIGHEST 3e38f /* penalties and biases lift no logit beyond float32 */

/* What a row needs beside its logits: V other ones, values and ids; and of each block the highest logit, its weight and
 * the sum of weights. */
typedef struct {
    float *logits, *values, *maxima, *tops;
    double *masses;
    int32_t *ids;
} scratch;

static int blocks(int count) { return (count + FATHOM_DRAW_BLOCK - 1) / FATHOM_DRAW_BLOCK; }

/* A number in [0, 1) of 53 bits: sampling/uniform.py. */
static double uniform(uint64_t seed, uint64_t position, uint64_t trial) {
    const uint64_t golden = 0x9E3779B97F4A7C15u;
    uint64_t state = fathom_mixed(seed);
    state = fathom_mixed(state + golden * (position + 1));
    state = fathom_mixed(state + golden * (trial + 1));
    return (double)(state >> 11) * 0x1p-53;
}

static double total(const double *masses, int count) {
    double sum = 0;
    for (int i = 0; i < blocks(count); i++) sum += masses[i];
    return sum;
}

static float highest(const float *maxima, int count) {
    float best = -INFINITY;
    for (int i = 0; i < blocks(count); i++) best = maxima[i] > best ? maxima[i] : best;
    return best;
}

/* The first id of the highest logit. */
static int likeliest(const float *logits, int vocab, const float *maxima, float best) {
    for (int block = 0; block < blocks(vocab); block++) {
        if (maxima[block] != best) continue;
        for (int i = block * FATHOM_DRAW_BLOCK; i < vocab; i++)
            if (logits[i] == best) return i;
    }
    return 0;
}

/* Whether (value, id) ranks below another: less, or equal and later. */
static int below(float value, int32_t id, float other, int32_t other_id) {
    return value < other || (value == other && id > other_id);
}

static void sift(float *values, int32_t *ids, int count, int at) {
    for (;;) {
        int least = at;
        for (int child = 2 * at + 1; child <= 2 * at + 2; child++)
            if (child < count && below(values[child], ids[child], values[least], ids[least])) least = child;
        if (least == at) return;
        const float value = values[at];
        const int32_t id = ids[at];
        values[at] = values[least], ids[at] = ids[least];
        values[least] = value, ids[least] = id;
        at = least;
    }
}

/* A heap of the ``most`` highest values, whose top is the least of them. */
typedef struct {
    float *values;
    int32_t *ids;
    int most, held;
} heap;

static void offer(heap *h, float value, int32_t id) {
    if (h->held < h->most) {
        h->values[h->held] = value, h->ids[h->held] = id;
        if (++h->held == h->most)
            for (int at = h->most / 2; at-- > 0;) sift(h->values, h->ids, h->most, at);
    } else if (value > h->values[0]) { /* an equal one comes later */
        h->values[0] = value, h->ids[0] = id;
        sift(h->values, h->ids, h->most, 0);
    }
}

/* Keep the ``count`` highest logits, at most V, in a heap in ``values`` and ``ids``. */
static void leading(const float *logits, int vocab, int count, const scratch *s) {
    heap h = {s->values, s->ids, count, 0};
    float bound = -INFINITY; /* which as many reach */
    if (count <= blocks(vocab)) {
        for (int block = 0; block < blocks(vocab); block++) offer(&h, s->maxima[block], block);
        bound = h.values[0];
        h.held = 0;
    }
    for (int begin = 0; begin < vocab; begin += FEW) {
        if (s->maxima[begin / FATHOM_DRAW_BLOCK] < bound) continue;
        const int end = begin + FEW < vocab ? begin + FEW : vocab;
        int any = 0;
        for (int i = begin; i < end; i++) any |= logits[i] >= bound;
        for (int i = begin; any && i < end; i++)
            if (logits[i] >= bound) offer(&h, logits[i], i);
    }
}

/* Sort a heap of ``leading``, best first. */
static void sort_leading(float *values, int32_t *ids, int count) {
    for (int end = count - 1; end > 0; end--) {
        const float value = values[0];
        const int32_t id = ids[0];
        values[0] = values[end], ids[0] = ids[end];
        values[end] = value, ids[end] = id;
        sift(values, ids, end, 0);
    }
}

static int by_id(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The first of ``count`` ends above the target; what rounding put outside goes to the nearest with mass. */
static int block_of(const double *masses, int count, double target, double *before) {
    double end = 0;
    int last = 0;
    double last_before = 0;
    for (int i = 0; i < count; i++) {
        const double next = end + masses[i];
        if (next > end) last = i, last_before = end;
        if (next > target) {
            *before = end;
            return i;
        }
        end = next;
    }
    *before = last_before;
    return last;
}

/* The index in whose share of the cumulated weights the number falls. */
static int pick(const fathom_weighted *w, const double *masses, double number) {
    const double target = number * total(masses, w->count);
    double before;
    const int block = block_of(masses, blocks(w->count), target > 0 ? target : 0, &before);
    const int begin = block * FATHOM_DRAW_BLOCK, rest_of_row = w->count - begin;
    const int count = rest_of_row < FATHOM_DRAW_BLOCK ? rest_of_row : FATHOM_DRAW_BLOCK;
    const double rest = target - before > 0 ? target - before : 0;
    float weights[FATHOM_DRAW_BLOCK];
    fathom_current->draw_weights(w, begin, count, weights);
    double sum = 0;
    int last = begin;
    for (int i = begin; i < begin + count; i++) {
        const float weight = weights[i - begin];
        if (!(weight > w->bound || (weight == w->bound && i < w->before))) continue;
        sum += weight;
        last = i;
        if (sum > rest) break;
    }
    return last;
}

/* Find the best of some numbers, the weight of the highest of each block, and the sums of the blocks' weights; returns
 * the sum of all. ``copy`` is one of the numbers, or NULL. */
static double weigh(fathom_weighted *w, const scratch *s, float *copy) {
    const int count = blocks(w->count);
    fathom_current->draw_masses(w->x, w->count, w->scale, s->maxima, s->masses, copy);
    w->best = highest(s->maxima, w->count);
    const fathom_weighted tops = {.x = s->maxima, .count = count, .best = w->best, .scale = w->scale};
    fathom_current->draw_weights(&tops, 0, count, s->tops);
    for (int i = 0; i < count; i++) s->masses[i] *= s->tops[i];
    return total(s->masses, w->count);
}

/* Draw an index by weight, as filters.py sample_filtered does; ``sum`` is that of the weights, which were weighed. */
static int draw_weighted(const fathom_draw_row *row, fathom_weighted *w, double sum, const scratch *s) {
    const double enough = row->top_p < 1 ? row->top_p * sum : INFINITY;
    if (row->min_p > 0) {
        w->bound = (float)row->min_p, w->before = w->count;
        fathom_current->draw_kept(w, s->tops, s->masses);
    }
    for (uint64_t trial = 0;; trial++) {
        const int index = pick(w, s->masses, uniform(row->seed, (uint64_t)row->position, trial));
        if (enough == INFINITY) return index;
        fathom_current->draw_weights(w, index, 1, &w->bound);
        w->before = index;
        fathom_current->draw_kept(w, s->tops, s->masses);
        if (total(s->masses, w->count) < enough) return index;
    }
}

/* Draw an index from logits, or FATHOM_NOTHING_ALLOWED; ``sum`` is that of the weights at temperature 1 if the logits
 * were weighed, else 0. */
static int draw_one(const fathom_draw_row *row, fathom_weighted *w, double sum, const scratch *s) {
    const double temperature = row->temperature < 1e-30 ? 1e-30 : row->temperature > 1e30 ? 1e30 : row->temperature;
    const float scale = (float)(1 / temperature);
    const int filtered = row->top_k > 0 && row->top_k < w->count;
    if (row->temperature > 0 && !filtered) {
        if (sum == 0 || scale != w->scale) {
            w->scale = scale;
            sum = weigh(w, s, NULL);
        }
        return w->best == -INFINITY ? FATHOM_NOTHING_ALLOWED : draw_weighted(row, w, sum, s);
    }
    if (sum == 0) fathom_current->draw_maxima(w->x, w->count, s->maxima);
    w->best = highest(s->maxima, w->count);
    if (w->best == -INFINITY) return FATHOM_NOTHING_ALLOWED;
    if (row->temperature == 0) return likeliest(w->x, w->count, s->maxima, w->best);
    leading(w->x, w->count, row->top_k, s);
    qsort(s->ids, (size_t)row->top_k, sizeof *s->ids, by_id);
    for (int i = 0; i < row->top_k; i++) s->values[i] = w->x[s->ids[i]];
    fathom_weighted leaders = {.x = s->values, .count = row->top_k, .scale = scale};
    sum = weigh(&leaders, s, NULL);
    return s->ids[draw_weighted(row, &leaders, sum, s)];
}

/* The logarithm of the sum of exponentials of the ids without a token. */
static double unused_norm(const float *logits, const int32_t *unused, int count) {
    double best = -INFINITY, sum = 0;
    for (int i = 0; i < count; i++) {
        if (isnan(logits[unused[i]])) return NAN;
        best = logits[unused[i]] > best ? logits[unused[i]] : best;
    }
    if (isinf(best)) return best;
    for (int i = 0; i < count; i++) sum += exp(logits[unused[i]] - best);
    return best + log(sum);
}

static double logaddexp(double a, double b) {
    const double most = a > b ? a : b, least = a > b ? b : a;
    return isinf(most) ? most : most + log1p(exp(least - most));
}

static void alternatives(int count, const float *logits, int vocab, double norm, const scratch *s, int32_t *ids,
                         double *logprobs) {
    if (count == 0) return;
    leading(logits, vocab, count, s);
    sort_leading(s->values, s->ids, count);
    for (int i = 0; i < count; i++) {
        const int exists = s->values[i] > -INFINITY;
        ids[i] = exists ? s->ids[i] : -1;
        logprobs[i] = exists ? s->values[i] - norm : 0;
    }
}

static void forbid(float *logits, const int32_t *ids, int count) {
    for (int i = 0; i < count; i++) logits[ids[i]] = -INFINITY;
}

void fathom_change_logits(const fathom_logit_changes *c, const float *logits, float *out) {
    const float repetition = (float)c->repetition;
    for (int i = 0; i < c->count; i++) {
        const int drawn = c->counts[i];
        float x = logits[c->ids[i]];
        if (repetition != 1 && (i < c->prompt || drawn)) x = x > 0 ? x / repetition : x * repetition;
        x -= (float)(c->presence * (drawn > 0) + c->frequency * drawn);
        if (i < c->biased) x += c->biases[i];
        out[c->ids[i]] = x > HIGHEST ? HIGHEST : x;
    }
    forbid(out, c->banned, c->bans);
}

static void draw_row(const fathom_draw_row *row, int vocab, const int32_t *unused, int unused_count, const scratch *s,
                     int32_t *ids, double *logprobs) {
    const float *own = row->logits;
    const int changed = row->changes || row->allowed;
    fathom_weighted w = {.x = own, .count = vocab, .scale = 1};
    if (unused_count) {
        memcpy(s->logits, own, (size_t)vocab * sizeof *own);
        forbid(s->logits, unused, unused_count);
        w.x = s->logits;
    }
    double sum = weigh(&w, s, changed && !unused_count ? s->logits : NULL), norm = log(sum) + w.best;
    if (unused_count) norm = logaddexp(norm, unused_norm(own, unused, unused_count));
    if (!isfinite(norm)) return; /* ids hold FATHOM_NOT_FINITE */
    alternatives(row->alternatives, w.x, vocab, norm, s, ids + 1, logprobs + 1);
    if (changed) {
        if (row->changes) fathom_change_logits(row->changes, own, s->logits);
        forbid(s->logits, unused, unused_count);
        if (row->allowed) fathom_current->draw_allow(row->allowed, vocab, s->logits);
        w.x = s->logits;
        sum = 0;
    }
    ids[0] = draw_one(row, &w, sum, s);
    if (ids[0] >= 0) logprobs[0] = own[ids[0]] - norm;
}

typedef struct {
    const fathom_draw_row *rows;
    const int32_t *unused;
    int32_t *ids;
    double *logprobs;
    char *memory;
    int count, vocab, unused_count, stride;
} draw_job;

int64_t fathom_draw_scratch(int vocab) {
    const int64_t floats = fathom_padded(vocab), per_block = fathom_padded(blocks(vocab));
    return (per_block * 2 + floats * 2) * (int64_t)sizeof(float) + per_block * (int64_t)sizeof(double) +
           floats * (int64_t)sizeof(int32_t);
}

static scratch scratch_of(void *memory, int vocab) {
    const int64_t floats = fathom_padded(vocab), per_block = fathom_padded(blocks(vocab));
    double *masses = memory;
    float *maxima = (float *)(masses + per_block), *tops = maxima + per_block, *logits = tops + per_block;
    return (scratch){.masses = masses, .maxima = maxima, .tops = tops, .logits = logits, .values = logits + floats,
                     .ids = (int32_t *)(logits + 2 * floats)};
}

static void draw_rows(int thread, int threads, void *given) {
    const draw_job *job = given;
    const scratch s = scratch_of(job->memory + thread * fathom_draw_scratch(job->vocab), job->vocab);
    for (int n = thread; n < job->count; n += threads) {
        const int64_t at = (int64_t)n * job->stride;
        for (int i = 0; i < job->stride; i++) job->ids[at + i] = -1, job->logprobs[at + i] = 0;
        draw_row(&job->rows[n], job->vocab, job->unused, job->unused_count, &s, job->ids + at, job->logprobs + at);
    }
}

int fathom_draw(fathom_pool *pool, const fathom_draw_row *rows, int count, int vocab, const int32_t *unused,
                int unused_count, int stride, int32_t *ids, double *logprobs, void *scratch) {
    draw_job job = {rows, unused, ids, logprobs, scratch, count, vocab, unused_count, stride};
    if (pool && count > 1) return fathom_pool_run(pool, draw_rows, &job);
    draw_rows(0, 1, &job);
    return 0;
}

int fathom_all_finite(const float *x, int64_t count) {
    uint32_t seen = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        seen |= ((bits & 0x7FFFFFFFu) + 0x00800000u) & 0x80000000u; /* the exponent of infinity and NaN carries over */
    }
    return !seen;
}
