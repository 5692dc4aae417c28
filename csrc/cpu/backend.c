/* The CPU backend's table, and the choice of its tier: the best that this processor runs, unless the
 * environment variable SPATILE_CPU_TIER names another. Where it names one that does not run here
 * every op is refused, until the program selects one that does. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_features.h"
#include "ops.h"
#include "pool.h"
#include "tier.h"

static struct {
  const spt_cpu_tier *runnable[8]; /* slowest first */
  int count;
  _Atomic(const spt_cpu_tier *) in_use;
  atomic_bool refused; /* the variable's tier: `reason` tells */
  char reason[256];
} tiers;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const spt_cpu_tier *find(const char *name) {
  for (int i = 0; i < tiers.count; i++) {
    if (strcmp(tiers.runnable[i]->name, name) == 0) {
      return tiers.runnable[i];
    }
  }
  return NULL;
}

static void initialise(void) {
#if defined(SPATILE_X86_TIERS)
  spt_cpu_features cpu = spt_cpu_detect();
#if defined(SPATILE_EMULATE_AMX)
  if (cpu.avx512) {
    tiers.runnable[tiers.count++] = &spt_cpu_tier_amx_bf16; /* slower than any, so never the best */
  }
#endif
#endif
  tiers.runnable[tiers.count++] = &spt_cpu_tier_scalar;
#if defined(SPATILE_X86_TIERS)
  if (cpu.avx2) {
    tiers.runnable[tiers.count++] = &spt_cpu_tier_avx2;
  }
  if (cpu.avx512) {
    tiers.runnable[tiers.count++] = &spt_cpu_tier_avx512;
  }
#if defined(SPATILE_AVX512_BF16_TIER)
  if (cpu.avx512_bf16) {
    tiers.runnable[tiers.count++] = &spt_cpu_tier_avx512_bf16;
  }
#endif
#if defined(SPATILE_AMX_TIER)
  if (cpu.amx_bf16) {
    tiers.runnable[tiers.count++] = &spt_cpu_tier_amx_bf16;
  }
#endif
#endif
  const spt_cpu_tier *best = tiers.runnable[tiers.count - 1];
  atomic_store(&tiers.in_use, best);
  snprintf(tiers.reason, sizeof tiers.reason, "the best that this processor runs");
  const char *wanted = getenv("SPATILE_CPU_TIER");
  if (wanted == NULL || *wanted == '\0') {
    return;
  }
  const spt_cpu_tier *tier = find(wanted);
  if (tier != NULL) {
    atomic_store(&tiers.in_use, tier);
    snprintf(tiers.reason, sizeof tiers.reason, "SPATILE_CPU_TIER is '%.40s'", wanted);
    return;
  }
  atomic_store(&tiers.refused, true);
  int used = snprintf(tiers.reason, sizeof tiers.reason,
                      "SPATILE_CPU_TIER is '%.40s', expected one that runs here:", wanted);
  for (int i = 0; i < tiers.count && used < (int)sizeof tiers.reason; i++) {
    used += snprintf(tiers.reason + used, sizeof tiers.reason - (size_t)used, "%s %s",
                     i > 0 ? "," : "", tiers.runnable[i]->name);
  }
}

static spt_status usable(void *state, const char *op, spt_error *err) {
  (void)state;
  pthread_once(&once, initialise);
  if (atomic_load_explicit(&tiers.refused, memory_order_relaxed)) {
    return spt_fail(err, SPT_DEVICE_ERROR, "%s: %s", op, tiers.reason);
  }
  return SPT_OK;
}

const spt_cpu_tier *spt_cpu_tier_in_use(void) {
  pthread_once(&once, initialise);
  return atomic_load_explicit(&tiers.in_use, memory_order_relaxed);
}

void spt_cpu_load(void) { spt_pool_prepare(); }

bool spt_cpu_bf16_is_native(void) { return spt_cpu_tier_in_use()->bf16_native; }

const char *spt_cpu_tier_name(void) {
  const spt_cpu_tier *tier = spt_cpu_tier_in_use();
  return atomic_load(&tiers.refused) ? "none" : tier->name;
}

const char *spt_cpu_tier_reason(void) {
  pthread_once(&once, initialise);
  return tiers.reason;
}

int spt_cpu_tier_count(void) {
  pthread_once(&once, initialise);
  return tiers.count;
}

const char *spt_cpu_tier_at(int i) {
  pthread_once(&once, initialise);
  return tiers.runnable[i]->name;
}

spt_status spt_cpu_select_tier(const char *name, spt_error *err) {
  pthread_once(&once, initialise);
  const spt_cpu_tier *tier = find(name);
  if (tier == NULL) {
    return spt_fail(err, SPT_INVALID_VALUE,
                    "cpu: tier is '%.40s', expected one that runs here (best: '%s')", name,
                    tiers.runnable[tiers.count - 1]->name);
  }
  atomic_store(&tiers.in_use, tier);
  atomic_store(&tiers.refused, false);
  snprintf(tiers.reason, sizeof tiers.reason, "selected by the program");
  return SPT_OK;
}

int spt_num_threads(void) { return spt_pool_width(); }

spt_status spt_set_num_threads(int64_t n, spt_error *err) {
  if (n < 1 || n > 256) {
    return spt_fail(err, SPT_INVALID_VALUE, "set_num_threads: n is %lld, expected 1 to 256",
                    (long long)n);
  }
  spt_pool_resize((int)n);
  return SPT_OK;
}

const spt_backend spt_cpu_backend = {
    .abi_version = SPT_BACKEND_ABI,
    .size = sizeof(spt_backend),
    .name = "cpu",
    .usable = usable,
    .linear = spt_cpu_linear,
    .prepare = spt_cpu_prepare,
    .prepared_free = spt_cpu_prepared_free,
    .linear_backward = spt_cpu_linear_backward,
    .group_norms = spt_cpu_group_norms,
    .group_beta = spt_cpu_group_beta,
    .group_lasso = spt_cpu_group_lasso,
    .group_lasso_grad = spt_cpu_group_lasso_grad,
    .group_shrink = spt_cpu_group_shrink,
    .apply_mask = spt_cpu_apply_mask,
    .expand_mask = spt_cpu_expand_mask,
    .prune_mask = spt_cpu_prune_mask,
    .second_order_removals = spt_cpu_second_order_removals,
    .second_order_apply = spt_cpu_second_order_apply,
    .layer_norm = spt_cpu_layer_norm,
    .gelu = spt_cpu_gelu,
    .dropout = spt_cpu_dropout,
    .softmax = spt_cpu_softmax,
    .embedding = spt_cpu_embedding,
    .topk = spt_cpu_topk,
    .attention = spt_cpu_attention,
    .attention_backward = spt_cpu_attention_backward,
    .encoder_create = spt_cpu_encoder_create,
    .encoder_forward = spt_cpu_encoder_forward,
    .encoder_free = spt_cpu_encoder_free,
};
