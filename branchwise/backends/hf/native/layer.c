// A decoder layer before and after its attention: norms, linear layers and what stands between them.
//
// Each of the two is one parallel region. Linear layers are shared out by outputs; between them the
// threads share out rows, a few hundred rows at a time, so that what lies between stays in the
// cache. Sums and norms are of 32 bits throughout; what a linear layer reads is of the model's.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

enum { CHUNK = 256, BFLOAT16 = 2 };  // rows at a time; the kind of linear.c

// As in linear.c: layers that read the same, and what one thread does of them.
struct group {
    const void *layers;
    int64_t count;
};
typedef void share(struct group g, int64_t kind, const void *x, void *const *ys, int64_t rows, int64_t me,
                   int64_t threads, struct group then);

// As `_Layer` in layer.py.
struct layer {
    share *linear;
    struct group attend, mix, expand, reduce;   // q, k, v; o; gate, up; down; their y is float
    struct group next;                          // `attend` of the next layer, or none
    const float *first, *second, *query, *key;  // weights of norms; the last two may be NULL
    float eps[4];                               // in the same order
    int64_t kind, width, heads, key_heads, size, middle;
    int64_t inputs[3];  // numbers of a row that `attend` and `expand`, `mix`, `reduce` read
    // CHUNK rows each of what the next linear layers read, of sums, and of what the last ones gave.
    void *read;
    float *sums, *wide;
};

static int64_t bytes(const struct layer *l) { return l->kind == BFLOAT16 ? 2 : 4; }

// To the nearest, ties to even; what is not a number stays none.
static inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded >> 16);
}

static void read_row(const struct layer *l, const void *from, int64_t row, int64_t n, float *to) {
    if (l->kind != BFLOAT16) {
        memcpy(to, (const float *)from + row * n, n * 4);
        return;
    }
    const uint16_t *halves = (const uint16_t *)from + row * n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(to + i, &bits, 4);
    }
}

// Of `stride` numbers the last are zeros.
static void write_row(const struct layer *l, const float *from, int64_t n, void *to, int64_t row, int64_t stride) {
    char *at = (char *)to + row * stride * bytes(l);
    if (l->kind == BFLOAT16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) ((uint16_t *)at)[i] = narrow(from[i]);
    } else {
        memcpy(at, from, n * 4);
    }
    memset(at + n * bytes(l), 0, (stride - n) * bytes(l));
}

static void normalise(const float *x, const float *w, float eps, int64_t n, float *y) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    const float scale = 1 / sqrtf(squares / (float)n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = w[i] * (x[i] * scale);
}

// Relative error below 2e-7; NaN stays NaN.
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f;  // a whole number, which its low bits hold
    float whole = shifted - 12582912.0f, rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return sum * power;
}

static void activate(const float *gate, float *up, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) up[i] *= gate[i] / (1 + exponential(-gate[i]));
}

// Each half of a head turns against the other.
static void rotate(float *head, const float *cos, const float *sin, int64_t size) {
    const int64_t half = size / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[half + i];
        head[i] = a * cos[i] - b * sin[i];
        head[half + i] = b * cos[half + i] + a * sin[half + i];
    }
}

// Where the heads of a pass go: queries side by side, keys and values into slots of the pool.
struct heads {
    const void *cos, *sin;
    const int64_t *slots;
    void *query, *keys, *values;
    int64_t slots_in_all;  // from one head of the pool to the next
};

static void place(const struct layer *l, const struct heads *to, int64_t row, float *q, float *k, float *v) {
    const int64_t n = l->size, slot = to->slots[row];
    float cos[n], sin[n];
    read_row(l, to->cos, row, n, cos);
    read_row(l, to->sin, row, n, sin);
    for (int64_t h = 0; h < l->heads; h++, q += n) {
        if (l->query) normalise(q, l->query, l->eps[2], n, q);
        rotate(q, cos, sin, n);
        write_row(l, q, n, to->query, row * l->heads + h, n);
    }
    for (int64_t h = 0; h < l->key_heads; h++, k += n, v += n) {
        if (l->key) normalise(k, l->key, l->eps[3], n, k);
        rotate(k, cos, sin, n);
        write_row(l, k, n, to->keys, h * to->slots_in_all + slot, n);
        write_row(l, v, n, to->values, h * to->slots_in_all + slot, n);
    }
}

