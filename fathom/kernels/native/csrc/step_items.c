/* What attends to what in a step: chunks of few tokens as items, whose rows read the pages, others as prompts, in tiles. */
#include "step_run.h"

#define LEAST_TILED 64 /* tokens from which on tiles do not cost more */

/* Expanding all keys, or absorbing what expands them into the queries: which takes fewer multiplications per head. */
static int expanding_costs_less(const fathom_attention_weights *a, const fathom_chunk *c) {
    const double keys = c->start + c->tokens, up = (double)a->latent * (a->nope + a->value);
    const double pairs = c->tokens * (keys - 0.5 * c->tokens);
    const double expanded = keys * up + pairs * (a->nope + a->rope + a->value);
    const double absorbed = c->tokens * up + pairs * (2 * a->latent + a->rope);
    return expanded < absorbed;
}

int fathom_form_of(const fathom_model *m, const fathom_attention_weights *a, const fathom_chunk *c) {
    const int mla = a->kind == FATHOM_MLA;
    if (m->attention_form == FATHOM_CHEAPEST) {
        if (c->tokens < LEAST_TILED) return FATHOM_BY_ROWS;
        return mla && expanding_costs_less(a, c) ? FATHOM_EXPANDED : FATHOM_BY_TILES;
    }
    return m->attention_form == FATHOM_EXPANDED && !mla ? FATHOM_BY_TILES : m->attention_form;
}

int fathom_input_columns(const fathom_attention_weights *a) {
    int columns = 0;
    for (int i = 0; i < a->inputs; i++) columns += a->input[i].weight.rows;
    return columns;
}

/* Of the first head of keys, and the queries that share it; the first row's queries and outputs. */
static fathom_attention item_of(const fathom_run *r, const fathom_attention_weights *a, const fathom_chunk *c,
                                int form) {
    const int mla = a->kind == FATHOM_MLA, absorbed = mla && form != FATHOM_EXPANDED;
    const int projected = mla ? !a->q_b.weight.data && !absorbed : 1;
    const int width = absorbed ? a->latent + a->rope : mla ? a->nope + a->rope : a->value;
    const int value = absorbed ? a->latent : a->value, shared = form == FATHOM_EXPANDED ? a->heads : fathom_key_heads(a);
    return (fathom_attention){
        .table = r->batch->pages + c->page_offset,
        .page_size = r->model->page_size,
        .first = c->first,
        .begin = r->batch->empty_slots,
        .position = c->start,
        .tokens = c->tokens,
        .heads = a->heads / shared,
        .window = a->window,
        .width = width,
        .value_width = value,
        .scale = a->scale,
        .q = absorbed ? r->absorbed : projected ? r->projected : r->queries,
        .q_token = projected ? fathom_input_columns(a) : (int64_t)a->heads * width,
        .q_head = width,
        .out = absorbed ? r->attended : r->mixed.x,
        .out_token = (int64_t)a->heads * value,
        .out_head = value,
    };
}

fathom_prompt fathom_prompt_of(const fathom_run *r, const fathom_attention_weights *a, const fathom_chunk *c) {
    const int form = fathom_form_of(r->model, a, c), expanded = form == FATHOM_EXPANDED;
    return (fathom_prompt){
        .item = item_of(r, a, c, form),
        .kv_heads = expanded ? a->heads : fathom_key_heads(a),
        .key_up = expanded ? a->key_up : NULL,
        .value_up = expanded ? a->value_up : NULL,
    };
}

void fathom_place_items(fathom_run *r, const fathom_attention_weights *a) {
    const fathom_batch *b = r->batch;
    fathom_attention *item = r->items;
    fathom_prompt *prompt = r->prompts;
    int64_t row = 0;
    for (int i = 0; i < b->chunks; row += b->chunk[i++].tokens) {
        fathom_prompt made = fathom_prompt_of(r, a, &b->chunk[i]);
        made.item.q += row * made.item.q_token;
        made.item.out += row * made.item.out_token;
        if (fathom_form_of(r->model, a, &b->chunk[i]) != FATHOM_BY_ROWS) {
            *prompt++ = made;
            continue;
        }
        for (int h = 0; h < made.kv_heads; h++, item++) {
            *item = made.item;
            item->key_column += h * item->width;
            item->value_column += h * item->value_width;
            item->q += h * item->heads * item->q_head;
            item->out += h * item->heads * item->out_head;
        }
    }
}

void fathom_choose_pages(const fathom_run *r, const fathom_layer *layer) {
    int begin, end;
    fathom_divide_rows(r, r->item_count, &begin, &end);
    for (int i = begin; i < end; i++) {
        r->items[i].keys = layer->pages[0];
        r->items[i].values = layer->pages[1];
    }
    fathom_divide_rows(r, r->prompt_count, &begin, &end);
    for (int i = begin; i < end; i++) {
        r->prompts[i].item.keys = layer->pages[0];
        r->prompts[i].item.values = layer->pages[1];
        if (!r->prompts[i].key_up) continue;
        r->prompts[i].key_up = layer->attention.key_up;
        r->prompts[i].value_up = layer->attention.value_up;
    }
}

int fathom_next_rows(const fathom_run *r, const fathom_attention_weights *a, int expanded, int *next, int *begin,
                     int *end) {
    const fathom_batch *b = r->batch;
    for (*begin = *end; *next < b->chunks; ++*next) {
        const fathom_chunk *c = &b->chunk[*next];
        if ((fathom_form_of(r->model, a, c) == FATHOM_EXPANDED) == expanded)
            *end += c->tokens;
        else if (*end > *begin)
            break;
        else
            *begin = *end += c->tokens;
    }
    return *end > *begin;
}
