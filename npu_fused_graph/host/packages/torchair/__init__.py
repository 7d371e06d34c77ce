"""Makes way for the real TorchAir: whoever imports ``torchair`` gets the package of the torch_npu wheel."""

import sys
from importlib import import_module

del sys.modules[__name__]
import_module("torch_npu")
import_module("npu_fused_graph.host").load_torchair()
