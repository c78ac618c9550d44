/* One step of a lowered model: a flat list of operators over M tokens, run by a few threads.

   Every thread walks all operators. Work is cut into items, of output rows, heads or tokens, which
   the threads take from a counter, and a barrier stands where one operator reads what another
   wrote. Vectors of sixteen numbers are the compiler's own vector types, so the same lines run on
   any processor; only the four-byte dot product and half precision name instructions.

   Weights lie in tiles of 16 output rows, and of each tile the codes of 32 inputs lie together:
   byte b of lane r of vector j is input 4j + b of row r. A code is unsigned, a weight is
   scale * (code - zero) or scale * code + minimum. Activations become 15-bit codes, 32 to a scale.

   A token's numbers do not depend on which tokens share its step, nor on how many threads there
   are: every sum has one order. */

#include <fcntl.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(MIRADA_PORTABLE)
#undef __AVX512VNNI__
#undef __AVX512F__
#undef __AVX2__
#undef __F16C__
#endif
#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef f32x16 any_f32x16 __attribute__((aligned(4), may_alias)); /* as they lie in memory */
typedef u16x16 any_u16x16 __attribute__((aligned(2), may_alias));
typedef u8x64 any_u8x64 __attribute__((aligned(1), may_alias));
typedef u8x16 any_u8x16 __attribute__((aligned(1), may_alias));
typedef i8x16 any_i8x16 __attribute__((aligned(1), may_alias));

#if defined(__AVX512F__)
enum { WIDE = 16 }; /* tokens that a tile meets at once: their sums must fit the registers */
#else
enum { WIDE = 4 };
#endif
#ifndef DEEP
#define DEEP 1 /* activations are 15-bit codes, in two bytes; 0: 8-bit codes */
#endif
#ifndef AHEAD
#define AHEAD 8192 /* bytes: far enough for memory, near enough for the first cache */
#endif
enum { LANES = 16, GROUP = 32, PAGE = 32, SPAN = 256, BUFFERS = 16, THREADS = 256 };
enum { F32, F16, BF16, NF4, FP4, Q8, Q8M, Q4, Q4M, Q4K, Q8KM, Q6K, Q8R }; /* a packed matrix */
enum { EMBED, NORM, LINEAR, TURN, ATTEND, GATHER, SCALE, CAP,      /* operators */
       ROUTE, EXPERTS, WEIGH, TAKE };
enum { REUSE = 1, OPEN = 2, ADD = 4, INTERLEAVED = 8 };            /* flags of an operator */
enum { BOTH = 16, MEMORY = 32 }; /* of ATTEND: keys behind the query too; keys of another text */
enum { NO_NORM, RMS, LAYER };
enum { NO_ACT, SILU, GELU, GELU_TANH, RELU, RELU2 };
enum { FLOATS, HALVES, BYTES }; /* what keys and values are kept as */

typedef struct {
    int32_t kind, rows, cols, unused;
    const uint8_t *data; /* NULL: no matrix */
    const float *bias;
} matrix;

typedef struct {
    int32_t op, flags, src, dst, width, kind, act, norm;
    int32_t heads, kv_heads, head, value, turning, window, extra, unused;
    float eps, scale, cap, eps_k;
    int32_t experts, top; /* how many there are, and how many a token takes */
    int64_t at_k, at_v; /* bytes from the start of a page */
    const void *p[4];
    matrix a, gate; /* of EXPERTS: the first one's, the others behind it */
} operator;

typedef struct {
    const operator *ops;
    int32_t count, buffers, cache, group, vocab, positions, out, types;
    int32_t width[BUFFERS];
    int64_t page_bytes;
} program;

typedef struct {
    int32_t tokens, sequences, pages, scored, pool_pages, unused;
    const int32_t *ids, *positions, *rows, *tables, *score;
    uint8_t *pool;
    float *out;          /* (scored, program.out) */
    const int32_t *types, *memory; /* of each token its segment; of each sequence its other text's
                                      tokens. NULL: none */
    const float *given;  /* (tokens, width): what TAKE takes */
} batch;

/* ---- numbers ------------------------------------------------------------------------------- */

#define SPLAT(type, x) ((type){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x})
INLINE f32x16 splat(float x) { return SPLAT(f32x16, x); }
INLINE f32x16 load(const float *p) { return *(const any_f32x16 *)p; }
INLINE void store(float *p, f32x16 x) { *(any_f32x16 *)p = x; }
INLINE f32x16 real(i32x16 x) { return __builtin_convertvector(x, f32x16); }
INLINE f32x16 pick(i32x16 yes, f32x16 a, f32x16 b) {
    return (f32x16)(((i32x16)a & yes) | ((i32x16)b & ~yes));
}
#if defined(__AVX512F__) /* gcc makes four instructions of a choice */
INLINE f32x16 larger(f32x16 a, f32x16 b) { return (f32x16)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE f32x16 smaller(f32x16 a, f32x16 b) { return (f32x16)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE f32x16 larger(f32x16 a, f32x16 b) { return pick(a > b, a, b); }
INLINE f32x16 smaller(f32x16 a, f32x16 b) { return pick(a < b, a, b); }
#endif
INLINE f32x16 size(f32x16 x) { return (f32x16)((i32x16)x & 0x7fffffff); }

INLINE float sum(f32x16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#endif
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

INLINE int32_t whole_sum(i32x16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)x);
#endif
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

INLINE float largest(f32x16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#endif
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = MAX(most, x[i]);
    return most;
}

static float from_half(uint16_t h) {
#ifdef __F16C__
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, bits = h & 0x7fff;
    union { uint32_t u; float f; } x = {bits << 13}, scale = {0x77800000}; /* 2 ^ 112 */
    x.f *= scale.f; /* moves the exponent; smaller numbers come out right by themselves */
    if (bits >= 0x7c00) x.u |= 0x7f800000;
    x.u |= sign;
    return x.f;
#endif
}

static uint16_t to_half(float f) {
#ifdef __F16C__
    return _cvtss_sh(f, 0);
#else
    union { float f; uint32_t u; } x = {f};
    uint32_t sign = x.u >> 16 & 0x8000;
    x.u &= 0x7fffffff;
    if (x.u >= 0x7f800000) return sign | (x.u > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (x.u < 0x38800000) { /* below the smallest normal: let the adder round at 2 ^ -24 */
        union { float f; uint32_t u; } magic = {.u = 0x3f000000};
        x.f += magic.f;
        return sign | (x.u - magic.u);
    }
    uint32_t odd = x.u >> 13 & 1;
    x.u += 0xc8000fff + odd; /* exponent less 112, half of what is cut, ties to even */
    return sign | MIN(x.u >> 13, 0x7c00);
#endif
}

INLINE f32x16 load_half(const uint16_t *p) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    f32x16 x;
    for (int i = 0; i < LANES; i++) x[i] = from_half(p[i]);
    return x;
#endif
}

INLINE f32x16 load_brain(const uint16_t *p) {
    return (f32x16)(__builtin_convertvector(*(const any_u16x16 *)p, u32x16) << 16);
}

/* gcc makes one number after another of a conversion from bytes */
INLINE f32x16 load_bytes(const uint8_t *p) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    return __builtin_convertvector(*(const any_u8x16 *)p, f32x16);
#endif
}

INLINE f32x16 load_signed(const int8_t *p) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    return __builtin_convertvector(*(const any_i8x16 *)p, f32x16);
#endif
}

/* acc[r] += dot of the four codes of lane r with the four signed bytes in x */
INLINE i32x16 dot(i32x16 acc, u8x64 codes, int32_t x) {
#if defined(__AVX512VNNI__)
    return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    /* even and odd bytes apart: no pair of products can overflow as in vpmaddubsw */
    __m256i both = _mm256_set1_epi32(x), *half = (__m256i *)&codes, *sums = (__m256i *)&acc;
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8);
    __m256i odd = _mm256_srai_epi16(both, 8);
    for (int i = 0; i < 2; i++) {
        __m256i low = _mm256_and_si256(half[i], _mm256_set1_epi16(255));
        __m256i high = _mm256_srli_epi16(half[i], 8);
        sums[i] = _mm256_add_epi32(sums[i], _mm256_add_epi32(_mm256_madd_epi16(low, even),
                                                             _mm256_madd_epi16(high, odd)));
    }
    return acc;
#else
    for (int r = 0; r < LANES; r++)
        for (int b = 0; b < 4; b++) acc[r] += codes[4 * r + b] * (int8_t)(x >> 8 * b);
    return acc;
#endif
}

INLINE f32x16 vexp(f32x16 x) { /* within 2e-7 of the true value; 0 below -87 */
    f32x16 magic = splat(12582912.0f), kept = smaller(larger(x, splat(-87.0f)), splat(88.0f));
    f32x16 shifted = kept * 1.44269504f + magic, n = shifted - magic;
    f32x16 r = kept - n * 0.693359375f + n * 2.12194440e-4f;
    f32x16 y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    f32x16 power = (f32x16)(((i32x16)shifted << 23) + 0x3f800000);
    return pick(x < -87.0f, splat(0), y * power);
}

INLINE f32x16 vtanh(f32x16 x) { return 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f); }

INLINE f32x16 verf(f32x16 x) { /* Abramowitz & Stegun 7.1.26: within 1.5e-7 */
    f32x16 far = size(x), t = 1.0f / (1.0f + 0.3275911f * far);
    f32x16 y = t * 1.061405429f - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = (y * t + 0.254829592f) * t;
    y = 1.0f - y * vexp(-far * far);
    return (f32x16)((i32x16)y | ((i32x16)x & (int32_t)0x80000000));
}

INLINE f32x16 activate(int act, f32x16 x) {
    if (act == SILU) return x / (1.0f + vexp(-x));
    if (act == GELU) return 0.5f * x * (1.0f + verf(x * 0.70710678f));
    if (act == GELU_TANH)
        return 0.5f * x * (1.0f + vtanh(0.79788456f * (x + 0.044715f * x * x * x)));
    if (act == RELU) return larger(x, splat(0));
    if (act == RELU2) return larger(x, splat(0)) * larger(x, splat(0));
    return x;
}

