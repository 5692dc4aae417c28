#include "../integer.h"
#include "product.h"

#include "pool.h"

#define BLOCK_PANELS 12 /* 192 tokens of 1024 features are 0.8 MB: one core's L2 */
#define BLOCK_UNITS 4

struct product_job {
  const spt_cpu_tier *tier;
  const spt_panel_product *p;
  int64_t begin, end, n_panels, blocks;
};

static void multiply_block(void *context, int64_t task, int worker) {
  (void)worker;
  const struct product_job *job = context;
  int64_t panel = task / job->blocks * BLOCK_PANELS;
  int64_t panel_end = spt_min(panel + BLOCK_PANELS, job->n_panels);
  int64_t unit = job->begin + task % job->blocks * BLOCK_UNITS;
  int64_t unit_end = spt_min(unit + BLOCK_UNITS, job->end);
  if (job->p->strips_bf16 != NULL) {
    job->p->strips_bf16->tier->panel_linear_bf16(job->p, unit, unit_end, panel, panel_end);
  } else if (job->p->strips != NULL) {
    job->tier->panel_linear(job->p, unit, unit_end, panel, panel_end);
  } else {
    job->tier->panel_csr(job->p, unit * SPT_STRIP, spt_min(unit_end * SPT_STRIP, job->p->csr->out),
                         panel, panel_end);
  }
}

int64_t spt_product_units(const spt_panel_product *p) {
  if (p->strips_bf16 != NULL) {
    return p->strips_bf16->shape.n_strips;
  }
  return p->strips != NULL ? p->strips->n_strips : spt_ceil_div(p->csr->out, SPT_STRIP);
}

void spt_product_run(const spt_panel_product *p, int64_t begin, int64_t end, int64_t n_panels) {
  struct product_job job = {.tier = spt_cpu_tier_in_use(),
                            .p = p,
                            .begin = begin,
                            .end = end,
                            .n_panels = n_panels,
                            .blocks = spt_ceil_div(end - begin, BLOCK_UNITS)};
  spt_parallel_for(spt_ceil_div(n_panels, BLOCK_PANELS) * job.blocks, multiply_block, &job);
}
