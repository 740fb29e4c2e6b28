/* Vector functions with stated bounds, tested against fp64 (tests/cython_kernels/test_vmath.py). The
 * polynomials are least-squares fits on Chebyshev nodes, reweighted towards equal relative error and
 * rounded to fp32. */
#ifndef CK_VMATH_H
#define CK_VMATH_H

#include "simd.h"

#define CK_LOG2_E 1.44269504f

/* exp(x). Relative error at most 2e-7 for x in [-87, 88.7]; below, gradual underflow to 0; above, Inf; NaN
 * stays. x = n ln 2 + r, |r| <= ln 2 / 2, ln 2 in two parts so that n times the first is exact. */
SIMD vf v_exp(vf x) {
    const vf shifter = v_set1(12582912.0f);  /* 1.5 * 2^23: adding it rounds to a whole number */
    x = v_max(v_set1(-105.0f), v_min(v_set1(90.0f), x));
    const vf n = v_sub(v_fma(x, v_set1(1.44269504f), shifter), shifter);
    vf r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_fma(r, v_set1(0.001393368816934526f), v_set1(0.008363205008208752f));
    p = v_fma(p, r, v_set1(0.041666463017463684f));
    p = v_fma(p, r, v_set1(0.16666576266288757f));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(v_mul(r, r), p, r);
    return v_scale(v_add(p, v_set1(1.0f)), n);
}

/* 2^x for x <= 127. Relative error for x in [-126, 127] at most 2e-7 with `degree` 5, 4e-6 with 4, 1.1e-4 with 3, which
 * is ample where the result is rounded to bf16; below -126, 2^-126 or less; NaN stays. x = n + r, |r| <= 0.5. */
SIMD vf v_exp2(vf x, const int degree) {
#ifdef CK_ISA_AVX512
    const vf n = v_whole(x), r = v_sub(x, n);
#else
    const vf shifter = v_set1(12583039.0f);  /* 1.5 * 2^23 + 127: the sum's low bits are n + 127 */
    x = v_max(v_set1(-126.0f), x);
    const vf shifted = v_add(x, shifter), r = v_sub(x, v_sub(shifted, shifter));
#endif
    vf p;
    if (degree == 5) {
        p = v_fma(r, v_set1(0.001326472731307149f), v_set1(0.009671512991189957f));
        p = v_fma(p, r, v_set1(0.05550733581185341f));
        p = v_fma(p, r, v_set1(0.24022242426872253f));
        p = v_fma(p, r, v_set1(0.6931470036506653f));
    } else if (degree == 4) {
        p = v_fma(r, v_set1(0.009582852944731712f), v_set1(0.055906426161527634f));
        p = v_fma(p, r, v_set1(0.24024099111557007f));
        p = v_fma(p, r, v_set1(0.6931241750717163f));
    } else {
        p = v_fma(r, v_set1(0.05500892922282219f), v_set1(0.24221095442771912f));
        p = v_fma(p, r, v_set1(0.6932829022407532f));
    }
    p = v_fma(p, r, v_set1(1.0f));
#ifdef CK_ISA_AVX512
    return v_scale(p, n);
#else
    return v_mul(p, v_from_bits(vi_shift_left(v_bits(shifted), 23)));
#endif
}

/* 1 / (1 + exp(-x)). Absolute error at most 3e-7 with `degree` 5, 1e-4 with 3; NaN stays. */
SIMD vf v_sigmoid(vf x, const int degree) {
    const vf e = v_exp2(v_min(v_set1(126.0f), v_mul(x, v_set1(-CK_LOG2_E))), degree);
    return v_reciprocal(v_add(v_set1(1.0f), e), degree == 3);
}

/* The hyperbolic tangent. Relative error at most 4e-7, so that a small x keeps its digits; NaN stays. Near 0 an odd
 * polynomial, elsewhere 1 - 2 / (exp(2 |x|) + 1) with the sign of x. */
SIMD vf v_tanh(vf x) {
    const vf one = v_set1(1.0f), a = v_min(v_set1(10.0f), v_abs(x)), square = v_mul(a, a);
    vf p = v_fma(square, v_set1(-0.005704980343580246f), v_set1(0.020639080554246902f));
    p = v_fma(p, square, v_set1(-0.05373971164226532f));
    p = v_fma(p, square, v_set1(0.13331441581249237f));
    p = v_fma(p, square, v_set1(-0.3333328068256378f));
    const vf near = v_fma(v_mul(square, x), p, x);
    const vf e = v_exp2(v_mul(a, v_set1(2.0f * CK_LOG2_E)), 5);
    const vf far = v_fma(v_set1(-2.0f), v_reciprocal(v_add(e, one), 0), one);
    return v_select(v_less(a, v_set1(0.625f)), near, v_select(v_less(x, v_zero()), v_sub(v_zero(), far), far));
}

/* The standard normal distribution function, Phi(x) = (1 + erf(x / sqrt 2)) / 2, and its density's exponential
 * exp(-x^2 / 2). Absolute error of Phi at most 3e-7 with `degree` 5, 1e-4 with 3; NaN stays. The upper tail is
 * exp(-x^2/2) t poly(t), t = 1 / (1 + k |x|). */
SIMD vf v_normal_cdf(vf x, vf *exponential, const int degree) {
    const vf a = v_min(v_set1(1e15f), v_abs(x)), one = v_set1(1.0f);
    const vf e = v_exp2(v_mul(v_mul(a, a), v_set1(-0.5f * CK_LOG2_E)), degree);
    const vf t = v_reciprocal(v_fma(a, v_set1(degree == 3 ? 0.25f : 0.3f), one), degree == 3);
    vf p;
    if (degree == 3) {
        p = v_fma(t, v_set1(0.24586594104766846f), v_set1(-0.1142665222287178f));
        p = v_fma(p, t, v_set1(0.1894163340330124f));
        p = v_fma(p, t, v_set1(0.07722151279449463f));
        p = v_fma(p, t, v_set1(0.10177455097436905f));
    } else {
        p = v_fma(t, v_set1(0.00448317127302289f), v_set1(0.015420371666550636f));
        p = v_fma(p, t, v_set1(-0.11857522279024124f));
        p = v_fma(p, t, v_set1(0.16586066782474518f));
        p = v_fma(p, t, v_set1(-0.028241774067282677f));
        p = v_fma(p, t, v_set1(0.11877810955047607f));
        p = v_fma(p, t, v_set1(0.10215697437524796f));
        p = v_fma(p, t, v_set1(0.12047387659549713f));
        p = v_fma(p, t, v_set1(0.11964386701583862f));
    }
    const vf tail = v_mul(v_mul(e, t), p);
    *exponential = e;
    return v_select(v_less(x, v_zero()), tail, v_sub(one, tail));
}

#endif