/* ---- blocks of ggml -> codes; their types by ggml's numbers --------------------------------- */

enum { T_F32 = 0, T_F16 = 1, T_Q4_0 = 2, T_Q4_1 = 3, T_Q5_0 = 6, T_Q5_1 = 7, T_Q8_0 = 8,
       T_Q4_K = 12, T_Q5_K = 13, T_Q6_K = 14, T_BF16 = 30,
       T_NF4 = 257, T_FP4 = 258, /* our own: float32 and 64 codes into a book */
       T_I8 = 256 }; /* our own: a row's largest number, as float32, and 8-bit codes */

typedef struct { uint8_t code[GROUP], scale[2], least; uint16_t d, m; } group;

static int is_wide(int type) { return type == T_F32 || type == T_F16 || type == T_BF16; }

static int kind_of(int type) {
    switch (type) {
        case T_F32: return F32;
        case T_F16: return F16;
        case T_BF16: return BF16;
        case T_Q8_0: case T_Q5_0: return Q8;
        case T_Q5_1: return Q8M;
        case T_Q4_0: return Q4;
        case T_Q4_1: return Q4M;
        case T_Q4_K: return Q4K;
        case T_Q5_K: return Q8KM;
        case T_Q6_K: return Q6K;
        case T_I8: return Q8R;
        case T_NF4: return NF4;
        case T_FP4: return FP4;
        default: return -1;
    }
}

static int64_t row_bytes(int type, int cols) {
    switch (type) {
        case T_F32: return 4L * cols;
        case T_F16: case T_BF16: return 2L * cols;
        case T_Q8_0: return cols / 32 * 34L;
        case T_Q5_0: return cols / 32 * 22L;
        case T_Q5_1: return cols / 32 * 24L;
        case T_Q4_0: return cols / 32 * 18L;
        case T_Q4_1: return cols / 32 * 20L;
        case T_Q4_K: return cols / 256 * 144L;
        case T_Q5_K: return cols / 256 * 176L;
        case T_I8: return 4L + cols;
        case T_NF4: case T_FP4: return cols / 64 * 36L;
        default: return cols / 256 * 210L;
    }
}

static uint16_t two(const uint8_t *p) { return p[0] | p[1] << 8; }

/* quantiles of N(0, 1), and the twelfths of FP4 (2305.14314), as kernels.blocks has them */
static const float BOOKS[2][16] = {
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
     -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
     0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
     0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0.0f, 0.0625f / 12, 8.0f / 12, 12.0f / 12, 4.0f / 12, 6.0f / 12, 2.0f / 12, 3.0f / 12, -0.0f,
     -0.0625f / 12, -8.0f / 12, -12.0f / 12, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12}};

static int book_code(const uint8_t *row, int i) { /* the first of a pair is in the high half */
    return row[i / 64 * 36 + 4 + i % 64 / 2] >> (i & 1 ? 0 : 4) & 15;
}

static float book_scale(const uint8_t *row, int i) {
    float most;
    memcpy(&most, row + i / 64 * 36, 4);
    return most;
}

static float row_scale(const uint8_t *row) {
    float most;
    memcpy(&most, row, 4);
    return most * (1.0f / 127);
}

static void nibbles(const uint8_t *p, uint8_t *code) {
    for (int i = 0; i < 16; i++) code[i] = p[i] & 15, code[16 + i] = p[i] >> 4;
}

static void fifths(const uint8_t *p, uint8_t *code, int more) {
    uint32_t bits = two(p) | (uint32_t)two(p + 2) << 16;
    for (int i = 0; i < GROUP; i++) code[i] = (code[i] | (bits >> i & 1) << 4) + more;
}

static void k_scales(const uint8_t *p, int g, group *o) {
    if (g < 4) o->scale[0] = p[g] & 63, o->least = p[g + 4] & 63;
    else o->scale[0] = (p[g + 4] & 15) | (p[g - 4] >> 2 & 48),
         o->least = p[g + 4] >> 4 | (p[g] >> 2 & 48);
}

/* codes and scales of inputs 32g .. 32g + 31; symmetric 8-bit codes all have their zero at 128 */
static void decode(int type, const uint8_t *row, int g, group *o) {
    const uint8_t *b = row, *q;
    int in = g & 7;
    switch (type) {
        case T_Q8_0:
            b += g * 34, o->d = two(b);
            for (int i = 0; i < GROUP; i++) o->code[i] = b[2 + i] ^ 128;
            return;
        case T_I8: for (int i = 0; i < GROUP; i++) o->code[i] = b[4 + g * GROUP + i] ^ 128; return;
        case T_Q4_0: b += g * 18, o->d = two(b), nibbles(b + 2, o->code); return;
        case T_Q4_1: b += g * 20, o->d = two(b), o->m = two(b + 2), nibbles(b + 4, o->code); return;
        case T_Q5_0:
            b += g * 22, o->d = two(b), nibbles(b + 6, o->code), fifths(b + 2, o->code, 112);
            return;
        case T_Q5_1:
            b += g * 24, o->d = two(b), o->m = two(b + 2);
            nibbles(b + 8, o->code), fifths(b + 4, o->code, 0);
            return;
        case T_Q4_K: case T_Q5_K:
            b += g / 8 * (type == T_Q4_K ? 144 : 176), o->d = two(b), o->m = two(b + 2);
            k_scales(b + 4, in, o), q = b + (type == T_Q4_K ? 16 : 48) + in / 2 * 32;
            for (int i = 0; i < GROUP; i++) {
                o->code[i] = in & 1 ? q[i] >> 4 : q[i] & 15;
                if (type == T_Q5_K) o->code[i] |= (b[16 + i] >> in & 1) << 4;
            }
            return;
        default: /* Q6_K */
            b += g / 8 * 210, o->d = two(b + 208), q = b + in / 4 * 64 + (in & 1) * 32;
            o->scale[0] = b[192 + 2 * in], o->scale[1] = b[193 + 2 * in];
            for (int i = 0; i < GROUP; i++) {
                int low = in & 2 ? q[i] >> 4 : q[i] & 15;
                o->code[i] = (low | (b[128 + in / 4 * 32 + i] >> 2 * (in & 3) & 3) << 4) + 96;
            }
    }
}

static void expand(int type, const uint8_t *row, int cols, float *out) {
    group o;
    if (type == T_F32) memcpy(out, row, 4L * cols);
    else if (type == T_NF4 || type == T_FP4)
        for (int i = 0; i < cols; i++)
            out[i] = BOOKS[type == T_FP4][book_code(row, i)] * book_scale(row, i);
    else if (type == T_F16) for (int i = 0; i < cols; i++) out[i] = from_half(two(row + 2 * i));
    else if (type == T_BF16) {
        for (int i = 0; i < cols; i++) {
            union { uint32_t u; float f; } x = {(uint32_t)two(row + 2 * i) << 16};
            out[i] = x.f;
        }
    } else {
        int kind = kind_of(type), symmetric = kind == Q8 || kind == Q6K || kind == Q8R;
        int zero = kind == Q4 ? 8 : symmetric ? 128 : 0;
        for (int g = 0; g < cols / GROUP; g++) {
            decode(type, row, g, &o);
            float d = from_half(o.d), m = from_half(o.m);
            for (int i = 0; i < GROUP; i++) {
                float scale = d, least = kind == Q8M || kind == Q4M ? m : 0;
                if (kind == Q8R) scale = row_scale(row);
                if (kind == Q6K) scale = d * (int8_t)o.scale[i / 16];
                if (kind == Q4K || kind == Q8KM) scale = d * o.scale[0], least = -(m * o.least);
                out[g * GROUP + i] = scale * (o.code[i] - zero) + least;
            }
        }
    }
}

/* ---- packing: rows of blocks -> tiles of 16 rows -------------------------------------------- */

/* where a tile's parts lie, in bytes: codes, scales, minimums, then 8-bit scales and minimums */
typedef struct { int64_t scale, least, scale8, least8, size; } layout;

INLINE layout layout_of(int kind, int cols) {
    int64_t groups = cols / GROUP, supers = (groups + 7) / 8;
    int64_t codes = groups * (kind == Q4 || kind == Q4M || kind == Q4K ? 256 : 512);
    int super = kind == Q4K || kind == Q8KM || kind == Q6K;
    int64_t scales = kind == Q8R ? 64 : (super ? supers : groups) * 32;
    int64_t leasts = kind == Q8M || kind == Q4M || kind == Q4K || kind == Q8KM ? scales : 0;
    layout l = {.scale = codes, .least = codes + scales, .scale8 = codes + scales + leasts};
    l.least8 = l.scale8 + (super ? groups * 16 * (kind == Q6K ? 2 : 1) : 0);
    l.size = l.least8 + (super && leasts ? groups * 16 : 0);
    if (kind == F32) l.size = 64L * cols;
    if (kind == F16 || kind == BF16) l.size = 32L * cols;
    if (kind == NF4 || kind == FP4) l.scale = 8L * cols, l.size = 9L * cols;
    l.size = (l.size + 63) / 64 * 64;
    return l;
}

int64_t mirada_packed_bytes(int type, int rows, int cols) {
    if (kind_of(type) < 0) return -1;
    return (rows + LANES - 1) / LANES * layout_of(kind_of(type), cols).size;
}

int mirada_kind(int type) { return kind_of(type); }

static void pack_group(int kind, const group *o, int g, int r, layout l, uint8_t *tile) {
    if (kind == Q4 || kind == Q4M || kind == Q4K)
        for (int i = 0; i < 16; i++)
            tile[g * 256 + i / 4 * 64 + r * 4 + i % 4] = o->code[i] | o->code[16 + i] << 4;
    else
        for (int j = 0; j < 8; j++) memcpy(tile + g * 512 + j * 64 + r * 4, o->code + 4 * j, 4);
    int super = kind == Q4K || kind == Q8KM || kind == Q6K, at = (super ? g / 8 : g) * 16 + r;
    if (kind != Q8R) ((uint16_t *)(tile + l.scale))[at] = o->d;
    if (l.scale8 > l.least) ((uint16_t *)(tile + l.least))[at] = o->m;
    if (kind == Q6K) tile[l.scale8 + g * 32 + r] = o->scale[0],
                     tile[l.scale8 + g * 32 + 16 + r] = o->scale[1];
    else if (super) tile[l.scale8 + g * 16 + r] = o->scale[0],
                    tile[l.least8 + g * 16 + r] = o->least;
}

