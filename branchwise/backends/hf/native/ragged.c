// Attention of queries that each read their own ranges of one pool of keys and values.
//
// Queries side by side that share ranges are worked on together, so that a block of keys serves all
// of them, and all heads that read it, while it is in the cache; the next block is fetched meanwhile.
// A long list of keys is cut into pieces for several threads. Vectors are those of the compiler: it
// knows what the processor has. Where that has tiles, they multiply numbers of 16 bits.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

enum {
    LANES = BYTES / 4,
    PARTS = BYTES / 16, // vectors of a row that are summed up in registers
    BLOCK = 64,     // keys at a time
    TOGETHER = 8,   // queries at a time
    PIECE = 256,    // keys that are worth a thread
    PIECES = 4,     // per thread, so that the last one is not waited for long
    PARALLEL = 512, // keys of all key heads, from which on threads pay
    AT_ONCE = 8,    // items that a thread takes at most, so that it knows what comes next
};

typedef float vec __attribute__((vector_size(BYTES)));
typedef int32_t ivec __attribute__((vector_size(BYTES)));
typedef uint32_t uvec __attribute__((vector_size(BYTES)));
typedef float four __attribute__((vector_size(16), may_alias));
typedef float loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint16_t loose_half __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

// As packed by ragged.py: addresses, sizes and strides in elements.
typedef struct {
    const void *query, *keys, *values;
    const int32_t *pointers, *starts, *lengths;
    float *out, *lse;
    int64_t queries, heads, key_heads, size, bfloat16;
    int64_t query_strides[2], key_strides[2], value_strides[2], out_strides[2], lse_strides[2];
    double scale, softcap;
} Call;

// Queries that are worked on together; `span` counts the keys they read, shared ones once.
typedef struct {
    int64_t first, count, span;
} Group;

// Some keys of a group, for one key head; `slot` is its place among those to be merged, or -1.
typedef struct {
    int64_t group, head, from, to, slot;
} Item;

// Of the rows (query, head of the group) of an item: maximum, sum of exponentials, weighted values.
typedef struct {
    float *max, *sum, *out;
} State;

// What a thread works with. The last ones are for tiles: query and weights of 16 bits (weights in
// two parts, for the precision of both), values of two keys side by side, and results.
typedef struct {
    State state;
    float *query, *scores, *shrinks, *keys, *values;
    uint32_t *pairs;
    uint16_t *high, *low, *sides, *rest;
    float *tiles;
} Scratch;

// What is to be in the cache next: so many slots of keys and of values, strides and width in bytes.
typedef struct {
    const char *keys, *values;
    int64_t key_stride, value_stride, width, slots;
} Ahead;

// A block of keys or values as numbers of 32 bits.
typedef struct {
    const float *rows;
    int64_t stride;
} Block;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

static inline vec fill(float x) { return x - (vec){}; }

static inline vec load(const float *at) { return *(const loose *)at; }

static inline void store(float *at, vec x) { *(loose *)at = x; }

// Of two numbers the second, if one is NaN. The processor's own instructions do just this, but the
// compiler does not find them for vectors.
#ifdef __AVX512F__

static inline vec larger_of(vec x, vec y) { return (vec)_mm512_max_ps((__m512)x, (__m512)y); }

static inline vec smaller_of(vec x, vec y) { return (vec)_mm512_min_ps((__m512)x, (__m512)y); }

static inline float maximum(vec x) { return _mm512_reduce_max_ps((__m512)x); }

// The first lanes of one vector, the rest of another.
static inline vec replace_rest(vec x, int64_t count, vec other) {
    __mmask16 first = count < LANES ? (1u << count) - 1 : 0xFFFF;
    return (vec)_mm512_mask_mov_ps((__m512)other, first, (__m512)x);
}

#else

static inline vec choose(ivec which, vec yes, vec no) {
    return (vec)((which & (ivec)yes) | (~which & (ivec)no));
}

static inline vec larger_of(vec x, vec y) { return choose(x > y, x, y); }

static inline vec smaller_of(vec x, vec y) { return choose(x < y, x, y); }

