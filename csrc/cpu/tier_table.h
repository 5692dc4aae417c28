/* The slots that every tier fills by the same names, included inside its table. A part of an
 * initializer is no program that could be formatted. */
/* clang-format off */
.panel_pack = panel_pack, .panel_unpack = panel_unpack, .panel_linear = panel_linear,
.panel_gather = panel_gather, .panel_linear_bf16 = panel_linear_bf16, .panel_narrow = panel_narrow, .panel_split = panel_split,
.panel_csr = panel_csr,
.strip_gradient = strip_gradient,
.panel_layer_norm = panel_layer_norm,
.load_row = load_row, .store_row = store_row, .softmax_row = softmax_row,
.layer_norm_row = layer_norm_row, .activate_row = activate_row, .add_row = add_row,
.dropout_row = dropout_row,
.square_columns = square_columns, .square_rows = square_rows, .fold_columns = fold_columns,
.square_roots = square_roots, .magnitudes = magnitudes, .group_values = group_values,
.narrow_factors = narrow_factors, .repeat_row = repeat_row, .narrow_row = narrow_row,
.scale_rows = scale_rows, .and_rows = and_rows,
.f64_subtract_product = f64_subtract_product, .f64_cholesky = f64_cholesky,
.f64_solve = f64_solve, .f64_dot = f64_dot,
.attention_block = attention_block,
.attention_backward_block = attention_backward_block,