static void pack_tile(int type, const uint8_t *rows, int count, int cols, uint8_t *tile) {
    int kind = kind_of(type);
    layout l = layout_of(kind, cols);
    int64_t stride = row_bytes(type, cols);
    memset(tile, 0, l.size);
    for (int r = 0; r < count; r++) {
        const uint8_t *row = rows + r * stride;
        group o = {0};
        int size = kind == F32 ? 4 : 2;
        if (kind == NF4 || kind == FP4) {
            for (int64_t i = 0; i < cols; i++) {
                tile[i / 2 * LANES + r] |= book_code(row, i) << (i & 1 ? 4 : 0);
                ((float *)(tile + l.scale))[i / 64 * LANES + r] = book_scale(row, i);
            }
            continue;
        }
        if (type == T_Q4_0 || type == T_Q4_1) { /* their bytes pair the same inputs as a tile's */
            int head = type == T_Q4_1 ? 4 : 2;
            const uint8_t *b = row;
            for (int g = 0; g < cols / GROUP; g++, b += head + 16) {
                uint8_t *to = tile + g * 256 + r * 4;
                for (int j = 0; j < 4; j++) memcpy(to + 64 * j, b + head + 4 * j, 4);
                ((uint16_t *)(tile + l.scale))[g * LANES + r] = two(b);
                if (head == 4) ((uint16_t *)(tile + l.least))[g * LANES + r] = two(b + 2);
            }
        } else if (is_wide(type))
            for (int64_t i = 0; i < cols; i++)
                memcpy(tile + (LANES * i + r) * size, row + i * size, size);
        else
            for (int g = 0; g < cols / GROUP; g++) {
                decode(type, row, g, &o);
                pack_group(kind, &o, g, r, l, tile);
            }
        if (kind == Q8R) ((float *)(tile + l.scale))[r] = row_scale(row);
    }
}

/* ---- threads -------------------------------------------------------------------------------- */

typedef void (*work)(void *job, int thread, int threads);

static struct {
    pthread_mutex_t one, asleep;
    pthread_cond_t wake, passed;
    pthread_t thread[THREADS];
    int threads, active, pid; /* active: those that the job under way is for */
    work work;
    void *job;
    atomic_int epoch, stop, arrived, sense, dozing;
    atomic_llong lost; /* nanoseconds of this job in which a thread waited for one without a core */
} crew = {.one = PTHREAD_MUTEX_INITIALIZER, .asleep = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER, .passed = PTHREAD_COND_INITIALIZER, .threads = 1};

enum { PATIENCE = 2000 }; /* pauses, some 30 us: longer than any thread waits for one that runs */
enum { DOZE = 300000 }; /* ns, then it is for one without a core: leave it that */

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void rest(int spins) { /* another process may own the core that we wait for */
    if (spins > PATIENCE) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
}

static void doze(int sense) {
    pthread_mutex_lock(&crew.asleep);
    atomic_fetch_add(&crew.dozing, 1);
    while (atomic_load(&crew.sense) == sense) pthread_cond_wait(&crew.passed, &crew.asleep);
    atomic_fetch_sub(&crew.dozing, 1);
    pthread_mutex_unlock(&crew.asleep);
}

static void pass(int sense) {
    atomic_store_explicit(&crew.arrived, 0, memory_order_relaxed);
    atomic_store(&crew.sense, sense + 1);
    if (!atomic_load(&crew.dozing)) return;
    pthread_mutex_lock(&crew.asleep);
    pthread_cond_broadcast(&crew.passed);
    pthread_mutex_unlock(&crew.asleep);
}

static void barrier(int threads) {
    if (threads == 1) return;
    int sense = atomic_load_explicit(&crew.sense, memory_order_relaxed);
    if (atomic_fetch_add(&crew.arrived, 1) == threads - 1) return pass(sense);
    long long since = 0;
    for (int spins = 0; atomic_load_explicit(&crew.sense, memory_order_acquire) == sense; spins++) {
        if (spins == PATIENCE) since = now();
        if (since && now() - since > DOZE) doze(sense);
        else rest(spins);
    }
    if (since) atomic_fetch_add(&crew.lost, now() - since);
}

static void *member(void *number) {
    int thread = (int)(intptr_t)number, seen = 0;
    for (;;) {
        for (int n = 0; atomic_load(&crew.epoch) == seen && n < 2 * PATIENCE; n++) rest(n);
        pthread_mutex_lock(&crew.asleep);
        while (atomic_load(&crew.epoch) == seen) pthread_cond_wait(&crew.wake, &crew.asleep);
        int active = crew.active; /* with its epoch: a member that is late must not join twice */
        seen = atomic_load(&crew.epoch);
        pthread_mutex_unlock(&crew.asleep);
        if (atomic_load(&crew.stop)) return NULL;
        if (thread >= active) continue;
        crew.work(crew.job, thread, active);
        barrier(active);
    }
}

static void call_up(int active) {
    pthread_mutex_lock(&crew.asleep);
    crew.active = active;
    atomic_fetch_add(&crew.epoch, 1);
    pthread_cond_broadcast(&crew.wake);
    pthread_mutex_unlock(&crew.asleep);
}

static void dismiss(void) {
    if (crew.threads > 1 && crew.pid == getpid()) { /* a forked child has none to join */
        atomic_store(&crew.stop, 1);
        call_up(0);
        for (int i = 1; i < crew.threads; i++) pthread_join(crew.thread[i], NULL);
    }
    atomic_store(&crew.stop, 0);
    atomic_store(&crew.epoch, 0);
    atomic_store(&crew.arrived, 0);
    crew.threads = 1;
}

static void run(work work, void *job, int threads) {
    if (threads > crew.threads || crew.pid != getpid()) {
        dismiss();
        crew.pid = getpid();
        while (crew.threads < threads && !pthread_create(&crew.thread[crew.threads], NULL, member,
                                                         (void *)(intptr_t)crew.threads))
            crew.threads++;
    }
    int active = MIN(threads, crew.threads);
    crew.work = work, crew.job = job;
    if (active > 1) call_up(active);
    work(job, 0, active);
    barrier(active);
}

void mirada_expand(int type, int cols, const uint8_t *row, float *out) {
    expand(type, row, cols, out);
}

