/* Draws the next token of each row: temperature, top-k, top-p, min-p, in this order.
 *
 * Nothing is sorted. Where the kept tokens end is found by narrowing an interval of logits: a pass
 * over the row tells for a few points in it how much lies above each of them. A row is one thread's
 * work from its first number to its last, so a sample does not depend on what stands beside it.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BLOCK 512 /* tokens whose weights are summed in single precision; then double takes over */
#define SPLITS 4
#define FEW 192       /* tokens that are sorted rather than narrowed further */
#define PASSES 40     /* each leaves a fifth of the interval: enough for any two floats */
#define COLDEST 1e-6  /* of the temperatures that are not zero */

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef double doubles __attribute__((vector_size(8 * LANES)));

typedef struct {
    long size;     /* of the vocabulary, up to whole blocks */
    float *logits; /* -inf in what lies beyond the vocabulary */
    float *weights;
    double *sums; /* of the weights of each block */
    float *peaks; /* the largest logit of each block */
    float largest;
    double mass;
} Row;

typedef struct {
    float value; /* the smallest logit that is kept */
    long ties;   /* how many of the tokens that have it */
    long equal;  /* how many have it */
} Boundary;

typedef struct {
    float logit, weight;
} Token;

static floats masked(floats x, ints mask) {
    ints bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= mask;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static floats exponential(floats x) {
    /* exp(x) = 2^n exp(f) with |f| <= log(2) / 2; x is not positive, so cutting rounds n. */
    ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, ints);
    floats whole = __builtin_convertvector(n, floats);
    floats f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    floats p = 1.9875691500e-4f * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    ints bits = (n + 127) << 23;
    floats scale;
    memcpy(&scale, &bits, sizeof scale);
    return masked(p * scale, x > -87.0f); /* smaller ones count as nothing */
}

static floats larger(floats x, floats y) {
    ints over = x > y;
    return masked(x, over) + masked(y, ~over);
}

static double total(floats x) {
    doubles wide = __builtin_convertvector(x, doubles);
    double sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += wide[i];
    return sum;
}

static int any(ints mask) {
    int64_t words[LANES / 2], found = 0;
    memcpy(words, &mask, sizeof words);
    for (int i = 0; i < LANES / 2; i++)
        found |= words[i];
    return found != 0;
}

static float peak(floats x) {
    float largest = x[0];
    for (int i = 1; i < LANES; i++)
        largest = x[i] > largest ? x[i] : largest;
    return largest;
}

/* Copies a row; returns whether it has a largest logit. */
static int read_row(Row *row, const void *source, int is_half, long vocabulary) {
    if (is_half) {
        const uint16_t *halves = source;
        uint32_t *bits = (uint32_t *)row->logits;
        for (long i = 0; i < vocabulary; i++)
            bits[i] = (uint32_t)halves[i] << 16;
    } else {
        memcpy(row->logits, source, vocabulary * sizeof(float));
    }
    for (long i = vocabulary; i < row->size; i++)
        row->logits[i] = -INFINITY;
    ints strange = {0};
    row->largest = -INFINITY;
    for (long b = 0; b < row->size; b += BLOCK) {
        floats top = *(floats *)(row->logits + b);
        for (long i = b; i < b + BLOCK; i += LANES) {
            floats x = *(floats *)(row->logits + i);
            strange |= x != x;
            top = larger(x, top);
        }
        float largest = row->peaks[b / BLOCK] = peak(top);
        row->largest = largest > row->largest ? largest : row->largest;
    }
    return !any(strange) && isfinite(row->largest);
}

/* Weights at a temperature, the largest 1; returns the mass at temperature 1. */
static double weigh(Row *row, double temperature) {
    float heat = 1 / temperature;
    double raw = 0;
    row->mass = 0;
    for (long b = 0; b < row->size; b += BLOCK) {
        floats sum = {0}, plain = {0};
        for (long i = b; i < b + BLOCK; i += LANES) {
            floats x = *(floats *)(row->logits + i) - row->largest;
            floats w = exponential(x * heat);
            *(floats *)(row->weights + i) = w;
            sum += w;
            if (heat != 1)
                plain += exponential(x);
        }
        row->sums[b / BLOCK] = total(sum);
        row->mass += row->sums[b / BLOCK];
        raw += total(plain);
    }
    return heat != 1 ? raw : row->mass;
}