// Rows of a chunk, and those of them that are this thread's.
struct turn {
    int64_t first, rows, me, threads, begin, end;
};

static struct turn turn_of(int64_t first, int64_t rows) {
    struct turn t = {first, rows - first < CHUNK ? rows - first : CHUNK, omp_get_thread_num(), omp_get_num_threads(), 0, 0};
    t.begin = t.rows * t.me / t.threads;
    t.end = t.rows * (t.me + 1) / t.threads;
    return t;
}

// Other threads' rows are read here, and written to afterwards.
static void multiply(const struct layer *l, struct group g, struct group then, const struct turn *t,
                     void *const *ys) {
#pragma omp barrier
    l->linear(g, l->kind, l->read, ys, t->rows, t->me, t->threads, then);
#pragma omp barrier
}

void before(const struct layer *l, const void *x, const struct heads *to, int64_t rows, int64_t threads) {
    const int64_t queries = l->heads * l->size, keys = l->key_heads * l->size;
    float *q = l->wide, *k = q + CHUNK * queries, *v = k + CHUNK * keys;
#pragma omp parallel num_threads(threads)
    for (int64_t first = 0; first < rows; first += CHUNK) {
        const struct turn t = turn_of(first, rows);
        for (int64_t r = t.begin; r < t.end; r++) {
            float *row = l->sums + r * l->width;
            read_row(l, x, first + r, l->width, row);
            normalise(row, l->first, l->eps[0], l->width, row);
            write_row(l, row, l->width, l->read, r, l->inputs[0]);
        }
        multiply(l, l->attend, l->mix, &t, (void *[]){q, k, v});
        for (int64_t r = t.begin; r < t.end; r++)
            place(l, to, first + r, q + r * queries, k + r * keys, v + r * keys);
    }
}

void after(const struct layer *l, const void *x, const float *attended, void *y, int64_t rows, int64_t threads) {
    const int64_t queries = l->heads * l->size;
    float *gate = l->wide, *up = gate + CHUNK * l->middle;
#pragma omp parallel num_threads(threads)
    for (int64_t first = 0; first < rows; first += CHUNK) {
        const struct turn t = turn_of(first, rows);
        for (int64_t r = t.begin; r < t.end; r++)
            write_row(l, attended + (first + r) * queries, queries, l->read, r, l->inputs[1]);
        multiply(l, l->mix, l->expand, &t, (void *[]){l->sums});
        for (int64_t r = t.begin; r < t.end; r++) {
            float *sum = l->sums + r * l->width, *row = l->wide + r * l->width;
            read_row(l, x, first + r, l->width, row);
            for (int64_t i = 0; i < l->width; i++) sum[i] += row[i];
            normalise(sum, l->second, l->eps[1], l->width, row);
            write_row(l, row, l->width, l->read, r, l->inputs[0]);
        }
        multiply(l, l->expand, l->reduce, &t, (void *[]){gate, up});
        for (int64_t r = t.begin; r < t.end; r++) {
            activate(gate + r * l->middle, up + r * l->middle, l->middle);
            write_row(l, up + r * l->middle, l->middle, l->read, r, l->inputs[2]);
        }
        multiply(l, l->reduce, l->next, &t, (void *[]){l->wide});
        for (int64_t r = t.begin; r < t.end; r++) {
            float *sum = l->sums + r * l->width, *row = l->wide + r * l->width;
            for (int64_t i = 0; i < l->width; i++) sum[i] += row[i];
            write_row(l, sum, l->width, y, first + r, l->width);
        }
    }
}
