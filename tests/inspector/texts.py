# ruff: noqa: E501
"""One small graph in every format, written by hand: x and w are multiplied, summed over the ranks, added to r.

``ar`` waits for ``sync``; what TorchAir's formats say of ``ar`` they say in ``_meta`` only.
"""

from __future__ import annotations

PBTXT = r"""node {
    name: "x"
    op: "Data"
    attr {
        key: "index"
        value {
            s: 'i: 0\n'
        }
    }
    attr {
        key: "[i]x"
        value {
            s: 'name: "x"\ndtype: DT_BF16\nshape {\n  dim: 8\n  dim: 64\n}\nlayout: "ND"\n'
        }
    }
    attr {
        key: "[o]y"
        value {
            s: 'name: "y"\ndtype: DT_BF16\nshape {\n  dim: 8\n  dim: 64\n}\nlayout: "ND"\nattr {\n  key: "_meta"\n  value {\n    s: "Tensor(dtype=torch.bfloat16, shape=torch.Size([512])"\n  }\n}\n'
        }
    }
}
node {
    name: "w"
    op: "Const"
    attr {
        key: "value"
        value {
            s: 't {\n  desc {\n    dtype: DT_INT32\n    shape {\n      dim: 2\n    }\n  }\n  data: "\\001\\000\\000\\000\\377\\377\\377\\377"\n}\n'
        }
    }
    attr {
        key: "[o]"
        value {
            s: 'dtype: DT_INT32\nshape {\n  dim: 2\n}\nlayout: "ND"\n'
        }
    }
}
node {
    name: "mm"
    op: "MatMul"
    input: "x:0"
    input: "w:0"
    input: ""
    attr {
        key: "transpose_x1"
        value {
            s: 'b: false\n'
        }
    }
    attr {
        key: "[i]x1"
        value {
            s: 'name: "x1"\ndtype: DT_BF16\nlayout: "ND"\n'
        }
    }
    attr {
        key: "[i]x2"
        value {
            s: 'name: "x2"\ndtype: DT_BF16\nlayout: "ND"\n'
        }
    }
    attr {
        key: "[i]bias"
        value {
            s: 'name: "bias"\nlayout: "ND"\n'
        }
    }
    attr {
        key: "[o]y"
        value {
            s: 'name: "y"\ndtype: DT_BF16\nlayout: "ND"\nattr {\n  key: "_fx_tensor_name"\n  value {\n    s: "mm-aten.mm.default.OUTPUT.0"\n  }\n}\nattr {\n  key: "_meta"\n  value {\n    s: "Tensor(dtype=torch.bfloat16, shape=torch.Size([8, s1])"\n  }\n}\n'
        }
    }
}
node {
    name: "sync"
    op: "NoOp"
}
node {
    name: "ar"
    op: "HcomAllReduce"
    input: "mm:0"
    input: "^sync"
    attr {
        key: "group"
        value {
            s: 's: "tag=ptd:0;rank_list=0,1"\n'
        }
    }
    attr {
        key: "reduction"
        value {
            s: "s: \"it's sum\"\n"
        }
    }
    attr {
        key: "sizes"
        value {
            s: 'list {\n  i: 1\n  i: -2\n  val_type: VT_LIST_INT\n}\n'
        }
    }
    attr {
        key: "[i]x"
        value {
            s: 'name: "x"\ndtype: DT_BF16\nlayout: "ND"\n'
        }
    }
    attr {
        key: "[o]y"
        value {
            s: 'name: "y"\ndtype: DT_FLOAT\nlayout: "ND"\n'
        }
    }
}
"""

TXT = r"""name: "g"
op {
  name: "x"
  type: "Data"
  attr {
    key: "index"
    value {
      i: 0
    }
  }
  input_desc {
    name: "x"
    dtype: DT_BF16
    shape {
      dim: 8
      dim: 64
    }
    layout: "ND"
  }
  output_desc {
    name: "y"
    dtype: DT_BF16
    shape {
      dim: 8
      dim: 64
    }
    layout: "ND"
  }
}
op {
  name: "ar \"quoted\""
  type: "HcomAllReduce"
  input: "x:0"
  input: "sync:-1"
  attr {
    key: "group"
    value {
      s: "tag=ptd:0;rank_list=0,1"
    }
  }
  input_desc {
    name: "x"
    dtype: DT_BF16
  }
  output_desc {
    name: "y"
    dtype: DT_BF16
    attr {
      key: "_meta"
      value {
        s: "Tensor(dtype=torch.bfloat16, shape=torch.Size([8, 64]))"
      }
    }
  }
}
op {
  name: "sync"
  type: "NoOp"
}
attr {
  key: "_output_dtypes"
  value {
    list {
      i: 27
      val_type: VT_LIST_INT
    }
  }
}
"""

