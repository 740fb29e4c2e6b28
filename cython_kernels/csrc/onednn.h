/* bf16 products by oneDNN 3 where a libdnnl is found at run time; see onednn.c. */
#ifndef CK_ONEDNN_H
#define CK_ONEDNN_H

#include "kernels.h"

typedef struct { int major, minor, patch, has_amx; } ck_onednn_facts;

/* Load the library. 0, with its facts; or -1 and why not in `problem`. Once it is loaded it stays. */
int ck_onednn_open(const char *path, ck_onednn_facts *facts, char *problem, int64_t problem_size);

/* The table `own`, with its bf16 products computed by the library, and the rest its own. */
const ck_table *ck_onednn_table(const ck_table *own);

/* Shapes that were asked for, and those of them that are left to the own kernels. */
void ck_onednn_count(int64_t *shapes, int64_t *refused);

#endif