static inline float maximum(vec x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

static inline vec replace_rest(vec x, int64_t count, vec other) {
    static const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    ivec lane = (ivec)load((const float *)lanes);
    return choose(lane < (int32_t)smaller(count, LANES), x, other);
}

#endif

// Relative error below 2e-7; NaN stays NaN; below -86 it is that of -86, which is as good as none.
static inline vec exponential(vec x) {
    x = smaller_of(fill(88.0f), larger_of(fill(-86.0f), x));
    const vec magic = fill(12582912.0f); // rounds to a whole number, which its low bits then hold
    vec shifted = x * 1.44269504f + magic;
    vec whole = shifted - magic;
    vec rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec sum = fill(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    return sum * (vec)(((uvec)shifted + 127) << 23);
}

static inline vec capped(vec x, float cap) {
    return cap - 2 * cap / (exponential(x * (2 / cap)) + 1);
}

#define MIX(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)

// A vector as one of four, which every processor has, with the same sum.
static inline four folded(vec x) {
    const four *parts = (const four *)&x;
    four sum = parts[0];
    for (int i = 1; i < LANES / 4; i++) sum += parts[i];
    return sum;
}

static inline float total(vec x) {
    four sums = folded(x);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

#ifdef __AVX512F__

// How two vectors exchange halves, quarters, eighths and single numbers.
#define HALF_A 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HALF_B 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define QUARTER_A 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define QUARTER_B 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define EIGHTH_A 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define EIGHTH_B 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define SINGLE_A 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define SINGLE_B 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define ADD_UP(a, i, j, how) (MIX(a[i], a[j], how##_A) + MIX(a[i], a[j], how##_B))

// The sums of as many vectors as there are lanes, one in each.
static inline vec totals(vec a[LANES]) {
    for (int i = 0; i < 8; i++) a[i] = ADD_UP(a, i, i + 8, HALF);
    for (int i = 0; i < 4; i++) a[i] = ADD_UP(a, i, i + 4, QUARTER);
    for (int i = 0; i < 2; i++) a[i] = ADD_UP(a, i, i + 2, EIGHTH);
    return ADD_UP(a, 0, 1, SINGLE);
}

#else

static inline vec totals(const vec a[LANES]) {
    vec sums;
    for (int i = 0; i < LANES; i += 4) {
        four w = folded(a[i]), x = folded(a[i + 1]), y = folded(a[i + 2]), z = folded(a[i + 3]);
        four wx = MIX(w, x, 0, 4, 1, 5) + MIX(w, x, 2, 6, 3, 7);
        four yz = MIX(y, z, 0, 4, 1, 5) + MIX(y, z, 2, 6, 3, 7);
        ((four *)&sums)[i / 4] = MIX(wx, yz, 0, 1, 4, 5) + MIX(wx, yz, 2, 3, 6, 7);
    }
    return sums;
}

#endif

static inline uvec longer(const uint16_t *at) {
#ifdef __AVX512F__
    return (uvec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at)); // gcc takes two halves
#else
    return __builtin_convertvector(*(const loose_half *)at, uvec);
#endif
}

// Copies numbers of either format as numbers of 32 bits, and zeros up to a whole vector.
static inline void widen(float *to, const void *from, int64_t size, int bfloat16) {
    int64_t i = 0;
    if (bfloat16) {
        const uint16_t *source = from;
        for (; i + LANES <= size; i += LANES) {
            store(to + i, (vec)(longer(source + i) << 16));
        }
        for (; i < size; i++) {
            uint32_t bits = (uint32_t)source[i] << 16;
            memcpy(to + i, &bits, sizeof bits);
        }
    } else {
        memcpy(to, from, size * sizeof *to);
        i = size;
    }
    for (; i < padded(size); i++) to[i] = 0;
}

static inline const void *address(const Call *call, const void *pool, const int64_t strides[2],
                                  int64_t head, int64_t slot) {
    return (const char *)pool +
           (head * strides[0] + slot * strides[1]) * (call->bfloat16 ? 2 : 4);
}

// The rows of a block: where they lie if they can be read there, or else a copy.
static inline Block block_of(const Call *call, const void *pool, const int64_t strides[2],
                             int64_t head, int64_t slot, int64_t count, float *copy) {
    if (!call->bfloat16 && call->size % LANES == 0)
        return (Block){address(call, pool, strides, head, slot), strides[1]};
    int64_t stride = padded(call->size);
    for (int64_t i = 0; i < count; i++)
        widen(copy + i * stride, address(call, pool, strides, head, slot + i), call->size,
              call->bfloat16);
    return (Block){copy, stride};
}

// Products of one query row with keys; lanes past the last key repeat it.
static inline void multiply(float *scores, const float *query, Block keys, int64_t count,
                            int64_t stride) {
    for (int64_t first = 0; first < count; first += LANES) {
        const float *rows[LANES];
        for (int i = 0; i < LANES; i++)
            rows[i] = keys.rows + smaller(first + i, count - 1) * keys.stride;
        vec sums[LANES] = {};
        for (int64_t at = 0; at < stride; at += LANES) {
            vec part = load(query + at);
            for (int i = 0; i < LANES; i++) sums[i] += part * load(rows[i] + at);
        }
        store(scores + first, totals(sums));
    }
}

// Turns products into weights; returns by what the earlier sums of the row shrink.
static __attribute__((noinline)) float weigh(float *scores, int64_t count, float cap, float *max,
                                             float *sum) {
    vec most = fill(*max), sums = {};
    for (int64_t i = 0; i < count; i += LANES) {
        vec score = load(scores + i);
        if (cap > 0) score = capped(score, cap);
        score = replace_rest(score, count - i, fill(-INFINITY));
        store(scores + i, score);
        most = larger_of(score, most);
    }
    float top = maximum(most), shrink = top > *max ? expf(*max - top) : 1;
    for (int64_t i = 0; i < count; i += LANES) {
        vec weight = exponential(load(scores + i) - top);
        weight = replace_rest(weight, count - i, (vec){});
        store(scores + i, weight);
        sums += weight;
    }
    *max = top;
    *sum = *sum * shrink + total(sums);
    return shrink;
}

// Adds weighted values to some rows, a few vectors of each; both numbers are known when compiled.
static inline __attribute__((always_inline)) void add_part(int rows, int parts, float *out,
                                                           const float *weights, Block values,
                                                           int64_t count, int64_t stride) {
    vec sums[4][PARTS];
    for (int row = 0; row < rows; row++)
        for (int part = 0; part < parts; part++)
            sums[row][part] = load(out + row * stride + part * LANES);
    for (int64_t key = 0; key < count; key++) {
        const float *value = values.rows + key * values.stride;
        for (int part = 0; part < parts; part++) {
            vec x = load(value + part * LANES);
            for (int row = 0; row < rows; row++) sums[row][part] += weights[row * BLOCK + key] * x;
        }
    }
    for (int row = 0; row < rows; row++)
        for (int part = 0; part < parts; part++)
            store(out + row * stride + part * LANES, sums[row][part]);
}

static inline __attribute__((always_inline)) void add_rows(int rows, float *out,
                                                           const float *weights, Block values,
                                                           int64_t count, int64_t stride) {
    int64_t at = 0;
    for (; at + PARTS * LANES <= stride; at += PARTS * LANES)
        add_part(rows, PARTS, out + at, weights, (Block){values.rows + at, values.stride}, count,
                 stride);
    for (; at < stride; at += LANES)
        add_part(rows, 1, out + at, weights, (Block){values.rows + at, values.stride}, count,
                 stride);
}

static void add(int64_t rows, float *out, const float *weights, Block values, int64_t count,
                int64_t stride) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4)
        add_rows(4, out + row * stride, weights + row * BLOCK, values, count, stride);
    out += row * stride;
    weights += row * BLOCK;
    switch (rows - row) {
    case 3: add_rows(3, out, weights, values, count, stride); break;
    case 2: add_rows(2, out, weights, values, count, stride); break;
    case 1: add_rows(1, out, weights, values, count, stride); break;
    }
}

