"""Fine-tuning a classifier while it is pruned: data, stages, metrics and checkpoints."""
