// Root mean square normalisation in one pass, rounded where transformers' own modules round.

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { SMALL = 1 << 15 };  // numbers for which a second thread does not pay

static inline float wide(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

// To the nearest, ties to even; what is not a number stays none.
static inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded >> 16);
}

static float scale_of(float squares, int64_t n, float eps) {
    return 1 / sqrtf(squares / (float)n + eps);
}

void norm_float(
    const float *x, const float *w, float *y, int64_t rows, int64_t n, float eps, int64_t threads) {
#pragma omp parallel for num_threads(threads) if (rows * n > SMALL)
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * n;
        float *to = y + r * n, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++) squares += from[i] * from[i];
        const float scale = scale_of(squares, n, eps);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] = w[i] * (from[i] * scale);
    }
}

void norm_bfloat16(
    const uint16_t *x, const uint16_t *w, uint16_t *y, int64_t rows, int64_t n, float eps, int64_t threads) {
#pragma omp parallel for num_threads(threads) if (rows * n > SMALL)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *from = x + r * n;
        uint16_t *to = y + r * n;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++) squares += wide(from[i]) * wide(from[i]);
        const float scale = scale_of(squares, n, eps);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float unit = wide(narrow(wide(from[i]) * scale));
            to[i] = narrow(wide(w[i]) * unit);
        }
    }
}
