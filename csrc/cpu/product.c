#include "product.h"

#include "../integer.h"
#include "pool.h"

int64_t spt_product_units(const spt_panel_product *p) {
  if (p->strips_bf16 != NULL) {
    return p->strips_bf16->shape.n_strips;
  }
  return p->strips != NULL ? p->strips->n_strips : spt_ceil_div(p->csr->out, SPT_STRIP);
}

int64_t spt_product_blocks(int64_t units, int64_t n_panels) {
  return spt_ceil_div(n_panels, SPT_BLOCK_PANELS) * spt_ceil_div(units, SPT_BLOCK_UNITS);
}

spt_product_block spt_product_block_at(int64_t units, int64_t n_panels, int64_t i) {
  int64_t across = spt_ceil_div(units, SPT_BLOCK_UNITS);
  int64_t panel = i / across * SPT_BLOCK_PANELS, unit = i % across * SPT_BLOCK_UNITS;
  return (spt_product_block){.begin = unit,
                             .end = spt_min(unit + SPT_BLOCK_UNITS, units),
                             .panel = panel,
                             .panel_end = spt_min(panel + SPT_BLOCK_PANELS, n_panels)};
}

void spt_product_run_block(const spt_panel_product *p, int64_t begin, int64_t end, int64_t panel,
                           int64_t panel_end) {
  if (p->strips_bf16 != NULL) {
    p->strips_bf16->tier->panel_linear_bf16(p, begin, end, panel, panel_end);
  } else if (p->strips != NULL) {
    spt_cpu_tier_in_use()->panel_linear(p, begin, end, panel, panel_end);
  } else {
    spt_cpu_tier_in_use()->panel_csr(p, begin * SPT_STRIP, spt_min(end * SPT_STRIP, p->csr->out),
                                     panel, panel_end);
  }
}

struct product_job {
  const spt_panel_product *p;
  int64_t first, units, n_panels;
};

static void multiply_block(void *context, int64_t task, int worker) {
  (void)worker;
  const struct product_job *job = context;
  spt_product_block b = spt_product_block_at(job->units, job->n_panels, task);
  spt_product_run_block(job->p, job->first + b.begin, job->first + b.end, b.panel, b.panel_end);
}

void spt_product_run(const spt_panel_product *p, int64_t begin, int64_t end, int64_t n_panels) {
  struct product_job job = {p, begin, end - begin, n_panels};
  spt_parallel_for(spt_product_blocks(end - begin, n_panels), multiply_block, &job);
}