/* Memory in huge pages where the system has them: a sixth more speed when weights are read. */
void *mirada_memory(int64_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

void mirada_release(void *p, int64_t bytes) { munmap(p, bytes); }

/* What the reading of a vocabulary left behind goes back to the system: 35 MB of SmolLM2's. */
void mirada_tidy(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

/* Gives back the pages of a mapped file that lie in these bytes: they are read again when they are
   needed. Pages that were written to are no longer the file's, and stay. */
void mirada_forget(const uint8_t *p, int64_t bytes) {
#ifdef __linux__
    enum { SOME = 512 };
    int64_t size = sysconf(_SC_PAGESIZE), page = ((intptr_t)p + size - 1) / size;
    int64_t end = ((intptr_t)p + bytes) / size;
    int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    for (int64_t some, n; file >= 0 && page < end; page += some) {
        uint64_t state[SOME];
        some = MIN(SOME, end - page), n = 0;
        if (pread(file, state, some * 8, page * 8) != some * 8) break;
        while (n < some && (state[n] >> 62 == 0 || state[n] >> 61 & 1)) n++; /* none, or a file's */
        if (n == some) madvise((void *)(page * size), some * size, MADV_DONTNEED);
    }
    if (file >= 0) close(file);
#endif
}

typedef struct { int32_t type, rows, cols, stays; const uint8_t *from; uint8_t *to; } packing;
typedef struct { packing p; atomic_int next; } packed;

static void pack_some(void *job, int thread, int threads) {
    packed *k = job;
    packing p = k->p;
    int64_t stride = row_bytes(p.type, p.cols), size = layout_of(kind_of(p.type), p.cols).size;
    for (int t; (t = atomic_fetch_add(&k->next, 1)) * LANES < p.rows;)
        pack_tile(p.type, p.from + t * LANES * stride, MIN(LANES, p.rows - t * LANES), p.cols,
                  p.to + t * size);
}

/* Each matrix in turn, SLICE bytes of a file at a time, whose pages are then let go of. One call for
   all of them: its caller's interpreter is free meanwhile. */
void mirada_pack(const packing *matrices, int count, int threads) {
    enum { SLICE = 1 << 21 };
    pthread_mutex_lock(&crew.one);
    for (const packing *p = matrices; p < matrices + count; p++) {
        int64_t stride = row_bytes(p->type, p->cols);
        int64_t size = layout_of(kind_of(p->type), p->cols).size;
        int some = MAX(1, SLICE / (LANES * stride)) * LANES;
        for (int row = 0; row < p->rows; row += some) {
            packed part = {.p = *p};
            part.p.rows = MIN(some, p->rows - row);
            part.p.from += row * stride, part.p.to += row / LANES * size;
            run(pack_some, &part, MAX(1, MIN(threads, THREADS)));
            if (!p->stays) mirada_forget(part.p.from, part.p.rows * stride);
        }
    }
    pthread_mutex_unlock(&crew.one);
}

INLINE int padded(const operator *o) { return (o->value + LANES - 1) / LANES * LANES; }

/* ---- one step ------------------------------------------------------------------------------- */

typedef struct { int first, count; } stretch; /* tokens of one sequence, one behind the other */

/* Which tokens each expert has. Choice token * top + j is the j-th of a token's experts, which stand
   in their order. The choices of expert e are lines first[e] .. first[e + 1] - 1 of `choice`, and
   its inputs, in blocks like all, begin at place[e]. busy[]: the experts that have any. */
typedef struct { int32_t *choice, *expert, *first, *place, *busy, busy_count; } routing;

typedef struct {
    const program *p;
    const batch *b;
    float *buffer[BUFFERS];
    int stride[BUFFERS];
    uint8_t *input, *scratch;      /* prepared inputs: of all; one to a thread */
    int64_t scratch_bytes;
    stretch *stretches;
    int stretch_count, longest, threads;
    int32_t *ends;                 /* of each sequence: its tokens so far */
    int spans;                     /* that are items of their own; 1: all keys in one item */
    float *parts;                  /* attention's partial sums */
    atomic_int *next;              /* an operator's next item */
    routing routed;                /* by the last ROUTE */
} step;

INLINE float *at(step *s, int buffer, int64_t token) {
    return s->buffer[buffer] + token * s->stride[buffer];
}

INLINE int take(atomic_int *next) {
    return atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
}

INLINE int block_width(int rest) { /* tokens that a block holds: WIDE, at the end 8, 4, 2 or 1 */
    return rest > 8 ? 16 : rest > 4 ? 8 : rest > 2 ? 4 : rest;
}

/* A prepared input of `width` tokens: for each group of 32 channels all codes, then scales, sums
   (negated, of 32 and twice of 16) and scale * sum, each [width]; or float32, [cols][width].
   A deep code is 128 * high + low: 32 high bytes, then 32 low ones. */
enum { CODE_BYTES = GROUP * (1 + DEEP), GROUP_BYTES = CODE_BYTES + 20, TOP = DEEP ? 16256 : 127 };

INLINE int64_t input_bytes(int quantized, int cols) {
    return quantized ? (int64_t)cols / GROUP * GROUP_BYTES : 4L * cols;
}

static void quantize(const float *x, int groups, int width, int m, uint8_t *out) {
    const float magic = 12582912.0f; /* adding it leaves a whole number in the lowest bits */
    for (int g = 0; g < groups; g++, x += GROUP, out += GROUP_BYTES * width) {
        f32x16 v[2] = {load(x), load(x + LANES)};
        float most = largest(larger(size(v[0]), size(v[1]))), per = most > 0 ? TOP / most : 0;
        float *scales = (float *)(out + CODE_BYTES * width);
        int32_t *sums = (int32_t *)(scales + width), *halves = sums + width + 2 * m;
        for (int h = 0; h < 2; h++) {
            uint8_t *codes = out + m * CODE_BYTES + h * LANES;
            i32x16 q = (i32x16)(v[h] * per + magic) - 0x4b400000, high = DEEP ? (q + 64) >> 7 : q;
            *(any_i8x16 *)codes = __builtin_convertvector(high, i8x16);
            i32x16 low = q - (high << 7);
            if (DEEP) *(any_i8x16 *)(codes + GROUP) = __builtin_convertvector(low, i8x16);
            halves[h] = -whole_sum(q);
        }
        scales[m] = most / TOP, sums[m] = halves[0] + halves[1];
        ((float *)sums)[3 * width + m] = -scales[m] * sums[m];
    }
}

static void normalise(int norm, float eps, const float *weight, const float *bias, int width,
                      const float *x, float *y) {
    float mean = 0, square = 0;
    int n = width / LANES * LANES;
    f32x16 a = splat(0);
    if (norm == LAYER) {
        for (int i = 0; i < n; i += LANES) a += load(x + i);
        mean = sum(a);
        for (int i = n; i < width; i++) mean += x[i];
        mean /= width, a = splat(0);
    }
    for (int i = 0; i < n; i += LANES) { f32x16 d = load(x + i) - mean; a += d * d; }
    square = sum(a);
    for (int i = n; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    float per = 1.0f / sqrtf(square / width + eps);
    for (int i = 0; i < n; i += LANES) {
        f32x16 v = (load(x + i) - mean) * per;
        if (weight) v *= load(weight + i);
        store(y + i, bias ? v + load(bias + i) : v);
    }
    for (int i = n; i < width; i++) {
        y[i] = (x[i] - mean) * per * (weight ? weight[i] : 1);
        if (bias) y[i] += bias[i];
    }
}

/* x, the m-th of an operator's inputs: normed, then as codes or float32, into its place in its
   block */
static void prepare(const operator *o, const float *x, int m, int tokens, uint8_t *to,
                    float *room) {
    int quantized = o->a.kind >= Q8, cols = o->a.cols, first = m / WIDE * WIDE;
    int width = block_width(MIN(WIDE, tokens - first));
    if (o->norm) normalise(o->norm, o->eps, o->p[0], o->p[1], cols, x, room), x = room;
    uint8_t *block = to + first * input_bytes(quantized, cols);
    if (quantized) quantize(x, cols / GROUP, width, m - first, block);
    else for (int i = 0; i < cols; i++) ((float *)block)[(int64_t)i * width + m - first] = x[i];
}

/* the codes of vectors a .. b - 1 against an input's, from `start` on (its sum times their zero) */
INLINE i32x16 dots(const u8x64 *q, const int a, const int b, const int32_t *x, int32_t start) {
    i32x16 low = SPLAT(i32x16, start), high = SPLAT(i32x16, 0);
    UNROLL for (int j = a; j < b; j++) {
        if (DEEP) high = dot(high, q[j], x[j]), low = dot(low, q[j], x[j + 8]);
        else low = dot(low, q[j], x[j]);
    }
    return DEEP ? low + (high << 7) : low;
}

/* y[m] = tile . x[m] for W tokens, of 8-bit or 4-bit codes */
INLINE void codes_tile(const int kind, const int W, const uint8_t *tile, int cols, const uint8_t *x,
                       f32x16 *y) {
    const int four = kind == Q4 || kind == Q4M || kind == Q4K, twice = kind == Q6K;
    const int super = kind == Q4K || kind == Q8KM || kind == Q6K, whole = kind == Q8R;
    const int least = kind == Q4M || kind == Q8M || kind == Q4K || kind == Q8KM;
    const layout l = layout_of(kind, cols);
    const uint8_t *codes = tile;
    const uint16_t *scales = (const uint16_t *)(tile + l.scale);
    const uint16_t *leasts = (const uint16_t *)(tile + l.least);
    f32x16 d = splat(0), dm = d, sum[WIDE]; /* not [W]: see score_page */
    UNROLL for (int m = 0; m < W; m++) sum[m] = splat(0);
    const int lines = four ? 5 : 9; /* of memory that a group takes, its scales included */
    for (int g = 0; g < cols / GROUP; g++, codes += four ? 256 : 512, x += GROUP_BYTES * W) {
        if (W <= 8)
            UNROLL for (int i = 0; i < lines; i++)
                __builtin_prefetch(tile + AHEAD + 64 * (lines * g + i), 0, 3);
        const float *xs = (const float *)(x + CODE_BYTES * W), *xl = xs + 4 * W;
        const int32_t *xn = (const int32_t *)(xs + W), *xn2 = xn + W;
        f32x16 s = splat(1), s2 = d, low = d;
        u8x64 q[8];
        if (four) {
            UNROLL for (int j = 0; j < 4; j++) {
                u8x64 both = *(const any_u8x64 *)(codes + 64 * j);
                q[j] = both & 15, q[j + 4] = both >> 4;
            }
        } else {
            UNROLL for (int j = 0; j < 8; j++) q[j] = *(const any_u8x64 *)(codes + 64 * j);
        }
        if (super) {
            if (g % 8 == 0) {
                d = load_half(scales + g * 2);
                if (least) dm = load_half(leasts + g * 2);
            }
            const uint8_t *eight = tile + l.scale8 + g * (twice ? 32 : 16);
            if (twice) {
                s = d * load_signed((const int8_t *)eight);
                s2 = d * load_signed((const int8_t *)eight + 16);
            } else s = d * load_bytes(eight);
            if (least) low = -dm * load_bytes(tile + l.least8 + g * 16);
        } else if (!whole) {
            s = load_half(scales + g * LANES);
            if (least) low = load_half(leasts + g * LANES);
        }
        UNROLL for (int m = 0; m < W; m++) {
            const int32_t *xc = (const int32_t *)(x + CODE_BYTES * m);
            f32x16 part;
            if (twice) {
                part = real(dots(q, 0, 4, xc, xn2[2 * m] * 128)) * s;
                part += real(dots(q, 4, 8, xc, xn2[2 * m + 1] * 128)) * s2;
            } else part = real(dots(q, 0, 8, xc, least ? 0 : xn[m] * (four ? 8 : 128))) * s;
            sum[m] += part * xs[m];
            if (least) sum[m] += low * xl[m];
        }
    }
    f32x16 rows = whole ? load((const float *)(tile + l.scale)) : splat(1);
    UNROLL for (int m = 0; m < W; m++) y[m] = whole ? sum[m] * rows : sum[m];
}

/* the same of float weights */
INLINE void float_tile(const int kind, const int W, const uint8_t *tile, int cols, const float *x,
                       f32x16 *y) {
    f32x16 sum[W];
    UNROLL for (int m = 0; m < W; m++) sum[m] = splat(0);
    for (int64_t i = 0; i < cols; i++) {
        f32x16 w = kind == F32 ? load((const float *)tile + LANES * i)
                 : kind == F16 ? load_half((const uint16_t *)tile + LANES * i)
                               : load_brain((const uint16_t *)tile + LANES * i);
        if (W <= 8 && kind != F32) __builtin_prefetch(tile + AHEAD + 32 * i, 0, 3);
        if (W <= 8 && kind == F32) __builtin_prefetch(tile + AHEAD + 64 * i, 0, 3);
        UNROLL for (int m = 0; m < W; m++) sum[m] += w * x[i * W + m];
    }
    UNROLL for (int m = 0; m < W; m++) y[m] = sum[m];
}

INLINE f32x16 look_up(f32x16 book, i32x16 codes) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_permutexvar_ps((__m512i)codes, (__m512)book);
#else
    f32x16 x;
    for (int i = 0; i < LANES; i++) x[i] = book[codes[i]];
    return x;
#endif
}

/* the same of codes into a book of 16 numbers, two to a byte */
INLINE void book_tile(const int kind, const int W, const uint8_t *tile, int cols, const float *x,
                      f32x16 *y) {
    const f32x16 book = load(BOOKS[kind == FP4]);
    const float *scales = (const float *)(tile + layout_of(kind, cols).scale);
    f32x16 sum[W];
    UNROLL for (int m = 0; m < W; m++) sum[m] = splat(0);
    for (int64_t i = 0; i < cols / 2; i++, tile += LANES) {
        i32x16 both = __builtin_convertvector(*(const any_u8x16 *)tile, i32x16);
        f32x16 scale = load(scales + i / 32 * LANES);
        f32x16 even = look_up(book, both & 15) * scale, odd = look_up(book, both >> 4) * scale;
        if (W <= 8 && i % 4 == 0) __builtin_prefetch(tile + AHEAD, 0, 3);
        UNROLL for (int m = 0; m < W; m++) {
            sum[m] += even * x[2 * i * W + m];
            sum[m] += odd * x[(2 * i + 1) * W + m];
        }
    }
    UNROLL for (int m = 0; m < W; m++) y[m] = sum[m];
}

#define EACH_KIND(W) \
    switch (a->kind) { \
        case F32: float_tile(F32, W, tile, a->cols, (const float *)x, y); break; \
        case F16: float_tile(F16, W, tile, a->cols, (const float *)x, y); break; \
        case BF16: float_tile(BF16, W, tile, a->cols, (const float *)x, y); break; \
        case NF4: book_tile(NF4, W, tile, a->cols, (const float *)x, y); break; \
        case FP4: book_tile(FP4, W, tile, a->cols, (const float *)x, y); break; \
        case Q8: codes_tile(Q8, W, tile, a->cols, x, y); break; \
        case Q8M: codes_tile(Q8M, W, tile, a->cols, x, y); break; \
        case Q4: codes_tile(Q4, W, tile, a->cols, x, y); break; \
        case Q4M: codes_tile(Q4M, W, tile, a->cols, x, y); break; \
        case Q4K: codes_tile(Q4K, W, tile, a->cols, x, y); break; \
        case Q8KM: codes_tile(Q8KM, W, tile, a->cols, x, y); break; \
        case Q8R: codes_tile(Q8R, W, tile, a->cols, x, y); break; \
        default: codes_tile(Q6K, W, tile, a->cols, x, y); \
    }

#define MAKE_TILE(W) \
    static __attribute__((noinline)) void tile_##W(const matrix *a, int t, const uint8_t *x, \
                                                   f32x16 *y) { \
        const uint8_t *tile = a->data + t * layout_of(a->kind, a->cols).size; \
        EACH_KIND(W) \
    }
MAKE_TILE(1)
MAKE_TILE(2)
MAKE_TILE(4)
#if defined(__AVX512F__)
MAKE_TILE(8)
MAKE_TILE(16)
#endif

static void tile_any(int W, const matrix *a, int t, const uint8_t *x, f32x16 *y) {
    switch (W) {
        case 1: tile_1(a, t, x, y); break;
        case 2: tile_2(a, t, x, y); break;
#if defined(__AVX512F__)
        case 8: tile_8(a, t, x, y); break;
        case 16: tile_16(a, t, x, y); break;
#endif
        default: tile_4(a, t, x, y);
    }
}

/* y[m]: rows 16t .. 16t + 15 of the output, for the `count` tokens of the block x */
static void product(const matrix *a, const matrix *gate, int act, int t, int count,
                    const uint8_t *x, f32x16 *y) {
    int W = block_width(count);
    f32x16 z[WIDE];
    tile_any(W, a, t, x, y);
    if (gate->data) tile_any(W, gate, t, x, z);
    for (int m = 0; m < count; m++) {
        if (a->bias) y[m] += load(a->bias + t * LANES);
        if (gate->bias) z[m] += load(gate->bias + t * LANES);
        if (gate->data) y[m] *= activate(act, z[m]);
        else y[m] = activate(act, y[m]);
    }
}

INLINE void put(float *to, f32x16 y, int lanes, int add) {
    if (lanes >= LANES) store(to, add ? load(to) + y : y);
    else for (int r = 0; r < lanes; r++) to[r] = add ? to[r] + y[r] : y[r];
}

static void linear_tile(step *s, const operator *o, int t, int first, int tokens,
                        const uint8_t *in) {
    int count = MIN(WIDE, tokens - first);
    f32x16 y[WIDE];
    product(&o->a, &o->gate, o->act, t, count,
            in + first * input_bytes(o->a.kind >= Q8, o->a.cols), y);
    for (int m = 0; m < count; m++)
        put(at(s, o->dst, first + m) + t * LANES, y[m], o->a.rows - t * LANES, o->flags & ADD);
}

INLINE float *room_of(const step *s, const operator *o, int thread) { /* for a normed input */
    float *end = (float *)(s->scratch + (thread + 1) * s->scratch_bytes);
    return (float *)((uintptr_t)(end - o->a.cols) & ~(uintptr_t)63);
}

static void linear(step *s, const operator *o, atomic_int *next, int tokens, int thread) {
    int tiles = (o->a.rows + LANES - 1) / LANES, alone = tokens == 1, threads = s->threads;
    uint8_t *in = alone ? s->scratch + thread * s->scratch_bytes : s->input;
    float *room = room_of(s, o, thread);
    if (!(o->flags & REUSE)) {
        if (alone) prepare(o, at(s, o->src, 0), 0, 1, in, room); /* each its own: no barrier */
        else {
            for (int m = thread; m < tokens; m += threads)
                prepare(o, at(s, o->src, m), m, tokens, in, room);
            barrier(threads);
        }
    }
    /* items: `rows` tiles by `deep` tokens. Few tiles stay in the cache while the tokens pass */
    int blocks = (tokens + WIDE - 1) / WIDE;
    int rows = MAX(1, MIN(alone ? 64 : 8, tiles / (threads * 6)));
    int chunks = (tiles + rows - 1) / rows;
    int depth = MIN(blocks, MAX(4, blocks * chunks / (threads * 16))); /* few wait at the end */
    if (chunks < threads * 2) depth = MAX(1, blocks * chunks / (threads * 4));
    int columns = (blocks + depth - 1) / depth;
    for (int i; (i = take(next)) < chunks * columns;) {
        int t0 = i / columns * rows, t1 = MIN(tiles, t0 + rows), b0 = i % columns * depth;
        for (int b = b0; b < MIN(blocks, b0 + depth); b++)
            for (int t = t0; t < t1; t++) linear_tile(s, o, t, b * WIDE, tokens, in);
    }
}

/* a token's `top` likeliest experts, the first of equals, in the order that the experts have; their
   chances, of all that were chosen */
static void choose(const float *logits, int experts, int top, int32_t *chosen, float *share) {
    float most = logits[0], total = 0;
    for (int e = 1; e < experts; e++) most = MAX(most, logits[e]);
    for (int j = 0; j < top; j++) {
        int best = -1, j0 = j;
        for (int e = 0; e < experts; e++) {
            int taken = 0;
            for (int i = 0; i < j; i++) taken |= chosen[i] == e;
            if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        for (; j0 > 0 && chosen[j0 - 1] > best; j0--) chosen[j0] = chosen[j0 - 1];
        chosen[j0] = best;
    }
    for (int j = 0; j < top; j++) total += share[j] = expf(logits[chosen[j]] - most);
    for (int j = 0; j < top; j++) share[j] /= total;
}

/* src: the router's logits; dst: each token's shares of its experts */
static void route(step *s, const operator *o, int tokens, int thread) {
    routing *r = &s->routed;
    int top = o->top, total = tokens * top;
    for (int m = thread; m < tokens; m += s->threads)
        choose(at(s, o->src, m), o->experts, top, r->expert + m * top, at(s, o->dst, m));
    barrier(s->threads);
    if (thread > 0) return;
    memset(r->first, 0, sizeof(int32_t) * (o->experts + 1));
    for (int i = 0; i < total; i++) r->first[r->expert[i] + 1]++;
    r->busy_count = 0;
    for (int e = 0, place = 0; e < o->experts; e++) {
        int count = r->first[e + 1];
        r->first[e + 1] += r->first[e], r->place[e] = place;
        if (count) r->busy[r->busy_count++] = e;
        place += count / WIDE * WIDE + (count % WIDE ? block_width(count % WIDE) : 0);
    }
    for (int i = 0; i < total; i++) r->choice[r->first[r->expert[i]]++] = i;
    for (int e = o->experts; e > 0; e--) r->first[e] = r->first[e - 1];
    r->first[0] = 0;
}

INLINE matrix expert(const matrix *a, int e) {
    int64_t tiles = (a->rows + LANES - 1) / LANES;
    matrix one = *a;
    if (a->data) one.data += e * tiles * layout_of(a->kind, a->cols).size;
    if (a->bias) one.bias += e * tiles * LANES;
    return one;
}

/* Each expert's product for the tokens that chose it. src: `extra` lines to a token, 1 or, of what
   EXPERTS wrote, `top`; dst: `top` lines. */
static void experts(step *s, const operator *o, atomic_int *next, int thread) {
    const routing *r = &s->routed;
    int tiles = (o->a.rows + LANES - 1) / LANES, threads = s->threads, quantized = o->a.kind >= Q8;
    int64_t size = input_bytes(quantized, o->a.cols);
    for (int n = 0, i = thread; n < r->busy_count; n++) {
        int e = r->busy[n], first = r->first[e], count = r->first[e + 1] - first;
        for (; i < first + count; i += threads) {
            int token = r->choice[i] / o->top, j = r->choice[i] % o->top;
            const float *x = at(s, o->src, token) + (int64_t)(j % o->extra) * o->a.cols;
            prepare(o, x, i - first, count, s->input + r->place[e] * size, room_of(s, o, thread));
        }
    }
    barrier(threads);
    int rows = MAX(1, MIN(8, r->busy_count * tiles / (threads * 6)));
    int chunks = (tiles + rows - 1) / rows;
    for (int i; (i = take(next)) < chunks * r->busy_count;) {
        int e = r->busy[i / chunks], first = r->first[e], count = r->first[e + 1] - first;
        int t0 = i % chunks * rows, t1 = MIN(tiles, t0 + rows);
        matrix a = expert(&o->a, e), gate = expert(&o->gate, e);
        for (int b = 0; b < count; b += WIDE)
            for (int t = t0; t < t1; t++) {
                f32x16 y[WIDE];
                int wide = MIN(WIDE, count - b);
                product(&a, &gate, o->act, t, wide, s->input + (r->place[e] + b) * size, y);
                for (int m = 0; m < wide; m++) {
                    int choice = r->choice[first + b + m];
                    float *to = at(s, o->dst, choice / o->top);
                    to += (int64_t)(choice % o->top) * o->a.rows + t * LANES;
                    put(to, y[m], o->a.rows - t * LANES, 0);
                }
            }
    }
}

/* dst: what the experts wrote (src), each times its share (buffer `extra`), in their order */
static void weigh(step *s, const operator *o, int tokens, int thread) {
    for (int m = thread; m < tokens; m += s->threads) {
        const float *x = at(s, o->src, m), *share = at(s, o->extra, m);
        float *y = at(s, o->dst, m);
        for (int i = 0; i < o->width; i += LANES) {
            f32x16 total = splat(0);
            for (int j = 0; j < o->top; j++) total += load(x + (int64_t)j * o->width + i) * share[j];
            put(y + i, total, o->width - i, o->flags & ADD);
        }
    }
}

/* Bytes have a scale for each token and head, which stand behind a page's codes: [head][slot]. */
INLINE float *scales_of(const uint8_t *codes, const operator *o, int is_v) {
    return (float *)(codes + (int64_t)o->kv_heads * PAGE * (is_v ? padded(o) : o->head));
}

/* notes the scale of x, one token's key or value; gives codes per unit */
static float byte_scale(uint8_t *codes, const operator *o, int is_v, int g, int slot,
                        const float *x, int size) {
    float most = 0;
    for (int j = 0; j < size; j++) most = MAX(most, fabsf(x[j]));
    scales_of(codes, o, is_v)[g * PAGE + slot] = most / 127;
    return most > 0 ? 127 / most : 0;
}

/* x into its place in a page, `apart` numbers between two of its own; `per`: codes per unit */
static void keep(int cache, uint8_t *page, int64_t to, int apart, float per, const float *x,
                 int size) {
    if (cache == FLOATS && apart == 1) memcpy((float *)page + to, x, sizeof(float) * size);
    else if (cache == FLOATS)
        for (int j = 0; j < size; j++) ((float *)page)[to + (int64_t)j * apart] = x[j];
    else if (cache == BYTES)
        for (int j = 0; j < size; j++)
            ((int8_t *)page)[to + (int64_t)j * apart] = (int8_t)rintf(x[j] * per);
    else
        for (int j = 0; j < size; j++)
            ((uint16_t *)page)[to + (int64_t)j * apart] =
                to_half(MAX(-65504.0f, MIN(65504.0f, x[j])));
}

/* q and k of each token normed and rotated; k and v into their page. Items: token x head. */
static void turn(step *s, const operator *o, int thread) {
    const batch *b = s->b;
    int H = o->norm || o->turning ? o->heads : 0, G = o->kv_heads, per = H + 2 * G;
    int64_t total = (int64_t)b->tokens * per, end = total * (thread + 1) / s->threads;
    int wide = padded(o), half = o->turning / 2;
    for (int64_t i = total * thread / s->threads; i < end; i++) {
        int m = i / per, h = i % per, is_q = h < H, is_v = h >= H + G, g = is_v ? h - H - G : h - H;
        int position = b->positions[m], which = is_q ? o->src : is_v ? o->extra : o->dst;
        int size = is_v ? o->value : o->head;
        float *x = at(s, which, m) + (is_q ? h : g) * size;
        if (o->norm && !is_v)
            normalise(o->norm, is_q ? o->eps : o->eps_k, o->p[is_q ? 0 : 1], NULL, size, x, x);
        if (half && !is_v) {
            const float *table = (const float *)o->p[2] + (int64_t)position * o->turning;
            int far = o->flags & INTERLEAVED ? 1 : half, near = o->flags & INTERLEAVED ? 2 : 1;
            for (int j = 0; j < half; j++) {
                float c = table[j], n = table[half + j], *a = x + j * near, *z = a + far, y = *a;
                *a = y * c - *z * n, *z = *z * c + y * n;
            }
        }
        if (is_q) continue;
        int64_t page = b->tables[(int64_t)b->rows[m] * b->pages + position / PAGE];
        int slot = position % PAGE;
        uint8_t *here = b->pool + page * s->p->page_bytes + (is_v ? o->at_v : o->at_k);
        int64_t to = is_v ? ((int64_t)g * PAGE + slot) * wide : (int64_t)g * size * PAGE + slot;
        float per = s->p->cache == BYTES ? byte_scale(here, o, is_v, g, slot, x, size) : 1;
        keep(s->p->cache, here, to, is_v ? 1 : PAGE, per, x, size);
    }
}

INLINE f32x16 kept(const int cache, const void *at, int64_t i) {
    if (cache == HALVES) return load_half((const uint16_t *)at + i);
    if (cache == FLOATS) return load((const float *)at + i);
    return load_signed((const int8_t *)at + i);
}

/* Scores of R queries with the 32 keys of a page, which lie transposed: [channel][slot]. Pages lie
   far apart: the values of this one and the keys of the next are sent for meanwhile. */
INLINE void score_page(const int R, const int cache, const float *q, int K, const void *keys,
                       const char *values, const char *next, float *out) {
    f32x16 a[8], z[8]; /* a size that is known: of a[R] gcc makes memory */
    UNROLL for (int r = 0; r < R; r++) a[r] = z[r] = splat(0);
    for (int d = 0; d < K; d++) {
        const int line = PAGE * (cache == BYTES ? 1 : cache == HALVES ? 2 : 4);
        UNROLL for (int at = 0; at < line; at += 64) {
            __builtin_prefetch(values + d * line + at);
            __builtin_prefetch(next + d * line + at);
        }
        f32x16 k0 = kept(cache, keys, d * PAGE), k1 = kept(cache, keys, d * PAGE + LANES);
        UNROLL for (int r = 0; r < R; r++) {
            a[r] += k0 * q[r * K + d];
            z[r] += k1 * q[r * K + d];
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        store(out + r * SPAN, a[r]);
        store(out + r * SPAN + LANES, z[r]);
    }
}

/* out[r] += sum over slots of weight[r][slot] * value[slot], N vectors of channels at a time */
INLINE void mix_page(const int R, const int N, const int cache, const float *w, int slots,
                     const void *values, int64_t at, int wide, int size, float *out) {
    f32x16 a[8][4]; /* see score_page */
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) a[r][n] = load(out + r * size + n * LANES);
    for (int t = 0; t < slots; t++)
        UNROLL for (int n = 0; n < N; n++) {
            f32x16 v = kept(cache, values, at + (int64_t)t * wide + n * LANES);
            UNROLL for (int r = 0; r < R; r++) a[r][n] += v * w[r * SPAN + t];
        }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) store(out + r * size + n * LANES, a[r][n]);
}

#define SCORE(R) \
    for (; rows - r >= R; r += R) { \
        const float *x = q + r * K; \
        float *y = out + r * SPAN; \
        if (cache == HALVES) score_page(R, HALVES, x, K, keys, values, next, y); \
        else if (cache == BYTES) score_page(R, BYTES, x, K, keys, values, next, y); \
        else score_page(R, FLOATS, x, K, keys, values, next, y); \
    }

static void score(int cache, int rows, const float *q, int K, const void *keys, const void *values,
                  const void *next, float *out) {
    int r = 0;
    SCORE(8) SCORE(4) SCORE(3) SCORE(2) SCORE(1)
}

#define MIX(R, N) { \
        const float *x = w + r * SPAN; \
        float *y = out + r * size + n * LANES; \
        int64_t from = at + n * LANES; \
        if (cache == HALVES) mix_page(R, N, HALVES, x, slots, values, from, wide, size, y); \
        else if (cache == BYTES) mix_page(R, N, BYTES, x, slots, values, from, wide, size, y); \
        else mix_page(R, N, FLOATS, x, slots, values, from, wide, size, y); \
    }
