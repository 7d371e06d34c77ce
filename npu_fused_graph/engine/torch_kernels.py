"""torch's own CPU kernels, called past the dispatcher.

What the stand-in of torch_npu puts in their place for scripts (host.standin.mixed_dtypes, int32_index) is of no use to
the engine, whose operands have one dtype, and costs up to 10 us a call.
"""

from __future__ import annotations

import torch

CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
"""First argument of ``call_boxed``."""
MM = torch.library.get_kernel("aten::mm", "CPU")
INDEX_COPY_ = torch.library.get_kernel("aten::index_copy_", "CPU")
