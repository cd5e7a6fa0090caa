/* A decoder as the kernels know it, and the memory that passes through it need. Mirrored in binding.py. */
#ifndef MODEL_H
#define MODEL_H
#include "activation.h"
#include "inputs.h"
#include "norm.h"
#include "pool.h"

#define MAX_EXPERTS 1024
#define MAX_OTHERS 1024 /* tokens of a head past its first rows */
#define HEAD_UNITS 16 /* units of the output head whose exponentials are summed before such sums are added */

enum { KIND_ATTENTION = 0, KIND_MLP = 1, KIND_EXPERTS = 2 };
enum { REACH_FULL = 0, REACH_WINDOW = 1, REACH_CHUNK = 2 };
enum { QK_NORM_HEAD = 0, QK_NORM_EACH_HEAD = 1, QK_NORM_WIDTH = 2 };

/* Rotary positions: cosines, and sines with the signs of a rotation, of each dimension that is rotated. */
typedef struct {
    const float *cosine, *signed_sine; /* [capacity, size] */
    int64_t size;
} RopeTable;

/* What an attention does between its linear layers. 0 stands for no `cap` and no `clip`. */
typedef struct {
    int32_t heads, kv_heads, size;
    int32_t is_grouped;                       /* rows of qkv: of each KV head its queries, key and value; else all queries, keys, values */
    int32_t reach, reach_size;                /* which positions are seen */
    int32_t rope, is_adjacent, is_rope_float; /* number of a table, or -1; pairs (2i, 2i + 1) or halves; rounded at the end alone */
    int32_t qk_norm, is_qk_norm_late;         /* over what; whether after the rotation */
    int32_t growth, bias;                     /* numbers of tables by position, or -1: [capacity], [heads, capacity] */
    int32_t rounds_scores;                    /* with that bias */
    float scale, cap, clip;
    Norm query_norm, key_norm;
    const float *sinks; /* [heads], or null */
} Attention;

typedef struct {
    int32_t is_gated;
    Activation activation;
} Mlp;

/* A mixture of experts: a router, the experts that it chooses from, and a gated MLP for every token beside them. */
typedef struct {
    int32_t count, chosen;               /* experts; those that a token goes to */
    int32_t is_sigmoid, is_chosen_first; /* scores: of each logit, or by softmax; of the chosen ones' logits alone */
    int32_t groups, kept_groups;         /* groups are ranked by the sum of their two best */
    int32_t is_renormalised, rounds_logits, rounds_weights;
    int32_t has_shared, has_shared_weight;
    float least_sum, sum_epsilon, scale;
    Activation activation, shared_activation;
    const float *choice_bias; /* or null */
    int64_t width;            /* of one expert */
    Linear router, gate_up, down; /* [count, hidden]; [count * 2 width, hidden], an expert's gate first; [count * hidden, width] */
    Linear shared_gate, shared_up, shared_down;
    Linear shared_weight; /* [1, hidden]: the shared output's, by sigmoid */
} Experts;

/* x + residual_scale * post(f(norm(x))). */
typedef struct {
    int32_t kind, layer;
    int32_t is_parallel; /* the MLP reads what the attention of its layer read, where that ran in the same pass */
    float residual_scale;
    Norm norm, post, inner;      /* of the input, the output, and what the output layer reads */
    Linear first, second, third; /* attention: qkv, output, gate; MLP: gate (of a plain one: its input layer), up, down */
    Attention attention;
    Mlp mlp;
    const Experts *experts; /* null in other sub-layers */
} SubLayer;

typedef struct {
    int32_t is_bf16, threads;
    int64_t hidden, heads, kv_heads, head_size, widest, vocabulary, capacity; /* widest: largest input of any linear */
    int64_t experts, chosen, expert_width, shared_width; /* the most of any mixture; 0 without any */
    const void *embedding, *positions; /* positions [capacity, hidden]: learned ones, or null */
    float embedding_scale, logit_scale, logit_cap; /* no cap: 0 */
    Norm embedding_norm, final_norm;
    const RopeTable *ropes;
    const float *const *tables; /* what queries are multiplied with, or what is added to scores */
    void *keys, *values; /* [layers, kv_heads, capacity, head_size] */
} Model;

/* The highest of some rows of logits, and the sum of exp(logit - it) over them; where how sure that is was asked for,
 * the second highest, and the sum of exp(logit - highest) * (logit - highest). */
typedef struct {
    int64_t token;
    float logit, sum, second, weighted;
} Highest;

/* What mixtures of experts need. A pair is a token and a rank of its experts. */
typedef struct {
    float *logits, *weights;              /* [tokens, experts]; [pairs] */
    float *gated, *shares;                /* [pairs, width]; [pairs, hidden] */
    float *shared_gated, *shared_weights; /* [tokens, shared width]; [tokens] */
    float *beside;                        /* [tokens, hidden]: what the MLP for every token gives */
    int32_t *chosen, *routes;             /* [pairs]; per thread */
    Input *gathered;                      /* per thread: inputs of one expert */
} Mixture;

typedef struct {
    Model m;
    float *hidden, *input, *output; /* [tokens, hidden]: the stream; a parallel layer's input; outputs before their norm */
    float *qkv, *queries, *gate;    /* [tokens, …] */
    Input shared;                   /* MLP activations */
    Input *local;                   /* per thread: normalised or attended input */
    Highest *highest;               /* [blocks of HEAD_UNITS, tokens] */
    float *part, *part_max, *part_sum; /* [chunks, tokens, heads(, head_size)] */
    int64_t chunks;
    Mixture mixture;
    Barrier barrier;
} Engine;
#endif