#define MIX_ROWS(R) \
    for (; rows - r >= R; r += R) { \
        int n = 0; \
        for (; vectors - n >= 4; n += 4) MIX(R, 4) \
        for (; vectors - n >= 2; n += 2) MIX(R, 2) \
        for (; n < vectors; n++) MIX(R, 1) \
    }

static void mix(int cache, int rows, const float *w, int slots, const void *values, int64_t at,
                int wide, int size, float *out) { /* size: numbers between two rows of out */
    int r = 0, vectors = wide / LANES;
    MIX_ROWS(6) MIX_ROWS(4) MIX_ROWS(3) MIX_ROWS(2) MIX_ROWS(1)
}

/* scores with codes become scores with keys; weights of values, weights of their codes */
static void rescale(int rows, const float *scales, float *w) {
    for (int r = 0; r < rows; r++, w += SPAN)
        for (int t = 0; t < PAGE; t += LANES) store(w + t, load(w + t) * load(scales + t));
}

/* Attention in spans of 256 keys, each with a softmax of its own; the spans' results are joined in
   order (Milakov & Gimelshein, 1805.02867). Spans begin at multiples of 256 and a key that is not
   seen adds exactly nothing, so that a token's result does not depend on its neighbours here.
   A part is the largest score, the sum of weights, and the weighted sum of values. */