GE_PROTO = r"""graph {
  name: "g"
  op {
    name: "x"
    type: "Data"
    output_desc {
      dtype: DT_FLOAT16
      shape {
        dim: 64
        dim: 512
      }
      layout: "ND"
      size: 65568
    }
  }
  op {
    name: "mm_ar_norm"
    type: "MatmulAllReduceAddRmsNorm"
    input: "x:0"
    input: "w/part:1:0"
    input: ""
    input: "r:0"
    input: "sync:-1"
    attr {
      key: "_input_name_key"
      value {
        list {
          s: "residual"
          s: "x1"
        }
      }
    }
    attr {
      key: "_input_name_value"
      value {
        list {
          i: 3
          i: 0
        }
      }
    }
    attr {
      key: "group"
      value {
        s: "hccl_tp0"
      }
    }
    attr {
      key: "pass_name"
      value {
        list {
          s: "MatmulAllReduceAddRmsNormFusionPass"
          val_type: VT_LIST_STRING
        }
      }
    }
    attr {
      key: "_datadump_original_op_names"
      value {
        list {
          s: "mm"
          s: "ar"
          s: "mm"
          val_type: VT_LIST_STRING
        }
      }
    }
    id: 12
    stream_id: 1
    output_i: 4096
    output_i: 69632
    workspace: 140000
    workspace_bytes: 512
    input_desc {
      dtype: DT_FLOAT16
      shape {
        dim: 64
        dim: -1
      }
    }
    input_desc {
    }
    input_desc {
    }
    input_desc {
    }
    output_desc {
      dtype: DT_FLOAT16
      shape {
        dim: 64
        dim: 512
      }
      layout: "FRACTAL_NZ"
      attr {
        key: "origin_format"
        value {
          s: "ND"
        }
      }
      size: 65568
    }
    output_desc {
      dtype: DT_FLOAT16
      shape {
        dim: -2
      }
      layout: "ND"
    }
    subgraph_name: "inner"
  }
  attr {
    key: "_session_graph_id"
    value {
      s: "0_1"
    }
  }
}
graph {
  name: "inner"
  op {
    name: "x"
    type: "Data"
    attr {
      key: "_parent_node_index"
      value {
        i: 0
      }
    }
  }
}
attr {
  key: "memory_size"
  value {
    i: 141312
  }
}
"""

GE_ONNX = r"""ir_version: 6
producer_name: "GE"
graph {
  node {
    output: "mm:0"
    name: "mm"
    op_type: "ge:MatMul"
    attribute {
      name: "output_desc_nums"
      i: 1
      type: INT
    }
    attribute {
      name: "output_desc_dtype:0"
      s: "DT_FLOAT16"
      type: STRING
    }
    attribute {
      name: "output_desc_shape:0"
      ints: 64
      ints: 512
      type: INTS
    }
    attribute {
      name: "output_desc_layout:0"
      s: "ND"
      type: STRING
    }
  }
  node {
    input: "mm:0"
    input: "sync:-1"
    output: "ar:0"
    name: "ar"
    op_type: "ge:HcomAllReduce"
    attribute {
      name: "group"
      s: "hccl_tp0"
      type: STRING
    }
    attribute {
      name: "id"
      i: 7
      type: INT
    }
    attribute {
      name: "output_desc_nums"
      i: 1
      type: INT
    }
    attribute {
      name: "output_desc_0"
      s: "{\"dtype\": \"DT_FLOAT16\", \"shape\": [64, 512], \"layout\": \"ND\"}"
      type: STRING
    }
    attribute {
      name: "stream_id"
      type: INT
    }
    attribute {
      name: "scale"
      type: FLOAT
      f: 0.5
    }
  }
  node {
    name: "inner"
    op_type: "subgraph"
    attribute {
      name: "graph"
      g {
        node {
          name: "deep"
          op_type: "ge:Relu"
        }
        name: "inner"
      }
      type: GRAPH
    }
  }
  name: "g"
}
"""

PYTHON = r"""# -*- coding: utf-8 -*-
from torch import tensor
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import get_default_ge_graph

x_0 = ge.Data(index=0, dtype=1, shape=[4, 64], placement="CPU", node_name="x")

# File "/models/m.py", line 55, in forward    y=a@b   ^^^
## FX Code: mm: torch.float16[4, 64]cpu = torch.ops.aten.mm.default(x: torch.float16[4, 64]cpu, x: torch.float16[4, 64]cpu)
Reshape_0 = ge.Reshape(x_0, ge.Const([64, 4], dtype=9), node_name="Reshape")
MatMul_0 = ge.MatMul(Reshape_0, x_0, None, node_name="MatMul")
Split_0, Split_1 = ge.Split(MatMul_0, -1, num_split=2, node_name="a=b, (c)")
Concat_0 = ge.ConcatV2([Split_1, Split_0], concat_dim=1, N=2, dependencies=[Reshape_0], node_name="Concat")
_ = ge.NetOutput([Concat_0], dependencies=[])
"""

READABLE = r"""graph("g"):
  %x : [#users=1] = Node[type=Data] (attrs = {index: 0})
  %a=b,(c) : [#users=2] = Node[type=Split] (inputs = (x=%x), attrs = {sizes: {1, 2}, text: "a, (b", flag: true, f: 0.5})
  %ret : [#users=1] = get_element[node=%a=b,(c)](0)
  %ret_1 : [users=0] = get_element[node=%a=b,(c)](1)
  %ar : [#users=1] = Node[type=HcomAllReduce] (inputs = (x=%ret_1), attrs = {reduction: "sum", group: "hccl_tp0"})

  return (%ar)

graph("then"):
  %y : [#users=1] = Node[type=Data] (attrs = {index: 0})
  return (output_0=%y)
"""
