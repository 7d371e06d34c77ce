"""The dispatch of a mixture of experts: what is one AttentionToFFN node, and what is written by hand."""
