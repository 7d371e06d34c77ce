"""What the console script ``npu-fused-graph`` runs."""
