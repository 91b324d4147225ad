/* A matrix in compressed sparse rows times a block of columns, and its transpose times one. Blocks are row-major. A call
   does some rows of the matrix and one width, fixed when this is compiled, so that a row of the block stays in registers.

   Every product is compiled for three instruction sets; Python asks eckart_csr_level which of them this processor has.
   That needs no ifunc (musl, macOS), and lets a test run all that a machine offers. The vectors are written out, since
   compilers unroll the short loops over a row instead of vectorising them; without that extension (MSVC) level 0 tells
   Python to leave the products to SciPy. */
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Return 0 where rows hold ascending indices from 0 to columns - 1 without duplicates, 1 where they are not ascending,
   2 where an index or a row pointer lies outside, which no product may read. */
#define CHECK(NAME, INDEX)                                                                              \
    EXPORT int32_t NAME(int64_t rows, int64_t columns, int64_t stored, const INDEX *indptr,             \
                        const INDEX *indices) {                                                         \
        int outside = indptr[0] != 0 || indptr[rows] > stored, descent = 0;                             \
        for (int64_t i = 0; i < rows; i++) outside |= indptr[i] > indptr[i + 1];                        \
        if (outside) return 2;                                                                          \
        for (int64_t i = 0; i < rows; i++) {                                                            \
            const int64_t start = indptr[i], stop = indptr[i + 1];                                      \
            for (int64_t p = start; p < stop; p++) outside |= indices[p] < 0 || indices[p] >= columns;  \
            for (int64_t p = start + 1; p < stop; p++) descent |= indices[p] <= indices[p - 1];         \
        }                                                                                               \
        return outside ? 2 : descent;                                                                   \
    }

CHECK(eckart_csr_check_i32, int32_t)
CHECK(eckart_csr_check_i64, int64_t)

#if !defined(__GNUC__)
EXPORT int32_t eckart_csr_level(void) { return 0; }
#else

enum { AHEAD = 32, LINE = 64 }; /* entries between a row's prefetch and its use; bytes of a cache line */

#define PREFETCH(ROW, BYTES, WRITE) \
    for (int64_t byte = 0; byte < (BYTES); byte += LINE) __builtin_prefetch((const char *)(ROW) + byte, WRITE)

/* gather: Y[i] = sum of A[i, j] X[j]. scatter: Z[j] += A[i, j] Y[i]. Both over rows first to last - 1 of A, entry by
   entry in their order: neither the width nor the other calls change the bits of a sum. X and Z, which are reached in no
   order, are packed: their rows have `width` numbers and should not straddle cache lines. Those of Y are ld apart. */
#define PRODUCTS(NAME, WIDTH, TARGET, VECTOR, VALUE, BLOCK, INDEX)                                            \
    TARGET static void gather_##NAME##_##WIDTH(ARGUMENTS(INDEX, VALUE, BLOCK)) {                              \
        enum { BYTES = WIDTH * sizeof(BLOCK), SIZE = VECTOR < BYTES ? VECTOR : BYTES, COUNT = BYTES / SIZE }; \
        typedef BLOCK vector __attribute__((vector_size(SIZE), aligned(sizeof(BLOCK)), may_alias));           \
        for (int64_t i = first; i < last; i++) {                                                              \
            vector sum[COUNT];                                                                                \
            for (int q = 0; q < COUNT; q++) sum[q] = (vector){0};                                             \
            for (int64_t p = indptr[i], stop = indptr[i + 1]; p < stop; p++) {                                \
                const vector *row = (const vector *)(packed + indices[p] * (int64_t)WIDTH);                   \
                const BLOCK value = (BLOCK)values[p];                                                         \
                PREFETCH(packed + indices[p + AHEAD < stored ? p + AHEAD : p] * (int64_t)WIDTH, BYTES, 0);    \
                for (int q = 0; q < COUNT; q++) sum[q] += value * row[q];                                     \
            }                                                                                                 \
            for (int q = 0; q < COUNT; q++) ((vector *)(Y + i * ld))[q] = sum[q];                             \
        }                                                                                                     \
    }                                                                                                         \
    TARGET static void scatter_##NAME##_##WIDTH(ARGUMENTS(INDEX, VALUE, BLOCK)) {                             \
        enum { BYTES = WIDTH * sizeof(BLOCK), SIZE = VECTOR < BYTES ? VECTOR : BYTES, COUNT = BYTES / SIZE }; \
        typedef BLOCK vector __attribute__((vector_size(SIZE), aligned(sizeof(BLOCK)), may_alias));           \
        for (int64_t i = first; i < last; i++) {                                                              \
            vector row[COUNT];                                                                                \
            for (int q = 0; q < COUNT; q++) row[q] = ((const vector *)(Y + i * ld))[q];                       \
            for (int64_t p = indptr[i], stop = indptr[i + 1]; p < stop; p++) {                                \
                vector *sum = (vector *)(packed + indices[p] * (int64_t)WIDTH);                               \
                const BLOCK value = (BLOCK)values[p];                                                         \
                PREFETCH(packed + indices[p + AHEAD < stored ? p + AHEAD : p] * (int64_t)WIDTH, BYTES, 1);    \
                for (int q = 0; q < COUNT; q++) sum[q] += value * row[q];                                     \
            }                                                                                                 \
        }                                                                                                     \
    }