typedef struct { float *q, *w, *part, *whole; } room;

/* the keys that a query at `position` sees: from .. to - 1. end: those its sequence has so far */
typedef struct { int from, to; } sight;

INLINE sight seen(step *s, const operator *o, int row, int position) {
    if (o->flags & MEMORY) return (sight){0, s->b->memory[row]};
    sight x = {o->window ? MAX(0, position - o->window + 1) : 0, position + 1};
    if (o->flags & BOTH) x.to = o->window ? position + o->window : 1 << 30;
    if (o->flags & BOTH) x.to = MIN(x.to, s->ends[row]);
    return x;
}

/* scores -> weights of one query's `keys` keys from `base` on; the part's first two numbers.
   bias: of a key at the query's own place, those of the next keys behind it; NULL: none */
static void soften(const operator *o, int position, sight seen, float slope, const float *bias,
                   int base, int keys, float *w, float *part) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f32x16 most = splat(-1e30f), total = splat(0);
    for (int t = 0; t < keys; t += LANES) {
        f32x16 x = load(w + t);
        int key = base + t;
        if (o->cap) x = o->cap * vtanh(x / o->cap);
        if (slope) x -= slope * real(position - key - lane);
        if (bias) x += load(bias + key - position);
        if (key < seen.from || key + LANES > seen.to)
            x = pick((key + lane >= seen.from) & (key + lane < seen.to), x, splat(-1e30f));
        store(w + t, x), most = larger(most, x);
    }
    float top = part[0] = largest(most);
    for (int t = 0; t < keys; t += LANES) {
        f32x16 x = load(w + t), e = pick(x > -1e29f, vexp(x - top), splat(0));
        store(w + t, e), total += e;
    }
    part[1] = sum(total);
}

