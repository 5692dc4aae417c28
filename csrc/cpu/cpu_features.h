#ifndef SPATILE_CPU_FEATURES_H
#define SPATILE_CPU_FEATURES_H
#include <stdbool.h>

typedef struct spt_cpu_features {
  bool avx2, avx512, avx512_bf16, amx_bf16;
} spt_cpu_features;

/* Asks the system for this process's use of AMX where the processor has it. */
spt_cpu_features spt_cpu_detect(void);

#endif
