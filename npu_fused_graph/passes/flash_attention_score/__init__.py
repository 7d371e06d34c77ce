"""Attention as models write it -> one FlashAttentionScore."""
