// y = x W^T + b for few rows of x, where what takes the time is to read W.
//
// W lies in panels of 32 outputs, each of them one stretch of memory that is read once, in order:
//   float:    panel[in][32]
//   bfloat16: panel[in / 32][2][16][16][2], two tiles of 16 pairs of inputs by 16 outputs.
// A row's sums are made in the same order whatever the number of rows, so that a result does not
// depend on the batch that it was computed in.

#include <stddef.h>
#include <stdint.h>

enum { FLOAT = 1, BFLOAT16 = 2 };  // what `linear_supports` can say

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__linux__)
#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WIDTH = 32, TILE = 16 };  // outputs of a panel, and of a tile

struct layer {
    const char *panels;
    const float *bias;  // of a whole number of panels
    int64_t in, out;    // in: a multiple of 32 where the weights are bfloat16
    int64_t round;      // bfloat16 alone: whether the outputs are bfloat16 too
};

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows in blocks of one size, the last of which begins early enough to be whole.
struct blocks {
    int64_t rows, size, count;
};

static struct blocks blocks_of(int64_t rows, int64_t most) {
    int64_t count = divide_up(rows, most);
    return (struct blocks){rows, divide_up(rows, count), count};
}

static int64_t start(struct blocks b, int64_t i) {
    int64_t first = i * b.size;
    return first + b.size > b.rows ? b.rows - b.size : first;
}

// So many rows at a time that they stay in the cache while the panels pass by.
static struct blocks chunks_of(int64_t rows, int64_t bytes) {
    int64_t most = (1 << 20) / bytes;
    return blocks_of(rows, most < 128 ? 128 : most);
}

// The next panel, asked for while this one is worked on: memory is busy in every pass, not in the
// first alone. Its quarters are read side by side: each page then has a prefetcher of its own.
struct ahead {
    const char *at, *end;
    int64_t quarter, lines;  // lines of each quarter in each step
};

static struct ahead ahead_of(const char *next, int64_t bytes, int64_t steps) {
    int64_t quarter = next ? bytes / 4 : 0;
    return (struct ahead){next, next + quarter, quarter, divide_up(quarter, 64 * steps)};
}

static inline void ask(struct ahead *a) {
    for (int64_t i = 0; i < a->lines && a->at < a->end; i++, a->at += 64)
        for (int q = 0; q < 4; q++) _mm_prefetch(a->at + q * a->quarter, _MM_HINT_T1);
}

// A panel of one of the layers that are computed together.
struct place {
    const struct layer *layer;
    int64_t panel;
    void *y;           // what the layer gives
    const char *next;  // the panel that this thread reads after it
};

static __mmask32 columns(const struct layer *l, int64_t panel) {
    int64_t left = l->out - panel * WIDTH;
    return left >= WIDTH ? 0xffffffffu : (1u << left) - 1;
}

static inline void store(float *y, __mmask32 mask, __m512 low, __m512 high) {
    _mm512_mask_storeu_ps(y, (__mmask16)mask, low);
    _mm512_mask_storeu_ps(y + 16, (__mmask16)(mask >> 16), high);
}

enum {
    ROWS = 14,    // with two registers of sums each, what the registers hold
    STEP = 8,     // inputs between two requests to memory
    DEPTH = 384,  // inputs summed before the sum is added to y: short sums round less
};

