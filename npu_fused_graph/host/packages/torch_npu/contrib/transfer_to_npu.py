"""Stand-in for the module that, once imported, lets names of cuda mean npu."""

from npu_fused_graph.host.standin import transfer
from torch_npu import npu

transfer.install(npu)
