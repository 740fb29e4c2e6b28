/* vmath.h behind doors, so that its error bounds can be tested: y = f(x), fp32. */

#define CK_VECTOR_FUNCTION(name, expression)                                                                \
    static void vector_##name(const void *args, const ck_team *team) {                                      \
        const ck_cast_args *a = args;                                                                       \
        const ck_range part = ck_split(a->n, 64, team->size, team->index);                                  \
        float *y = (float *)a->dst + part.begin;                                                            \
        const float *from = (const float *)a->src + part.begin;                                             \
        vf density;                                                                                         \
        (void)density;                                                                                      \
        EACH_VECTOR(i, n, part.end - part.begin,                                                            \
            const vf x = v_load_n(from + i, n);                                                             \
            v_store_n(y + i, expression, n););                                                              \
    }
CK_VECTOR_FUNCTION(exp, v_exp(x))
CK_VECTOR_FUNCTION(exp2, v_exp2(x, 5))
CK_VECTOR_FUNCTION(exp2_degree4, v_exp2(x, 4))
CK_VECTOR_FUNCTION(exp2_degree3, v_exp2(x, 3))
CK_VECTOR_FUNCTION(sigmoid, v_sigmoid(x, 5))
CK_VECTOR_FUNCTION(sigmoid_degree3, v_sigmoid(x, 3))
CK_VECTOR_FUNCTION(tanh, v_tanh(x))
CK_VECTOR_FUNCTION(normal_cdf, v_normal_cdf(x, &density, 5))
CK_VECTOR_FUNCTION(normal_cdf_degree3, v_normal_cdf(x, &density, 3))
#undef CK_VECTOR_FUNCTION