/* The mass, or the number, of the tokens above each of some points; and their number. */
static inline __attribute__((always_inline)) void above(
    const Row *row, const float *points, int counting, double *mass, long *count) {
    doubles sums[SPLITS] = {{0}};
    ints counts[SPLITS] = {{0}};
    for (long b = 0; b < row->size; b += BLOCK) {
        if (row->peaks[b / BLOCK] <= points[0])
            continue;
        floats part[SPLITS] = {{0}};
        for (long i = b; i < b + BLOCK; i += LANES) {
            floats x = *(const floats *)(row->logits + i);
            floats w = {0};
            if (!counting)
                w = *(const floats *)(row->weights + i);
#pragma GCC unroll 4
            for (int s = 0; s < SPLITS; s++) {
                ints over = x > points[s];
                counts[s] -= over;
                if (!counting)
                    part[s] += masked(w, over);
            }
        }
        for (int s = 0; s < SPLITS && !counting; s++)
            sums[s] += __builtin_convertvector(part[s], doubles);
    }
    for (int s = 0; s < SPLITS; s++) {
        mass[s] = count[s] = 0;
        for (int i = 0; i < LANES; i++) {
            mass[s] += sums[s][i];
            count[s] += counts[s][i];
        }
        if (counting)
            mass[s] = count[s];
    }
}

static int falling(const void *a, const void *b) {
    float x = ((const Token *)a)->logit, y = ((const Token *)b)->logit;
    return (x < y) - (x > y);
}

/* The boundary among the tokens of an interval, where `mass` lies above it. */
static Boundary settle(
    const Row *row, float low, float high, long count, int counting, double mass, double target) {
    Token few[FEW], *tokens = count > FEW ? malloc(count * sizeof(Token)) : few;
    long n = 0;
    for (long b = 0; b < row->size && n < count; b += BLOCK) {
        if (row->peaks[b / BLOCK] <= low)
            continue;
        for (long v = b; v < b + BLOCK && n < count; v += LANES) {
            floats x = *(const floats *)(row->logits + v);
            if (!any((x > low) & (x <= high)))
                continue;
            for (long i = v; i < v + LANES; i++)
                if (row->logits[i] > low && row->logits[i] <= high)
                    tokens[n++] = (Token){row->logits[i], counting ? 1 : row->weights[i]};
        }
    }
    qsort(tokens, n, sizeof(Token), falling);
    long last = 0;
    while (last < n - 1 && (mass += tokens[last].weight) < target)
        last++;
    Boundary found = {tokens[last].logit, 0, 0};
    for (long i = 0; i < n; i++)
        if (tokens[i].logit == found.value) {
            found.ties += i <= last;
            found.equal++;
        }
    if (tokens != few)
        free(tokens);
    return found;
}

/* Just below the smallest logit that is not -inf. */
static float lowest(const Row *row) {
    float least = row->largest;
    for (long i = 0; i < row->size; i++) {
        float x = row->logits[i];
        least = x > -INFINITY && x < least ? x : least;
    }
    return nextafterf(least, -INFINITY);
}

/* Where the tokens of the largest logits first have the mass, or the number, of the target. */
static inline __attribute__((always_inline)) Boundary find(
    const Row *row, float low, int counting, double target) {
    float high = row->largest;
    double over = 0; /* what lies above `high` */
    long beyond = 0, within = row->size;
    float points[SPLITS];
    double mass[SPLITS];
    long count[SPLITS];
    for (int pass = 0; pass < PASSES; pass++) {
        /* The first pass looks at `low` itself, too. */
        for (int s = 0; s < SPLITS; s++)
            points[s] = low + (high - low) * (pass ? (s + 1) / (SPLITS + 1.0f) : s / (float)SPLITS);
        if (!pass)
            points[0] = low; /* whatever the difference was */
        above(row, points, counting, mass, count);
        int s = SPLITS - 1;
        while (s >= 0 && mass[s] < target)
            s--;
        if (!pass && s < 0) { /* where logits are so large that `low` was rounded up */
            float floor = lowest(row);
            if (low <= floor) /* there is no more than this */
                return (Boundary){-INFINITY, row->size, row->size};
            low = floor;
            pass = -1;
            continue;
        }
        if (s < SPLITS - 1) {
            high = points[s + 1];
            over = mass[s + 1];
            beyond = count[s + 1];
        }
        if (s >= 0) {
            low = points[s];
            within = count[s];
        }
        if (within - beyond <= FEW || nextafterf(low, high) == high)
            break;
    }
    return settle(row, low, high, within - beyond, counting, over, target);
}

