/* Vector functions with stated bounds, tested against fp64 (tests/cython_kernels/test_vmath.py). The
 * polynomials are least-squares fits on Chebyshev nodes, reweighted towards equal relative error and
 * rounded to fp32. */
#ifndef CK_VMATH_H
#define CK_VMATH_H

#include "simd.h"

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

SIMD vf v_sigmoid(vf x) {
    return v_div(v_set1(1.0f), v_add(v_set1(1.0f), v_exp(v_sub(v_zero(), x))));
}

/* The standard normal distribution function, Phi(x) = (1 + erf(x / sqrt 2)) / 2, and its density's
 * exponential exp(-x^2 / 2). Absolute error of Phi at most 3e-7. The upper tail is exp(-x^2/2) t poly(t),
 * t = 1 / (1 + 0.3 |x|). */
SIMD vf v_normal_cdf(vf x, vf *exponential) {
    const vf a = v_abs(x), one = v_set1(1.0f);
    const vf e = v_exp(v_mul(v_mul(a, a), v_set1(-0.5f)));
    const vf t = v_div(one, v_fma(a, v_set1(0.3f), one));
    vf p = v_fma(t, v_set1(0.00448317127302289f), v_set1(0.015420371666550636f));
    p = v_fma(p, t, v_set1(-0.11857522279024124f));
    p = v_fma(p, t, v_set1(0.16586066782474518f));
    p = v_fma(p, t, v_set1(-0.028241774067282677f));
    p = v_fma(p, t, v_set1(0.11877810955047607f));
    p = v_fma(p, t, v_set1(0.10215697437524796f));
    p = v_fma(p, t, v_set1(0.12047387659549713f));
    p = v_fma(p, t, v_set1(0.11964386701583862f));
    const vf tail = v_mul(v_mul(e, t), p);
    *exponential = e;
    return v_select(v_less(x, v_zero()), tail, v_sub(one, tail));
}

#endif
