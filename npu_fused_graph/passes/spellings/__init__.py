"""How models write what is fused: norms, products, reduces. One row per spelling."""
