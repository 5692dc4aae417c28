/* y = act(w · x + bias) + residual, w being CSR. After linear.h, whose epilogue this uses. */

static void panel_csr(const spt_panel_product *p, int64_t row_begin, int64_t row_end,
                      int64_t panel_begin, int64_t panel_end) {
  const spt_csr *w = p->csr;
  for (int64_t row = row_begin; row < row_end; row++) {
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
      float sum[SPT_LANES] = {0};
      for (int64_t i = w->row_ptr[row]; i < w->row_ptr[row + 1]; i++) {
        const float *x = p->x + panel * p->x_stride + (int64_t)w->col[i] * SPT_LANES;
        for (int l = 0; l < SPT_LANES; l++) {
          sum[l] += w->values[i] * x[l];
        }
      }
      int64_t at = (row - p->first_row) * SPT_LANES;
      finish_row(p->y + panel * p->y_stride + at, sum,
                 p->residual != NULL ? p->residual + panel * p->residual_stride + at : NULL,
                 p->bias != NULL ? p->bias[row] : 0.0f, p->activation);
    }
  }
}
