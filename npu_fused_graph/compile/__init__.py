"""The functions users compile with: get_npu_backend, enable_fusion and explain."""