// Asks for some slots of what comes next, while there is other work.
static inline void fetch(Ahead *ahead, int64_t slots) {
    for (slots = smaller(slots, ahead->slots); slots > 0; slots--, ahead->slots--) {
        for (int64_t at = 0; at < ahead->width; at += 64) {
            __builtin_prefetch(ahead->keys + at, 0, 2);
            __builtin_prefetch(ahead->values + at, 0, 2);
        }
        ahead->keys += ahead->key_stride;
        ahead->values += ahead->value_stride;
    }
}

// All rows that read the same number of keys of a block.
static void attend_block(const Call *call, Scratch *scratch, int64_t first, int64_t rows,
                         Block keys, Block values, int64_t count, Ahead *ahead) {
    int64_t stride = padded(call->size);
    for (int64_t row = first; row < first + rows; row++) {
        float *scores = scratch->scores + row * BLOCK, *out = scratch->state.out + row * stride;
        multiply(scores, scratch->query + row * stride, keys, count, stride);
        fetch(ahead, BLOCK / rows + 1);
        float shrink = weigh(scores, count, (float)call->softcap, scratch->state.max + row,
                             scratch->state.sum + row);
        if (shrink != 1)
            for (int64_t at = 0; at < stride; at += LANES)
                store(out + at, load(out + at) * shrink);
    }
    add(rows, scratch->state.out + first * stride, scratch->scores + first * BLOCK, values, count,
        stride);
}

#ifdef TILES

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t width[16];
    uint8_t rows[16];
} Tiles;