static void join(float *whole, const float *part, int values) { /* whole: parts before this one */
    float top = MAX(whole[0], part[0]), old = expf(whole[0] - top), new = expf(part[0] - top);
    if (part[1] == 0) return;
    whole[0] = top, whole[1] = whole[1] * old + part[1] * new;
    for (int d = 2; d < values + 2; d += LANES)
        store(whole + d, load(whole + d) * old + load(part + d) * new);
}

static void finish(step *s, const operator *o, int m, int head, const float *whole) {
    float *z = at(s, o->dst, m) + head * o->value;
    int d = 0;
    for (; d + LANES <= o->value; d += LANES) store(z + d, load(whole + 2 + d) / whole[1]);
    for (; d < o->value; d++) z[d] = whole[2 + d] / whole[1];
}

INLINE float *part_of(step *s, const operator *o, int m, int head, int span) {
    return s->parts + (((int64_t)m * o->heads + head) * s->spans + span) * (padded(o) + 2);
}

/* The queries of a stretch's tokens for the heads that share key head g, against the keys of spans
   from .. to - 1, or of all, whose results are then joined here. */
static void attend_item(step *s, const operator *o, stretch x, int g, int span, room v) {
    const batch *b = s->b;
    int shared = o->heads / o->kv_heads, rows = x.count * shared, K = o->head;
    int wide = padded(o), size = wide + 2, all = s->spans == 1, cache = s->p->cache;
    int bytes = cache == BYTES ? 1 : cache == HALVES ? 2 : 4;
    int p0 = b->positions[x.first], row = b->rows[x.first];
    int from = seen(s, o, row, p0).from, end = seen(s, o, row, p0 + x.count - 1).to;
    int first = from / SPAN, last = (end - 1) / SPAN;
    const int32_t *table = b->tables + (int64_t)row * b->pages;
    const float *slopes = o->p[0], *biases = o->p[1];
    if (!all) {
        if (span < first || span > last) return;
        first = last = span;
    }
    for (int r = 0; r < rows; r++) {
        int64_t m = x.first + r / shared, head = g * shared + r % shared;
        const float *from = at(s, o->src, m) + head * K;
        int d = 0;
        for (; d + LANES <= K; d += LANES) store(v.q + r * K + d, load(from + d) * o->scale);
        for (; d < K; d++) v.q[r * K + d] = from[d] * o->scale;
        memset(v.whole + r * size, 0, sizeof(float) * size), v.whole[r * size] = -1e30f;
    }
    for (span = first; span <= last; span++) {
        int base = span * SPAN, here = (MIN(SPAN, end - base) + PAGE - 1) / PAGE;
        for (int n = 0; n < here; n++) {
            const uint8_t *page = b->pool + table[base / PAGE + n] * s->p->page_bytes, *next = page;
            if (n + 1 < here) next = b->pool + table[base / PAGE + n + 1] * s->p->page_bytes;
            int64_t k = o->at_k + (int64_t)g * K * PAGE * bytes;
            int64_t w = o->at_v + (int64_t)g * PAGE * wide * bytes;
            score(cache, rows, v.q, K, page + k, page + w, next + k, v.w + n * PAGE);
            if (cache == BYTES)
                rescale(rows, scales_of(page + o->at_k, o, 0) + g * PAGE, v.w + n * PAGE);
        }
        memset(v.part, 0, sizeof(float) * rows * size);
        for (int r = 0; r < rows; r++) {
            int p = p0 + r / shared, head = g * shared + r % shared;
            const float *bias = biases ? biases + (int64_t)head * o->width + o->extra : NULL;
            soften(o, p, seen(s, o, row, p), slopes ? slopes[head] : 0, bias, base, here * PAGE,
                   v.w + r * SPAN, v.part + r * size);
        }
        for (int n = 0; n < here; n++) {
            const uint8_t *page = b->pool + table[base / PAGE + n] * s->p->page_bytes;
            if (cache == BYTES)
                rescale(rows, scales_of(page + o->at_v, o, 1) + g * PAGE, v.w + n * PAGE);
            mix(cache, rows, v.w + n * PAGE, MIN(PAGE, end - base - n * PAGE), page + o->at_v,
                (int64_t)g * PAGE * wide, wide, size, v.part + 2);
        }
        for (int r = 0; r < rows; r++) {
            int m = x.first + r / shared, head = g * shared + r % shared;
            if (all && first == last) finish(s, o, m, head, v.part + r * size);
            else if (all) join(v.whole + r * size, v.part + r * size, wide);
            else memcpy(part_of(s, o, m, head, span), v.part + r * size, sizeof(float) * size);
        }
    }
    if (all && first < last)
        for (int r = 0; r < rows; r++)
            finish(s, o, x.first + r / shared, g * shared + r % shared, v.whole + r * size);
}

static void join_spans(step *s, const operator *o, int thread, float *whole) {
    int size = padded(o) + 2, total = s->b->tokens * o->heads;
    for (int i = thread; i < total; i += s->threads) {
        int m = i / o->heads;
        sight x = seen(s, o, s->b->rows[m], s->b->positions[m]);
        memset(whole, 0, sizeof(float) * size), whole[0] = -1e30f;
        for (int n = x.from / SPAN; n <= (x.to - 1) / SPAN; n++)
            join(whole, part_of(s, o, m, i % o->heads, n), size - 2);
        finish(s, o, m, i % o->heads, whole);
    }
}

INLINE int queries(const program *p) { return MAX(1, 24 / p->group); } /* tokens in an item */

static void attend(step *s, const operator *o, atomic_int *next, int thread) {
    int rows = queries(s->p) * s->p->group, each = o->kv_heads * s->spans;
    float *mine = (float *)(s->scratch + thread * s->scratch_bytes);
    room v = {.q = mine, .w = mine + rows * o->head};
    v.part = v.w + rows * SPAN, v.whole = v.part + rows * (padded(o) + 2);
    for (int i; (i = take(next)) < s->stretch_count * each;) {
        stretch x = s->stretches[s->stretch_count - 1 - i / each]; /* the longest look back first */
        attend_item(s, o, x, i % each / s->spans, i % s->spans, v);
    }
    if (s->spans > 1) barrier(s->threads), join_spans(s, o, thread, mine);
}

static void embed(step *s, const operator *o, int thread) {
    for (int m = thread; m < s->b->tokens; m += s->threads) {
        float *x = at(s, o->dst, m);
        int64_t row = s->b->ids[m], place = s->b->positions[m] + o->extra;
        const uint8_t *table = o->p[0];
        const float *places = o->p[1], *kinds = o->p[2];
        if (kinds && s->b->types) kinds += (int64_t)s->b->types[m] * o->width;
        expand(o->kind, table + row * row_bytes(o->kind, o->width), o->width, x);
        for (int i = 0; i < o->width; i++)
            x[i] = x[i] * o->scale + (places ? places[place * o->width + i] : 0);
        if (kinds) for (int i = 0; i < o->width; i++) x[i] += kinds[i];
    }
}

static void norm(step *s, const operator *o, int tokens, int thread) {
    float *room = (float *)(s->scratch + thread * s->scratch_bytes);
    for (int m = thread; m < tokens; m += s->threads) {
        float *x = at(s, o->src, m), *y = at(s, o->dst, m);
        normalise(o->norm, o->eps, o->p[0], o->p[1], o->width, x, o->flags & ADD ? room : y);
        if (o->flags & ADD) for (int i = 0; i < o->width; i++) y[i] += room[i];
    }
}

#ifdef PROFILE /* nanoseconds that operator n took, its barrier included, over all steps */
enum { WATCHED = 1 << 14 };
static int64_t spent[WATCHED];
const int64_t *mirada_spent(void) { return spent; }
#define WATCH(n, t) if (thread == 0 && (n) < WATCHED) spent[n] += t
#else
#define WATCH(n, t)
#endif

