/* Which instruction sets the processor has and the operating system saves. */
#ifndef CK_CPU_H
#define CK_CPU_H

/* isa is a table's name ("generic", "avx2", "avx512", "avx512bf16"), or "amx": bf16 tiles, which a process must also ask
 * Linux for (oneDNN does). */
int ck_cpu_supports(const char *isa);

#endif
