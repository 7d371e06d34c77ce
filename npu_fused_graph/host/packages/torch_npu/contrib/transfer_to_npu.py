"""Stand-in for the module that maps names of cuda to names of npu while a script runs."""

raise ImportError(
    "[run] torch_npu.contrib.transfer_to_npu: expected a script that names its devices npu, got one that maps cuda to "
    "it. Replace cuda by npu in the script."
)
