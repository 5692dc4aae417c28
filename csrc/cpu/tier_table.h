/* The slots that every tier fills by the same names, included inside its table. */
.panel_pack = panel_pack, .panel_unpack = panel_unpack, .panel_linear = panel_linear,
.panel_csr = panel_csr, .panel_linear_transposed = panel_linear_transposed,
.strip_gradient = strip_gradient,
.panel_layer_norm = panel_layer_norm,