static int rising(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* A logit that at least `k` tokens exceed, as far as the largest of each block tell. */
static float floor_of(const Row *row, long k, float *room) {
    long blocks = row->size / BLOCK;
    if (k > blocks)
        return -INFINITY;
    memcpy(room, row->peaks, blocks * sizeof(float));
    qsort(room, blocks, sizeof(float), rising);
    return nextafterf(room[blocks - k], -INFINITY);
}

/* Takes the weight of all tokens that top-k, then top-p, then min-p cut. */
static void cut(Row *row, long k, double p, double min_p, double temperature, float *room) {
    Boundary end = {-INFINITY, row->size, row->size};
    double mass = row->mass;
    if (k > 0) {
        float low = floor_of(row, k, room);
        end = find(row, low > -INFINITY ? low : lowest(row), 1, k);
        end.ties = end.equal;
        if (p < 1 && end.value > -INFINITY) {
            float points[SPLITS];
            double masses[SPLITS];
            long counts[SPLITS];
            for (int s = 0; s < SPLITS; s++)
                points[s] = nextafterf(end.value, -INFINITY);
            above(row, points, 0, masses, counts);
            mass = masses[0];
        }
    }
    if (p < 1) {
        float low = nextafterf(end.value, -INFINITY);
        if (end.value == -INFINITY) {
            /* All that is less likely than this cannot have 1 - p together. */
            double least = log((1 - p) * mass / row->size) * temperature;
            low = row->largest + least * 1.0001 - 1e-6;
        }
        end = find(row, low, 0, p * mass);
    }
    row->mass = 0;
    for (long b = 0; b < row->size; b += BLOCK) {
        row->sums[b / BLOCK] = 0;
        if (row->peaks[b / BLOCK] < end.value)
            continue;
        floats sum = {0};
        for (long i = b; i < b + BLOCK; i += LANES) {
            floats w = *(floats *)(row->weights + i);
            ints kept = (*(floats *)(row->logits + i) >= end.value) & (w >= (float)min_p);
            w = masked(w, kept);
            *(floats *)(row->weights + i) = w;
            sum += w;
        }
        row->sums[b / BLOCK] = total(sum);
    }
    /* Of equal tokens the first are kept. */
    for (long i = 0, excess = end.equal - end.ties, seen = 0; excess > 0 && i < row->size; i++)
        if (row->logits[i] == end.value && seen++ >= end.ties) {
            row->sums[i / BLOCK] -= row->weights[i];
            row->weights[i] = 0;
        }
    for (long b = 0; b < row->size / BLOCK; b++)
        row->mass += row->sums[b];
}

/* The first token at which the summed weights exceed this share of them all. */
static long invert(const Row *row, double number) {
    double left = number * row->mass;
    long blocks = row->size / BLOCK, block = -1;
    for (long b = 0; b < blocks; b++) {
        if (row->sums[b] <= 0)
            continue;
        block = b;
        if (left < row->sums[b])
            break;
        left -= row->sums[b];
    }
    long found = block * BLOCK;
    for (long i = block * BLOCK; i < (block + 1) * BLOCK; i++) {
        if (row->weights[i] <= 0)
            continue;
        found = i;
        if (left < row->weights[i])
            break;
        left -= row->weights[i];
    }
    return found;
}

static long best(const Row *row) {
    long i = 0;
    while (row->peaks[i / BLOCK] < row->largest)
        i += BLOCK;
    while (row->logits[i] < row->largest)
        i++;
    return i;
}

/* Memory that a thread keeps, so that a call costs no page faults. */
static Row room_for(long vocabulary, float **spare) {
    static _Thread_local char *memory;
    static _Thread_local size_t held;
    long size = (vocabulary + BLOCK - 1) / BLOCK * BLOCK, blocks = size / BLOCK;
    size_t needed = 2 * size * sizeof(float) + blocks * (sizeof(double) + 2 * sizeof(float));
    if (needed > held) {
        free(memory);
        memory = malloc(needed);
        held = memory ? needed : 0;
    }
    Row row = {size, NULL, NULL, (double *)memory, NULL, 0, 0};
    row.logits = (float *)(row.sums + blocks);
    row.weights = row.logits + size;
    row.peaks = row.weights + size;
    *spare = row.peaks + blocks;
    return row;
}

/* Draws for the rows at `places`.
 *
 * parameters: temperature, top-k, top-p and min-p of each of them.
 * numbers, tokens, logprobs, proposals: of all rows, so that `places` holds for them too.
 */
void draw(
    const char *logits, int is_half, long stride, long vocabulary, long rows, const int64_t *places,
    const double *parameters, const double *numbers, int64_t *tokens, double *logprobs,
    double *proposals) {
#pragma omp parallel for schedule(dynamic, 1)
    for (long r = 0; r < rows; r++) {
        long place = places[r];
        const double *how = parameters + 4 * r;
        float *spare;
        Row row = room_for(vocabulary, &spare);
        int greedy = how[0] == 0;
        double temperature = greedy ? 1 : how[0] < COLDEST ? COLDEST : how[0];
        const char *source = logits + place * stride * (is_half ? 2 : 4);
        tokens[place] = 0;
        logprobs[place] = proposals[place] = NAN;
        if (!read_row(&row, source, is_half, vocabulary))
            continue;
        double raw = weigh(&row, temperature);
        if (!greedy && (how[1] > 0 || how[2] < 1 || how[3] > 0))
            cut(&row, (long)how[1], how[2], how[3], temperature, spare);
        long token = greedy ? best(&row) : invert(&row, numbers[place]);
        tokens[place] = token;
        logprobs[place] = (double)row.logits[token] - row.largest - log(raw);
        proposals[place] = greedy ? 0 : log(row.weights[token] / row.mass);
    }
}