typedef uint16_t wide __attribute__((vector_size(64)));
typedef uint16_t loose_wide __attribute__((vector_size(64), aligned(2), may_alias));

// The compiler is not told that tiles read and write memory; this tells it.
static inline void settle(const void *at) { __asm__ volatile("" : : "r"(at) : "memory"); }

// Sixteen rows of 64 bytes each; what was set before is given back, for it is others'.
static void set_tiles(Tiles *before) {
    static const Tiles tiles = {
        .palette = 1,
        .width = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 16, 16},
    };
    _tile_storeconfig(before);
    settle(before);
    _tile_loadconfig(&tiles);
}

static void reset_tiles(const Tiles *before) {
    settle(before);
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

// Whether tiles can be used: the system is to be asked once, and sizes are to fill them.
static int tiled(const Call *call) {
    static int allowed = -1; // several threads may ask at the same time, and get the same answer
    if (allowed < 0) allowed = syscall(SYS_arch_prctl, 0x1023 /* request permission */, 18) == 0;
    return allowed && call->bfloat16 && call->size % 32 == 0;
}

// Rows become columns.
static inline void turn(vec a[LANES]) {
#define EXCHANGE(distance, how)                                                                    \
    for (int i = 0; i < LANES; i++)                                                                \
        if (!(i & distance)) {                                                                     \
            vec x = a[i], y = a[i + distance];                                                     \
            a[i] = MIX(x, y, how##_A);                                                             \
            a[i + distance] = MIX(x, y, how##_B);                                                  \
        }
    EXCHANGE(8, HALF)
    EXCHANGE(4, QUARTER)
    EXCHANGE(2, EIGHTH)
    EXCHANGE(1, SINGLE)
#undef EXCHANGE
}

// Products of up to sixteen query rows, from the first on, with a block of keys.
static void multiply_tiles(const Call *call, const Scratch *scratch, int64_t first, int64_t rows,
                           int64_t capacity, const uint16_t *keys, int64_t count) {
    int64_t tiles = (count + 15) / 16, stride = call->key_strides[1], last = count % 16;
    const uint16_t *at[4];
    int64_t strides[4];
    for (int64_t i = 0; i < tiles; i++) at[i] = keys + i * 16 * stride, strides[i] = 2 * stride;
    if (last) { // what lies behind the last key is not ours to read
        for (int64_t i = 0; i < last; i++)
            memcpy(scratch->rest + i * call->size, at[tiles - 1] + i * stride, 2 * call->size);
        at[tiles - 1] = scratch->rest;
        strides[tiles - 1] = 2 * call->size;
    }
    settle(scratch);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t part = 0; part < call->size; part += 32) {
        _tile_loadd(7, scratch->pairs + part / 2 * capacity + first, 4 * capacity);
#define MULTIPLY(i, tile)                                                                          \
    if (i < tiles) {                                                                               \
        _tile_loadd(tile, at[i] + part, strides[i]);                                               \
        _tile_dpbf16ps(i, tile, 7);                                                                \
    }
        MULTIPLY(0, 4)
        MULTIPLY(1, 5)
        MULTIPLY(2, 4)
        MULTIPLY(3, 5)
#undef MULTIPLY
    }
    _tile_stored(0, scratch->tiles, 64);
    _tile_stored(1, scratch->tiles + 256, 64);
    _tile_stored(2, scratch->tiles + 512, 64);
    _tile_stored(3, scratch->tiles + 768, 64);
    settle(scratch);
    for (int64_t tile = 0; tile < tiles; tile++) {
        vec scores[LANES];
        for (int i = 0; i < LANES; i++) scores[i] = load(scratch->tiles + tile * 256 + i * LANES);
        turn(scores);
        float *to = scratch->scores + first * BLOCK + tile * LANES;
        for (int row = 0; row < LANES; row++)
            if (row < rows) store(to + row * BLOCK, scores[row] * (float)call->scale);
    }
}

// Values of two keys side by side, as tiles read them; zeros after the last.
static void set_sides(const Call *call, uint16_t *to, const uint16_t *values, int64_t count) {
    int64_t stride = call->value_strides[1], size = call->size;
    for (int64_t key = 0; key < count; key += 2, to += 2 * size) {
        const uint16_t *a = values + key * stride, *b = a + stride;
        for (int64_t at = 0; at < size; at += 32) {
            wide x = *(const loose_wide *)(a + at), y = {};
            if (key + 1 < count) y = *(const loose_wide *)(b + at);
            *(loose_wide *)(to + 2 * at) = __builtin_shufflevector(
                x, y, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42,
                11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
            *(loose_wide *)(to + 2 * at + 32) = __builtin_shufflevector(
                x, y, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25,
                57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
        }
    }
    int64_t left = (32 - count % 32) % 32 / 2;
    memset(to, 0, left * 2 * size * sizeof *to);
}

// Weights as sums of two numbers of 16 bits; zeros after the last.
static inline void split(const float *weights, int64_t count, uint16_t *high, uint16_t *low) {
    for (int64_t i = 0; i < count; i += 32) {
        vec a = load(weights + i), b = i + LANES < count ? load(weights + i + LANES) : (vec){};
        __m512i upper = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
        a -= (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(upper)), 16);
        b -= (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(upper, 1)), 16);
        _mm512_storeu_si512(high + i, upper);
        _mm512_storeu_si512(low + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
    }
}

// Adds weighted values to up to sixteen rows, from the first on.
static void add_tiles(const Call *call, const Scratch *scratch, int64_t first, int64_t rows,
                      int64_t count) {
    int64_t size = call->size;
    settle(scratch);
    for (int64_t part = 0; part < size; part += 64) {
        int full = part + 64 <= size;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t key = 0; key < count; key += 32) {
            const uint16_t *sides = scratch->sides + key * size + 2 * part;
            _tile_loadd(4, scratch->high + first * BLOCK + key, 2 * BLOCK);
            _tile_loadd(5, scratch->low + first * BLOCK + key, 2 * BLOCK);
#define ADD(i, tile)                                                                               \
    _tile_loadd(tile, sides + 32 * i, 4 * size);                                                   \
    _tile_dpbf16ps(i, 4, tile);                                                                    \
    _tile_dpbf16ps(i, 5, tile);
            ADD(0, 6)
            ADD(1, 7)
            if (full) {
                ADD(2, 6)
                ADD(3, 7)
            }
#undef ADD
        }
        _tile_stored(0, scratch->tiles, 256);
        _tile_stored(1, scratch->tiles + 16, 256);
        _tile_stored(2, scratch->tiles + 32, 256);
        _tile_stored(3, scratch->tiles + 48, 256);
        settle(scratch);
        for (int64_t row = 0; row < rows; row++) {
            float *out = scratch->state.out + (first + row) * size + part;
            for (int64_t at = 0; at < (full ? 64 : 32); at += LANES)
                store(out + at, load(out + at) * scratch->shrinks[first + row] +
                                    load(scratch->tiles + row * 64 + at));
        }
    }
}

// As attend_block, with tiles. These wait for what was stored just before, so that each kind of work
// is done for all rows at once.
static void attend_tiles(const Call *call, Scratch *scratch, int64_t first, int64_t rows,
                         int64_t capacity, const uint16_t *keys, const uint16_t *values,
                         int64_t count, Ahead *ahead) {
    int64_t end = first + rows;
    for (int64_t row = first; row < end; row += 16)
        multiply_tiles(call, scratch, row, smaller(16, end - row), capacity, keys, count);
    for (int64_t row = first; row < end; row++) {
        float *scores = scratch->scores + row * BLOCK;
        fetch(ahead, BLOCK / rows + 1);
        scratch->shrinks[row] = weigh(scores, count, (float)call->softcap,
                                      scratch->state.max + row, scratch->state.sum + row);
        split(scores, count, scratch->high + row * BLOCK, scratch->low + row * BLOCK);
    }
    set_sides(call, scratch->sides, values, count);
    for (int64_t row = first; row < end; row += 16)
        add_tiles(call, scratch, row, smaller(16, end - row), count);
}

#else

typedef int Tiles;

static void set_tiles(Tiles *before) { *before = 0; }

static void reset_tiles(const Tiles *before) { (void)before; }

static int tiled(const Call *call) { return (void)call, 0; }

static void attend_tiles(const Call *call, Scratch *scratch, int64_t first, int64_t rows,
                         int64_t capacity, const uint16_t *keys, const uint16_t *values,
                         int64_t count, Ahead *ahead) {
    (void)call, (void)scratch, (void)first, (void)rows, (void)capacity, (void)keys, (void)values;
    (void)count, (void)ahead;
}

#endif

static inline int64_t ranges_of(const Call *call, int64_t query) {
    return call->pointers[query + 1] - call->pointers[query];
}

// The index of a query's range, or -1 if it has not so many.
static inline int64_t range_of(const Call *call, int64_t query, int64_t place) {
    return place < ranges_of(call, query) ? call->pointers[query] + place : -1;
}

// Whether two queries have a range in the same place that starts alike.
static inline int alike(const Call *call, int64_t a, int64_t b, int64_t place) {
    int64_t x = range_of(call, a, place), y = range_of(call, b, place);
    return x >= 0 && y >= 0 && call->starts[x] == call->starts[y];
}

// A run is of queries one after the other whose range in one place starts alike.
typedef struct {
    int64_t place, first, end, slot, length;
} Run;

// The run after this one among the queries [first, end), or 0 if there is none.
static int next_run(const Call *call, int64_t first, int64_t end, Run *run) {
    int64_t query = run->end;
    for (int64_t left = 1; left;) {
        left = 0;
        for (; query < end; query++) {
            int64_t range = range_of(call, query, run->place);
            if (range < 0) continue;
            run->first = query;
            run->slot = call->starts[range];
            run->length = call->lengths[range];
            for (query++; query < end && alike(call, query - 1, query, run->place); query++)
                run->length = larger(run->length, call->lengths[range_of(call, query, run->place)]);
            run->end = query;
            return 1;
        }
        run->place++;
        for (query = first; query < end; query++) left |= ranges_of(call, query) > run->place;
        query = first;
    }
    return 0;
}

// The blocks of an item one by one: the slots [at, at + count) of a run.
typedef struct {
    const Group *group;
    Run run;
    int64_t head, skip, left, at, count;
} Cursor;

static Cursor begin(const Group *group, const Item *item) {
    return (Cursor){
        .group = group,
        .run = {.end = group->first},
        .head = item->head,
        .skip = item->from,
        .left = item->to - item->from,
    };
}

// Goes to the next block; 0 if there is none.
static int step(const Call *call, Cursor *cursor) {
    cursor->at += cursor->count;
    while (cursor->left && cursor->at >= cursor->run.length) {
        next_run(call, cursor->group->first, cursor->group->first + cursor->group->count,
                 &cursor->run);
        cursor->at = smaller(cursor->skip, cursor->run.length);
        cursor->skip -= cursor->at;
    }
    cursor->count = smaller(smaller(BLOCK, cursor->left), cursor->run.length - cursor->at);
    cursor->left -= cursor->count;
    return cursor->count > 0;
}

static Ahead ahead_of(const Call *call, const Cursor *cursor) {
    int64_t slot = cursor->run.slot + cursor->at, width = call->bfloat16 ? 2 : 4;
    return (Ahead){
        .keys = address(call, call->keys, call->key_strides, cursor->head, slot),
        .values = address(call, call->values, call->value_strides, cursor->head, slot),
        .key_stride = call->key_strides[1] * width,
        .value_stride = call->value_strides[1] * width,
        .width = call->size * width,
        .slots = cursor->count,
    };
}

static void attend_here(const Call *call, Scratch *scratch, const Cursor *cursor, int64_t capacity,
                        Ahead *ahead) {
    int64_t heads = call->heads / call->key_heads, head = cursor->head, count = cursor->count;
    int64_t slot = cursor->run.slot + cursor->at, by_tiles = tiled(call);
    Block keys = {}, values = {};
    if (!by_tiles) {
        keys = block_of(call, call->keys, call->key_strides, head, slot, count, scratch->keys);
        values =
            block_of(call, call->values, call->value_strides, head, slot, count, scratch->values);
    }
    for (int64_t query = cursor->run.first; query < cursor->run.end;) {
        int64_t first = query, same = -1;
        for (; query < cursor->run.end; query++) {
            int64_t length = call->lengths[range_of(call, query, cursor->run.place)];
            int64_t mine = smaller(larger(length - cursor->at, 0), count);
            if (same >= 0 && mine != same) break;
            same = mine;
        }
        int64_t row = (first - cursor->group->first) * heads, rows = (query - first) * heads;
        if (same > 0 && by_tiles)
            attend_tiles(call, scratch, row, rows, capacity,
                         address(call, call->keys, call->key_strides, head, slot),
                         address(call, call->values, call->value_strides, head, slot), same, ahead);
        else if (same > 0)
            attend_block(call, scratch, row, rows, keys, values, same, ahead);
    }
    fetch(ahead, BLOCK);
}

// The query rows of an item: numbers of 32 bits, scaled, or pairs of 16 bits in columns for tiles.
static void set_query(const Call *call, const Scratch *scratch, const Group *group, int64_t head,
                      int64_t capacity) {
    int64_t heads = call->heads / call->key_heads, stride = padded(call->size);
    int by_tiles = tiled(call);
    for (int64_t row = 0; row < group->count * heads; row++) {
        const void *from = address(call, call->query, call->query_strides,
                                   group->first + row / heads, head * heads + row % heads);
        if (by_tiles) {
            for (int64_t i = 0; i < call->size / 2; i++)
                memcpy(scratch->pairs + i * capacity + row, (const uint32_t *)from + i, 4);
            continue;
        }
        float *query = scratch->query + row * stride;
        widen(query, from, call->size, call->bfloat16);
        for (int64_t i = 0; i < stride; i++) query[i] *= (float)call->scale;
    }
}

static void attend_item(const Call *call, Scratch *scratch, const Group *groups, const Item *item,
                        const Item *next, int64_t capacity) {
    const Group *group = groups + item->group;
    int64_t rows = group->count * (call->heads / call->key_heads);
    for (int64_t row = 0; row < rows; row++) {
        scratch->state.max[row] = -INFINITY;
        scratch->state.sum[row] = 0;
    }
    memset(scratch->state.out, 0, rows * padded(call->size) * sizeof(float));
    set_query(call, scratch, group, item->head, capacity);
    Cursor now = begin(group, item), then;
    for (int more = step(call, &now); more; now = then) {
        then = now;
        more = step(call, &then);
        Ahead ahead = {};
        if (more) {
            ahead = ahead_of(call, &then);
        } else if (next) {
            Cursor first = begin(groups + next->group, next);
            if (step(call, &first)) ahead = ahead_of(call, &first);
        }
        attend_here(call, scratch, &now, capacity, &ahead);
    }
}

// Merges the rows of an item into the caller's results.
static void merge(const Call *call, const State *state, const Group *group, int64_t head) {
    int64_t heads = call->heads / call->key_heads, stride = padded(call->size);
    for (int64_t row = 0; row < group->count * heads; row++) {
        int64_t query = group->first + row / heads, at = head * heads + row % heads;
        float *out = call->out + query * call->out_strides[0] + at * call->out_strides[1];
        float *lse = call->lse + query * call->lse_strides[0] + at * call->lse_strides[1];
        const float *mine = state->out + row * stride;
        float max = state->max[row], sum = state->sum[row];
        int none = *lse == -INFINITY;
        if (sum == 0) {
            if (none) memset(out, 0, call->size * sizeof *out);
            continue;
        }
        float top = *lse > max ? *lse : max;
        float before = none ? 0 : expf(*lse - top), shrink = none ? 1 : expf(max - top);
        float all = before + sum * shrink;
        for (int64_t i = 0; i < call->size; i++)
            out[i] = ((none ? 0 : before * out[i]) + shrink * mine[i]) / all;
        *lse = top + logf(all);
    }
}

// Memory that a thread keeps: fresh memory would cost page faults in each call.
typedef struct {
    void *memory;
    size_t size;
} Kept;

static void *keep(Kept *kept, size_t size) {
    if (size > kept->size) {
        free(kept->memory);
        kept->memory = aligned_alloc(64, (size + 63) / 64 * 64);
        kept->size = kept->memory ? size : 0;
    }
    return kept->memory;
}

// Rows of scratch memory: tiles read sixteen from any of them on.
static int64_t capacity_of(const Call *call) {
    return padded(TOGETHER * (call->heads / call->key_heads)) + LANES;
}

static size_t state_size(int64_t rows, int64_t stride) { return rows * (stride + 2); }

static State state_at(float *memory, int64_t rows, int64_t stride) {
    return (State){memory + rows * stride, memory + rows * (stride + 1), memory};
}

static float *take(float **memory, size_t size) {
    float *taken = *memory;
    *memory += (size + 15) / 16 * 16; // whole cache lines
    return taken;
}

// Lays out a thread's memory; returns its end.
static float *lay_out(Scratch *scratch, float *memory, int64_t rows, int64_t stride) {
    scratch->state = state_at(take(&memory, state_size(rows, stride)), rows, stride);
    scratch->query = take(&memory, rows * stride);
    scratch->scores = take(&memory, rows * BLOCK);
    scratch->shrinks = take(&memory, rows);
    scratch->keys = take(&memory, BLOCK * stride);
    scratch->values = take(&memory, BLOCK * stride);
    scratch->pairs = (uint32_t *)take(&memory, rows * stride / 2);
    scratch->high = (uint16_t *)take(&memory, rows * BLOCK / 2);
    scratch->low = (uint16_t *)take(&memory, rows * BLOCK / 2);
    scratch->sides = (uint16_t *)take(&memory, BLOCK * stride / 2);
    scratch->rest = (uint16_t *)take(&memory, LANES * stride / 2);
    scratch->tiles = take(&memory, 4 * LANES * LANES);
    return memory;
}

// Finds queries to work on together; returns how many groups, and the keys of all.
static int64_t gather(const Call *call, Group *groups, int64_t *span) {
    int64_t count = 0;
    *span = 0;
    for (int64_t query = 0; query < call->queries; count++) {
        Group group = {.first = query};
        for (query++; query < call->queries && query - group.first < TOGETHER; query++) {
            int shares = 0;
            for (int64_t i = 0; i < ranges_of(call, query) && !shares; i++)
                shares = alike(call, query - 1, query, i);
            if (!shares) break;
        }
        group.count = query - group.first;
        Run run = {.end = group.first};
        while (next_run(call, group.first, query, &run)) group.span += run.length;
        *span += group.span;
        groups[count] = group;
    }
    return count;
}

// Divides the groups into items of at most so many keys; returns how many are to be merged later.
static int64_t divide(const Group *groups, int64_t count, int64_t key_heads, int64_t most,
                      Item *items, int64_t *number) {
    int64_t slots = 0;
    *number = 0;
    for (int64_t group = 0; group < count; group++) {
        int64_t pieces = larger(1, (groups[group].span + most - 1) / most);
        for (int64_t head = 0; head < key_heads; head++)
            for (int64_t i = 0; i < pieces; i++)
                items[(*number)++] = (Item){
                    .group = group,
                    .head = head,
                    .from = i * most,
                    .to = smaller((i + 1) * most, groups[group].span),
                    .slot = pieces > 1 ? slots++ : -1,
                };
    }
    return slots;
}

static void attend_items(const Call *call, const Group *groups, const Item *items, int64_t number,
                         float *scratches, size_t scratch_size, float *states, int threads) {
    int64_t rows = capacity_of(call), stride = padded(call->size);
    int64_t chunk = larger(1, smaller(AT_ONCE, number / (threads * PIECES)));
    size_t size = state_size(rows, stride);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch;
        Tiles before;
        lay_out(&scratch, scratches + omp_get_thread_num() * scratch_size, rows, stride);
        State own = scratch.state;
        int by_tiles = tiled(call);
        if (by_tiles) set_tiles(&before);
#pragma omp for schedule(dynamic, chunk)
        for (int64_t i = 0; i < number; i++) {
            const Item *item = items + i;
            int alone = item->slot < 0, last = i + 1 == number || (i + 1) % chunk == 0;
            scratch.state = alone ? own : state_at(states + item->slot * size, rows, stride);
            attend_item(call, &scratch, groups, item, last ? NULL : item + 1, rows);
            if (alone) merge(call, &own, groups + item->group, item->head);
        }
        if (by_tiles) reset_tiles(&before);
    }
    // In the order of the pieces: results do not depend on which thread was first.
    for (const Item *item = items; item < items + number; item++) {
        if (item->slot < 0) continue;
        State state = state_at(states + item->slot * size, rows, stride);
        merge(call, &state, groups + item->group, item->head);
    }
}

// Returns 0 where memory is short; the results are then as they were.
int attend(const void *packed) {
    static _Thread_local Kept kept_groups, kept_items, kept_scratches, kept_states;
    Call copy;
    memcpy(&copy, packed, sizeof copy);
    const Call *call = &copy;
    Group *groups = keep(&kept_groups, larger(call->queries, 1) * sizeof *groups);
    if (!groups) return 0;
    int64_t span, count = gather(call, groups, &span);
    int threads = span * call->key_heads < PARALLEL ? 1 : omp_get_max_threads();
    int64_t most = span + 1;
    if (threads > 1) most = larger(PIECE, span * call->key_heads / (threads * PIECES));
    most = (most + BLOCK - 1) / BLOCK * BLOCK;
    size_t pieces = (count + span / most + 1) * call->key_heads;
    Item *items = keep(&kept_items, pieces * sizeof *items);
    if (!items) return 0;
    int64_t number, slots = divide(groups, count, call->key_heads, most, items, &number);
    int64_t rows = capacity_of(call), stride = padded(call->size);
    Scratch measured;
    size_t scratch_size = lay_out(&measured, NULL, rows, stride) - (float *)NULL;
    float *scratches = keep(&kept_scratches, threads * scratch_size * sizeof *scratches);
    float *states = keep(&kept_states, larger(slots, 1) * state_size(rows, stride) * sizeof *states);
    if (!scratches || !states) return 0;
    attend_items(call, groups, items, number, scratches, scratch_size, states, threads);
    return 1;
}