static void walk(void *job, int thread, int threads) {
    step *s = job;
    int tokens = s->b->tokens;
    s->threads = threads;
    for (int n = 0; n < s->p->count; n++) {
        WATCH(n, -now());
        const operator *o = s->p->ops + n;
        atomic_int *next = s->next + n;
        switch (o->op) {
            case EMBED: embed(s, o, thread); break;
            case NORM: norm(s, o, tokens, thread); break;
            case LINEAR: linear(s, o, next, tokens, thread); break;
            case TURN: turn(s, o, thread); break;
            case ATTEND: attend(s, o, next, thread); break;
            case ROUTE: route(s, o, tokens, thread); break;
            case EXPERTS: experts(s, o, next, thread); break;
            case WEIGH: weigh(s, o, tokens, thread); break;
            case GATHER:
                tokens = s->b->scored;
                for (int m = thread; m < tokens; m += threads)
                    memcpy(at(s, o->dst, m), at(s, o->src, s->b->score[m]), 4L * o->width);
                break;
            case TAKE:
                for (int m = thread; m < tokens; m += threads)
                    memcpy(at(s, o->dst, m), s->b->given + (int64_t)m * o->width, 4L * o->width);
                break;
            default: /* SCALE, CAP */
                for (int m = thread; m < tokens; m += threads) {
                    float *x = at(s, o->dst, m);
                    for (int i = 0; i < o->width; i++)
                        x[i] = o->op == SCALE ? x[i] * o->scale : o->cap * tanhf(x[i] / o->cap);
                }
        }
        if (!(o->flags & OPEN) && tokens) barrier(threads);
        WATCH(n, now());
        if (tokens == 0) return;
    }
}

static int wrong(const program *p, const batch *b) { /* after this no address can be wrong */
    for (int n = 0; n < p->count; n++) {
        if (p->ops[n].op == TAKE && !b->given) return 8;
        if (p->ops[n].flags & MEMORY && !b->memory) return 8;
    }
    for (int m = 0; m < b->tokens; m++) {
        if (b->ids[m] < 0 || b->ids[m] >= p->vocab) return 1;
        if (b->rows[m] < 0 || b->rows[m] >= b->sequences) return 2;
        if (b->positions[m] < 0 || b->positions[m] >= MIN(p->positions, b->pages * PAGE)) return 3;
        const int32_t *table = b->tables + (int64_t)b->rows[m] * b->pages;
        for (int n = 0; n <= b->positions[m] / PAGE; n++)
            if (table[n] < 0 || table[n] >= b->pool_pages) return 4;
        if (b->types && (b->types[m] < 0 || b->types[m] >= p->types)) return 7;
    }
    for (int r = 0; b->memory && r < b->sequences; r++) {
        if (b->memory[r] < 1 || b->memory[r] > b->pages * PAGE) return 3;
        for (int n = 0; n <= (b->memory[r] - 1) / PAGE; n++) {
            int32_t page = b->tables[(int64_t)r * b->pages + n];
            if (page < 0 || page >= b->pool_pages) return 4;
        }
    }
    if (b->scored < 0 || b->scored > b->tokens) return 5;
    for (int r = 0; r < b->scored; r++) if (b->score[r] < 0 || b->score[r] >= b->tokens) return 5;
    return 0;
}

static void cut(step *s) { /* tokens that stand behind each other meet a key once for all */
    const batch *b = s->b;
    for (int m = 0; m < b->tokens; m++) {
        stretch *last = s->stretches + s->stretch_count - 1;
        int on = m && b->rows[m] == b->rows[m - 1] && b->positions[m] == b->positions[m - 1] + 1;
        if (on && last->count < queries(s->p)) last->count++;
        else s->stretches[s->stretch_count++] = (stretch){m, 1};
        s->ends[b->rows[m]] = MAX(s->ends[b->rows[m]], b->positions[m] + 1);
        s->longest = MAX(s->longest, b->positions[m] + 1);
    }
    for (int r = 0; b->memory && r < b->sequences; r++) s->longest = MAX(s->longest, b->memory[r]);
}

/* a block of n tokens has room for less than 2n */
INLINE int64_t routed_inputs(const operator *o, int64_t tokens) {
    return tokens * o->top + MIN(tokens * o->top, (int64_t)o->experts * WIDE);
}

INLINE int64_t whole(int64_t bytes) { return (bytes + 127) / 128 * 128; }

static int run_step(const program *p, const batch *b, int threads) {
    int bad = wrong(p, b), kv = 1 << 20;
    if (bad || b->tokens == 0) return bad;
    step s = {.p = p, .b = b, .threads = threads};
    int64_t padded_tokens = (b->tokens + WIDE - 1) / WIDE * WIDE;
    int64_t input = 0, most = 0, parts = 0, rows = queries(p) * p->group, choices = 0, experts = 0;
    for (int n = 0; n < p->count; n++) {
        const operator *o = p->ops + n;
        if (o->op == LINEAR || o->op == EXPERTS) {
            int64_t inputs = o->op == LINEAR ? padded_tokens : routed_inputs(o, b->tokens);
            input = MAX(input, inputs * MAX(4L * o->a.cols, input_bytes(1, o->a.cols)));
        }
        if (o->op == ROUTE)
            choices = MAX(choices, (int64_t)b->tokens * o->top), experts = MAX(experts, o->experts);
        if (o->op == LINEAR || o->op == EXPERTS || o->op == NORM)
            most = MAX(most, 8L * MAX(o->a.cols, o->width) + 256);
        if (o->op == ATTEND) {
            most = MAX(most, 4 * rows * (o->head + SPAN + 2 * (2 + padded(o))));
            parts = MAX(parts, 4 * o->heads * (padded(o) + 2)), kv = MIN(kv, o->kv_heads);
        }
    }
    s.scratch_bytes = whole(most);
    int64_t sizes[BUFFERS + 6], total = 0;
    sizes[0] = whole(input), sizes[1] = s.scratch_bytes * threads;
    sizes[2] = whole(sizeof(stretch) * b->tokens) + whole(sizeof(int32_t) * b->sequences);
    sizes[3] = whole(sizeof(atomic_int) * p->count);
    for (int i = 0; i < p->buffers; i++) {
        s.stride[i] = (p->width[i] + LANES - 1) / LANES * LANES;
        sizes[6 + i] = whole(4L * s.stride[i] * b->tokens);
    }
    stretch *stretches = calloc(1, sizes[2]);
    if (!stretches) return 6;
    s.ends = (int32_t *)((uint8_t *)stretches + whole(sizeof(stretch) * b->tokens));
    s.stretches = stretches, cut(&s);
    int items = s.stretch_count * kv; /* few queries: their keys are shared out too */
    s.spans = items < 8 * threads && threads > 1 ? (s.longest + SPAN - 1) / SPAN : 1;
    sizes[4] = s.spans > 1 ? whole(parts * s.spans * b->tokens) : 0;
    sizes[5] = experts ? whole(4 * (2 * choices + 3 * experts + 1)) : 0;
    for (int i = 0; i < 6 + p->buffers; i++) total += sizes[i];
    static uint8_t *kept; /* grows; crew.one guards it */
    static int64_t kept_bytes;
    if (kept_bytes < total) {
        if (kept) munmap(kept, kept_bytes);
        kept = mirada_memory(total + total / 4), kept_bytes = kept ? total + total / 4 : 0;
        if (!kept) return free(stretches), 6;
    }
    uint8_t *at = kept;
    s.input = at, at += sizes[0];
    s.scratch = at, at += sizes[1];
    at += sizes[2];
    s.next = (atomic_int *)at, memset(at, 0, sizes[3]), at += sizes[3];
    s.parts = (float *)at, at += sizes[4];
    s.routed.choice = (int32_t *)at, s.routed.expert = s.routed.choice + choices;
    s.routed.first = s.routed.expert + choices, s.routed.place = s.routed.first + experts + 1;
    s.routed.busy = s.routed.place + experts, at += sizes[5];
    for (int i = 0; i < p->buffers; i++) s.buffer[i] = (float *)at, at += sizes[6 + i];
    s.buffer[p->buffers] = b->out, s.stride[p->buffers] = p->out; /* the buffer behind the last */
    run(walk, &s, threads);
    free(stretches);
    return 0;
}

/* Threads that share their cores with other programs may be slower together than with one less.
   When they wait for each other, a few steps are tried with one less, and what took less time goes
   on; so it is with one more, later. A trial that did not pay is put off twice as long. A step of
   many tokens has long items, which whoever is there takes, and needs none of this. The numbers do
   not depend on how many threads there are. */
enum { TRIAL = 8, MANY = 64, SOON = 100000000, LATE = 1600000000 }; /* steps, tokens, nanoseconds */
static struct {
    int threads, change, tokens, steps; /* change: what the trial under way adds */
    long long took[2], lost, wait, again;
} pace = {.threads = THREADS, .wait = SOON};

static void learn(int asked, int tokens, long long took, long long end) {
    int threads = MIN(asked, pace.threads), tried = pace.change != 0;
    if (tokens != pace.tokens) { /* another kind of step: nothing to compare with */
        pace.tokens = tokens, pace.threads = THREADS, pace.change = pace.steps = 0;
        pace.took[0] = pace.lost = 0;
        return;
    }
    pace.took[tried] += took;
    if (!tried) pace.lost += atomic_load(&crew.lost);
    if (++pace.steps < TRIAL) return;
    if (tried) {
        int better = pace.took[1] * 10 < pace.took[0] * (pace.change < 0 ? 9 : 11); /* noise */
        if (better) pace.threads = threads + pace.change;
        pace.wait = better ? SOON : MIN(2 * pace.wait, LATE), pace.again = end + pace.wait;
        pace.change = 0;
    } else if (end >= pace.again) {
        int waits = threads > 1 && pace.lost * 4 > pace.took[0];
        pace.change = waits ? -1 : threads < asked;
        pace.took[1] = 0;
    }
    pace.steps = 0;
    if (!pace.change) pace.took[0] = pace.lost = 0;
}

/* 0: done; else which of its arguments is wrong (see wrong) or 6, no memory */
int mirada_step(const program *p, const batch *b, int threads) {
    pthread_mutex_lock(&crew.one);
    int asked = MAX(1, MIN(threads, THREADS)), used = asked;
    if (b->tokens <= MANY) used = MAX(1, MIN(asked, MIN(asked, pace.threads) + pace.change));
    long long start = now(), end;
    atomic_store(&crew.lost, 0);
    int bad = run_step(p, b, used);
    end = now();
    if (b->tokens <= MANY && !bad) learn(asked, b->tokens, end - start, end);
    pthread_mutex_unlock(&crew.one);
    return bad;
}

int mirada_lanes(void) {
#if defined(__AVX512VNNI__)
    return 512;
#elif defined(__AVX2__)
    return 256;
#else
    return 0;
#endif
}