#define ARGUMENTS(INDEX, VALUE, BLOCK)                                                                      \
    int64_t first, int64_t last, int64_t stored, const INDEX *restrict indptr, const INDEX *restrict indices, \
    const VALUE *restrict values, BLOCK *restrict packed, BLOCK *restrict Y, int64_t ld

#define CASE(PRODUCT, NAME, WIDTH) \
    case WIDTH: PRODUCT##_##NAME##_##WIDTH(first, last, stored, indptr, indices, values, packed, Y, ld); break;
#define EXPORTED(PRODUCT, NAME, WIDTHS, VALUE, BLOCK, INDEX)                                              \
    EXPORT void eckart_csr_##PRODUCT##_##NAME(int64_t width, ARGUMENTS(INDEX, VALUE, BLOCK)) {            \
        switch (width) { WIDTHS(PRODUCT, NAME) }                                                          \
    }

/* A row of a block is half a cache line, or one to four. Wider blocks are multiplied in tiles, which is faster than a
   width of eight lines. Python has the same list. */
#define WIDTHS_f32(PRODUCT, NAME) \
    CASE(PRODUCT, NAME, 8) CASE(PRODUCT, NAME, 16) CASE(PRODUCT, NAME, 32) CASE(PRODUCT, NAME, 48) CASE(PRODUCT, NAME, 64)
#define WIDTHS_f64(PRODUCT, NAME) \
    CASE(PRODUCT, NAME, 8) CASE(PRODUCT, NAME, 16) CASE(PRODUCT, NAME, 24) CASE(PRODUCT, NAME, 32)

#define BLOCKS_f32(NAME, TARGET, VECTOR, VALUE, INDEX)          \
    PRODUCTS(NAME, 8, TARGET, VECTOR, VALUE, float, INDEX)      \
    PRODUCTS(NAME, 16, TARGET, VECTOR, VALUE, float, INDEX)     \
    PRODUCTS(NAME, 32, TARGET, VECTOR, VALUE, float, INDEX)     \
    PRODUCTS(NAME, 48, TARGET, VECTOR, VALUE, float, INDEX)     \
    PRODUCTS(NAME, 64, TARGET, VECTOR, VALUE, float, INDEX)     \
    EXPORTED(gather, NAME, WIDTHS_f32, VALUE, float, INDEX)     \
    EXPORTED(scatter, NAME, WIDTHS_f32, VALUE, float, INDEX)
#define BLOCKS_f64(NAME, TARGET, VECTOR, VALUE, INDEX)          \
    PRODUCTS(NAME, 8, TARGET, VECTOR, VALUE, double, INDEX)     \
    PRODUCTS(NAME, 16, TARGET, VECTOR, VALUE, double, INDEX)    \
    PRODUCTS(NAME, 24, TARGET, VECTOR, VALUE, double, INDEX)    \
    PRODUCTS(NAME, 32, TARGET, VECTOR, VALUE, double, INDEX)    \
    EXPORTED(gather, NAME, WIDTHS_f64, VALUE, double, INDEX)    \
    EXPORTED(scatter, NAME, WIDTHS_f64, VALUE, double, INDEX)

/* Names: type of the values, of the block, of the indices, level. */
#define TYPES(LEVEL, TARGET, VECTOR)                                    \
    BLOCKS_f32(f32_f32_i32_##LEVEL, TARGET, VECTOR, float, int32_t)     \
    BLOCKS_f32(f32_f32_i64_##LEVEL, TARGET, VECTOR, float, int64_t)     \
    BLOCKS_f64(f32_f64_i32_##LEVEL, TARGET, VECTOR, float, int32_t)     \
    BLOCKS_f64(f32_f64_i64_##LEVEL, TARGET, VECTOR, float, int64_t)     \
    BLOCKS_f64(f64_f64_i32_##LEVEL, TARGET, VECTOR, double, int32_t)    \
    BLOCKS_f64(f64_f64_i64_##LEVEL, TARGET, VECTOR, double, int64_t)

TYPES(1, , 16)
#if defined(__x86_64__)
TYPES(2, __attribute__((target("avx2,fma"))), 32)
TYPES(3, __attribute__((target("avx512f,avx512vl,fma"))), 64)
#endif

/* Return the highest level of this processor: 1 baseline, 2 AVX2 and FMA, 3 AVX-512; 0 where there are no products. */
EXPORT int32_t eckart_csr_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") ? 3 : 2;
#else
    return 1;
#endif
}
#endif