// A block of rows times a part of a panel. Inlined where `size` is a constant: sums are registers.
static inline __attribute__((always_inline)) void float_block(
    const int size, const struct layer *l, int64_t panel, int64_t first, const float *x, float *y,
    struct ahead *ahead) {
    const float *w = (const float *)l->panels + panel * l->in * WIDTH;
    const int64_t end = first + DEPTH < l->in ? first + DEPTH : l->in;
    const __mmask32 mask = columns(l, panel);
    __m512 low[ROWS], high[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < size; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t k = first; k < end;) {
        ask(ahead);
        for (const int64_t stop = k + STEP < end ? k + STEP : end; k < stop; k++) {
            __m512 w0 = _mm512_loadu_ps(w + k * WIDTH), w1 = _mm512_loadu_ps(w + k * WIDTH + 16);
#pragma GCC unroll 16
            for (int r = 0; r < size; r++) {
                __m512 value = _mm512_set1_ps(x[r * l->in + k]);
                low[r] = _mm512_fmadd_ps(value, w0, low[r]);
                high[r] = _mm512_fmadd_ps(value, w1, high[r]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < size; r++) {
        float *to = y + r * l->out;
        const float *bias = l->bias + panel * WIDTH;
        __m512 low0 = first ? _mm512_maskz_loadu_ps((__mmask16)mask, to) : _mm512_loadu_ps(bias);
        __m512 high0 = first ? _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), to + 16) : _mm512_loadu_ps(bias + 16);
        store(to, mask, _mm512_add_ps(low0, low[r]), _mm512_add_ps(high0, high[r]));
    }
}

static void float_rows(const struct place *at, const float *x, int64_t from, int64_t rows) {
    const struct layer *l = at->layer;
    struct blocks b = blocks_of(rows, ROWS);
    struct ahead ahead = ahead_of(at->next, l->in * WIDTH * 4, divide_up(l->in, STEP) * b.count);
    for (int64_t first = 0; first < l->in; first += DEPTH)
        for (int64_t i = 0; i < b.count; i++) {
            // Not start(): what is summed in parts cannot be summed twice.
            int64_t row = from + i * b.size, left = rows - i * b.size, size = left < b.size ? left : b.size;
            const float *x0 = x + row * l->in;
            float *y0 = (float *)at->y + row * l->out + at->panel * WIDTH;
            switch (size) {
#define SIZE(n) case n: float_block(n, l, at->panel, first, x0, y0, &ahead); break;
                SIZE(1) SIZE(2) SIZE(3) SIZE(4) SIZE(5) SIZE(6) SIZE(7) SIZE(8) SIZE(9) SIZE(10) SIZE(11) SIZE(12)
                SIZE(13) SIZE(14)
#undef SIZE
            }
        }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

static int tiles_allowed(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

// Tiles 0 to 3 are sums, 4 and 5 rows of x, 6 and 7 weights.
static void configure(int64_t rows) {
    struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = 64;
        config.rows[t] = (uint8_t)(t < 6 ? rows : TILE);
    }
    // gcc takes the intrinsic to read the first bytes alone, and may leave the others unwritten.
    __asm__ volatile("" ::"m"(config));
    _tile_loadconfig(&config);
}

static void release(void) { _tile_release(); }

static void bfloat16_store(
    const struct layer *l, int64_t panel, const float *sums, int64_t row, int64_t rows, void *y) {
    const float *bias = l->bias + panel * WIDTH;
    const __m512 bias0 = _mm512_loadu_ps(bias), bias1 = _mm512_loadu_ps(bias + 16);
    const __mmask32 mask = columns(l, panel);
    for (int64_t r = 0; r < rows; r++) {
        __m512 low = _mm512_add_ps(_mm512_load_ps(sums + r * WIDTH), bias0);
        __m512 high = _mm512_add_ps(_mm512_load_ps(sums + r * WIDTH + 16), bias1);
        int64_t at = (row + r) * l->out + panel * WIDTH;
        if (l->round)
            _mm512_mask_storeu_epi16((uint16_t *)y + at, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        else
            store((float *)y + at, mask, low, high);
    }
}

// One tile of rows, or two, times a panel: weights that are in a tile are used for both.
static inline __attribute__((always_inline)) void bfloat16_block(
    const int two, const char *w, const uint16_t *x0, const uint16_t *x1, int64_t in, float *sums,
    struct ahead *ahead) {
    _tile_zero(0);
    _tile_zero(1);
    if (two) _tile_zero(2);
    if (two) _tile_zero(3);
    for (int64_t k = 0; k < in; k += WIDTH, w += 2048) {
        ask(ahead);
        _tile_loadd(4, x0 + k, in * 2);
        // Weights pass through; it is x that should stay in the nearest cache.
        _tile_stream_loadd(6, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stream_loadd(7, w + 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
            _tile_loadd(5, x1 + k, in * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, WIDTH * 4);
    _tile_stored(1, sums + 16, WIDTH * 4);
    if (two) _tile_stored(2, sums + TILE * WIDTH, WIDTH * 4);
    if (two) _tile_stored(3, sums + TILE * WIDTH + 16, WIDTH * 4);
}

static void bfloat16_rows(const struct place *at, const uint16_t *x, int64_t from, int64_t rows) {
    const struct layer *l = at->layer;
    float sums[2 * TILE * WIDTH] __attribute__((aligned(64)));
    const struct blocks b = blocks_of(rows, TILE);
    const int64_t bytes = l->in * WIDTH * 2;
    const char *w = l->panels + at->panel * bytes;
    struct ahead ahead = ahead_of(at->next, bytes, l->in / WIDTH * divide_up(b.count, 2));
    for (int64_t i = 0; i < b.count; i += 2) {
        const int64_t first = from + start(b, i), second = from + start(b, i + 1);
        const uint16_t *x0 = x + first * l->in, *x1 = x + second * l->in;
        if (i + 1 < b.count) {
            bfloat16_block(1, w, x0, x1, l->in, sums, &ahead);
            bfloat16_store(l, at->panel, sums + TILE * WIDTH, second, b.size, at->y);
        } else {
            bfloat16_block(0, w, x0, x0, l->in, sums, &ahead);
        }
        bfloat16_store(l, at->panel, sums, first, b.size, at->y);
    }
}

#else

static int tiles_allowed(void) { return 0; }
static void configure(int64_t rows) { (void)rows; }
static void release(void) {}
static void bfloat16_rows(const struct place *at, const uint16_t *x, int64_t from, int64_t rows) {
    (void)at, (void)x, (void)from, (void)rows;
}

#endif

// Layers that read the same x.
struct group {
    const struct layer *layers;
    int64_t count;
};

static int64_t panels_of(struct group g) {
    int64_t panels = 0;
    for (int64_t i = 0; i < g.count; i++) panels += divide_up(g.layers[i].out, WIDTH);
    return panels;
}

// Where a panel is; of which layer, and which panel of it.
static const char *find(struct group g, int64_t panel, int64_t size, int64_t *layer, int64_t *own) {
    for (*layer = 0; panel >= divide_up(g.layers[*layer].out, WIDTH); ++*layer)
        panel -= divide_up(g.layers[*layer].out, WIDTH);
    *own = panel;
    return g.layers[*layer].panels + panel * g.layers->in * WIDTH * size;
}

// What one of the threads that call this does of some layers, each of which has its own y. The
// panels of all are dealt out in order. Those of `then`, if any, are worked on next.
void linear_share(
    struct group g, int64_t kind, const void *x, void *const *ys, int64_t rows, int64_t me, int64_t threads,
    struct group then) {
    const int64_t size = kind == BFLOAT16 ? 2 : 4, panels = panels_of(g);
    const struct blocks chunks = chunks_of(rows, g.layers->in * size);
    const int64_t begin = panels * me / threads, end = panels * (me + 1) / threads;
    int64_t layer, own;
    const char *last = then.count ? find(then, panels_of(then) * me / threads, size, &layer, &own) : NULL;
    if (kind == BFLOAT16) configure(blocks_of(chunks.size, TILE).size);
    for (int64_t c = 0; c < chunks.count; c++)
        for (int64_t p = begin; p < end; p++) {
            const char *next = p + 1 < end ? find(g, p + 1, size, &layer, &own) : last;
            find(g, p, size, &layer, &own);
            const struct place at = {g.layers + layer, own, ys[layer], next};
            if (kind == BFLOAT16)
                bfloat16_rows(&at, x, start(chunks, c), chunks.size);
            else
                float_rows(&at, x, start(chunks, c), chunks.size);
        }
    if (kind == BFLOAT16) release();
}

// The same with threads of its own, `most` or fewer.
void linear(
    const struct layer *layers, int64_t count, int64_t kind, const void *x, void *const *ys, int64_t rows,
    int64_t most) {
    if (rows == 0) return;
    const struct group all = {layers, count}, none = {NULL, 0};
#pragma omp parallel num_threads(most)
    linear_share(all, kind, x, ys, rows, omp_get_thread_num(), omp_get_num_threads(), none);
}

int linear_supports(void) { return FLOAT | (tiles_allowed() ? BFLOAT16 : 0); }

#else

int linear_supports(void) { return 0; }

#endif
