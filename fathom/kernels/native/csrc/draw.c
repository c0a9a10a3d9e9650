/* Drawing from logits: penalties and masks, the highest few, weights, and one of them by a random number. */
#include "draw.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "pool.h"
#include "splitmix64.h"

/* What a row needs beside its logits: copies of V, and of each block the sum of weights and the highest logit. */
typedef struct {
    float *logits, *weights, *maxima, *values;
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

/* Keep the ``count`` highest logits in a heap whose top is the least of them; returns how many there are. */
static int leading(const float *logits, int vocab, const float *maxima, int count, float *values, int32_t *ids) {
    int held = 0;
    for (int block = 0; block < blocks(vocab); block++) {
        if (held == count && !(maxima[block] > values[0])) continue;
        const int begin = block * FATHOM_DRAW_BLOCK;
        const int end = begin + FATHOM_DRAW_BLOCK < vocab ? begin + FATHOM_DRAW_BLOCK : vocab;
        for (int i = begin; i < end; i++) {
            if (held < count) {
                values[held] = logits[i], ids[held] = i;
                if (++held == count)
                    for (int at = count / 2; at-- > 0;) sift(values, ids, count, at);
            } else if (logits[i] > values[0]) { /* an equal one comes later */
                values[0] = logits[i], ids[0] = i;
                sift(values, ids, count, 0);
            }
        }
    }
    return held;
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
static int pick(const float *weights, int count, const double *masses, double number) {
    const double target = number * total(masses, count);
    double before;
    const int block = block_of(masses, blocks(count), target > 0 ? target : 0, &before);
    const int begin = block * FATHOM_DRAW_BLOCK;
    const int end = begin + FATHOM_DRAW_BLOCK < count ? begin + FATHOM_DRAW_BLOCK : count;
    const double rest = target - before > 0 ? target - before : 0;
    double sum = 0;
    int last = begin;
    for (int i = begin; i < end; i++) {
        const double next = sum + weights[i];
        if (next > rest) return i;
        if (next > sum) last = i;
        sum = next;
    }
    return last;
}

/* Draw an index by weight, as filters.py sample_filtered does. */
static int draw_weighted(const fathom_draw_row *row, int count, const scratch *s) {
    const double enough = row->top_p < 1 ? row->top_p * total(s->masses, count) : INFINITY;
    if (row->min_p > 0) fathom_current->draw_keep(s->weights, count, (float)row->min_p, count, s->masses);
    for (uint64_t trial = 0;; trial++) {
        const int index = pick(s->weights, count, s->masses, uniform(row->seed, (uint64_t)row->position, trial));
        if (enough == INFINITY) return index;
        fathom_current->draw_keep(s->weights, count, s->weights[index], index, s->masses);
        if (total(s->masses, count) < enough) return index;
    }
}

/* Draw from logits of which ``best`` is the highest. */
static int draw_one(const fathom_draw_row *row, const float *logits, int vocab, float best, const scratch *s) {
    if (row->temperature == 0) return likeliest(logits, vocab, s->maxima, best);
    const double temperature = row->temperature < 1e-30 ? 1e-30 : row->temperature > 1e30 ? 1e30 : row->temperature;
    const float scale = (float)(1 / temperature);
    if (row->top_k <= 0 || row->top_k >= vocab) {
        fathom_current->draw_weights(logits, vocab, best, scale, s->weights, s->masses);
        return draw_weighted(row, vocab, s);
    }
    const int count = leading(logits, vocab, s->maxima, row->top_k, s->values, s->ids);
    qsort(s->ids, (size_t)count, sizeof *s->ids, by_id);
    for (int i = 0; i < count; i++) s->values[i] = logits[s->ids[i]];
    fathom_current->draw_weights(s->values, count, best, scale, s->weights, s->masses);
    return s->ids[draw_weighted(row, count, s)];
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

static void alternatives(const fathom_draw_row *row, const float *logits, int vocab, double norm, const scratch *s,
                         int32_t *ids, double *logprobs) {
    const int wanted = row->alternatives < vocab ? row->alternatives : vocab;
    const int count = wanted > 0 ? leading(logits, vocab, s->maxima, wanted, s->values, s->ids) : 0;
    sort_leading(s->values, s->ids, count);
    for (int i = 0; i < row->alternatives; i++) {
        const int exists = i < count && s->values[i] > -INFINITY;
        ids[i] = exists ? s->ids[i] : -1;
        logprobs[i] = exists ? s->values[i] - norm : 0;
    }
}

static void forbid_unused(float *logits, const int32_t *unused, int count) {
    for (int i = 0; i < count; i++) logits[unused[i]] = -INFINITY;
}

/* Write what a row is drawn from where that is not its logits. */
static void change(const fathom_draw_row *row, int vocab, const int32_t *unused, int unused_count, float *out) {
    memcpy(out, row->logits, (size_t)vocab * sizeof *out);
    for (int64_t i = 0; i < row->changed; i++) out[row->changed_ids[i]] = row->changed_logits[i];
    forbid_unused(out, unused, unused_count);
    for (int word = 0; row->allowed && word * 32 < vocab; word++) {
        const uint32_t bits = (uint32_t)row->allowed[word];
        if (bits == 0xFFFFFFFFu) continue;
        const int left = vocab - word * 32 < 32 ? vocab - word * 32 : 32;
        for (int i = 0; i < left; i++)
            if (!(bits >> i & 1)) out[word * 32 + i] = -INFINITY;
    }
}

static void draw_row(const fathom_draw_row *row, int vocab, const int32_t *unused, int unused_count, const scratch *s,
                     int32_t *ids, double *logprobs) {
    const float *own = row->logits, *logits = own;
    if (unused_count) {
        memcpy(s->logits, own, (size_t)vocab * sizeof *own);
        forbid_unused(s->logits, unused, unused_count);
        logits = s->logits;
    }
    double norm = fathom_current->draw_norm(logits, vocab, s->maxima);
    if (unused_count) norm = logaddexp(norm, unused_norm(own, unused, unused_count));
    if (!isfinite(norm)) return; /* ids hold FATHOM_NOT_FINITE */
    alternatives(row, logits, vocab, norm, s, ids + 1, logprobs + 1);
    float best = highest(s->maxima, vocab);
    if (row->changed || row->allowed) {
        change(row, vocab, unused, unused_count, s->logits);
        logits = s->logits;
        fathom_current->draw_maxima(logits, vocab, s->maxima);
        best = highest(s->maxima, vocab);
        if (best == -INFINITY) {
            ids[0] = FATHOM_NOTHING_ALLOWED;
            return;
        }
    }
    ids[0] = draw_one(row, logits, vocab, best, s);
    logprobs[0] = own[ids[0]] - norm;
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
    return per_block * (int64_t)(sizeof(double) + sizeof(float)) + floats * (int64_t)(3 * sizeof(float) + sizeof(int32_t));
}

static scratch scratch_of(void *memory, int vocab) {
    const int64_t floats = fathom_padded(vocab), per_block = fathom_padded(blocks(vocab));
    double *masses = memory;
    float *maxima = (float *)(masses + per_block), *logits = maxima + per_block;
    return (scratch){.masses = masses, .maxima = maxima, .logits = logits, .weights = logits + floats,
                     .values = logits + 2 * floats, .ids = (int32_t *)(logits + 3 * floats)};
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
