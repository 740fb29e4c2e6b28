/* Which instruction sets the processor has and the operating system saves. */
#ifndef CK_CPU_H
#define CK_CPU_H

/* isa is a table's name ("generic", "avx2", "avx512", "avx512bf16", "amx", "neon", "neonbf16"). Tiles must be asked for as
 * well. */
int ck_cpu_supports(const char *isa);

/* Asks Linux to keep AMX's tiles for all threads of the process; asking again is harmless. 0, or an errno: ENOTSUP when
 * the kernel keeps them for nobody. */
int ck_cpu_ask_for_tiles(void);

#endif
