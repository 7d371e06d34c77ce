# ruff: noqa: E501
"""Small graphs in FX's texts, and what TorchAir writes of a captured graph, by hand."""

from __future__ import annotations

READABLE = r"""class GraphModule(torch.nn.Module):
    def forward(self, L_x_: "bf16[8, s0]", w: "bf16[s0, 16]", s0: "Sym(s0)"):
        l_x_ = L_x_

        # File: /models/m.py:7 in forward, code: y = x @ w
        mm: "bf16[8, 16]" = torch.ops.aten.mm.default(l_x_, w);  l_x_ = w = None
        view: "bf16[8*s0]" = torch.ops.aten.view.default(mm, [s0, 8], implicit = True);  s0 = None

        # File: /models/m.py:9 in topk, code: v, i = y.topk(2)
        topk = torch.ops.aten.topk.default(mm, 2);  mm = None
        getitem: "bf16[8, 2]" = topk[0]
        getitem_1: "i64[8, 2]" = topk[1];  topk = None

        # No stacktrace found for following nodes
        gather: "bf16[8, 2]" = torch.ops.aten.gather.default(view, index = getitem_1);  view = getitem_1 = None
        body = self.body
        hop: "f32[8][1]npu:0" = torch.ops.higher_order.wrap(body, (getitem, gather), dtype = torch.float32);  body = gather = None
        gather[0] = -1;  setitem = gather;  setitem = None
        neg: "bf16[8, 2]" = -getitem;  getitem = None
        half: "f16[8, 2]" = neg.half();  neg = None
        return (hop, {'half': half}, None)

    class body(torch.nn.Module):
        def forward(self, a: "bf16[8, 2]", b: "bf16[8, 2]"):
            add: "bf16[8, 2]" = torch.ops.aten.add.Tensor(a, b, alpha = 0.5);  a = b = None
            return (add,)
"""

LOG = r"""[INFO] TORCHAIR 12:00:00 something else, 100 % done
[DEBUG] TORCHAIR 12:00:01 after [noop] execution, graph is graph():
    %x : [num_users=2] = placeholder[target=x]
    %l_w_ : torch.Tensor [num_users=1] = placeholder[target=L_w_]
    %split : [num_users=2] = call_function[target=torch.ops.aten.split.Tensor](args = (%x, [2, 6], -1), kwargs = {})
    %getitem : [num_users=1] = call_function[target=operator.getitem](args = (%split, 1), kwargs = {})
    %to : [num_users=1] = call_function[target=torch.ops.aten._to_copy.default](args = (%getitem,), kwargs = {dtype: torch.float16, out: %l_w_})
    %ar : [num_users=1] = call_function[target=torch.ops._c10d_functional.all_reduce.default](args = (%to, sum, tag=ptd:0), kwargs = {})
    %silu : [num_users=1] = call_method[target=silu](args = (%ar,), kwargs = {})
    return (silu, x)
[DEBUG] TORCHAIR 12:00:02 return code 0
[DEBUG] TORCHAIR 12:00:03 after [fold] execution, graph is graph():
    %x : [num_users=1] = placeholder[target=x]
    return (x,)
"""

CODE = r"""import threading
from collections import OrderedDict

import torch
from torch._dynamo.testing import rand_strided

from torchair._acl_concrete_graph.acl_graph import AclGraph, AclGraphCacheInfo

assert_size_stride = torch._C._dynamo.guards.assert_size_stride

def forward(*args, node_info=[], is_capturing: bool = False):
    x, w, s0 = args

    global _GLOBAL_USER_TAG_TO_STREAM
    c = tensor_constants['c']
    mm = torch.ops.aten.mm.default(x, w);  w = None
    event_record = torch.npu.Event()
    event_record.record(torch.npu.current_stream())
    enter = torch.ops.air.scope_enter.default(['_user_stream_label'], ['side'])
    with torch.npu.stream(_GLOBAL_USER_TAG_TO_STREAM['side']):
        event_record.wait(torch.npu.current_stream())
        add = torch.ops.aten.add.Tensor(mm, c);  c = None
        if is_capturing:
            external_event_att = torch.npu.ExternalEvent()
            torch.npu.graph_task_group_begin(capture_stream_att)
        att = torch.ops.npu.attention.default(*(add, [s0]), **{'heads': 4})
        if is_capturing:
            handle_att = torch.npu.graph_task_group_end(capture_stream_att)
        add = None
    return (att, mm)

compile_configs = {}
acl_graph = AclGraph(fx_forward=forward, config=compile_configs)

_is_first_run = True
def kernel(*args, **kwargs):
    return acl_graph(*args, **kwargs)

def main():
    s0 = 4
    x = rand_strided((8, s0),(s0, 1),device ='npu:0',dtype =torch.bfloat16)
    w = rand_strided((64,),(1,),device ='npu:0',dtype =torch.float32)
    return kernel(x, w, s0)

if __name__ == "__main__":
    main()
"""

TASKS = r"""[
{"name":"MatMulV2_e3e2549baf4795bf56c350e970d2218a_1060","pid":"7 aclGraph","tid":"stream12","ts":0,"dur":9.5,"ph":"X","args":{"Model Id":3,"Stream Id":12,"Task Id":0,"Task Type":"KERNEL_MIX_AIC","Numblocks":24,"Task Ration":2,"Schem Mode":1}},
{"name":"EVENT_RECORD_20622287575192","pid":"7 aclGraph","tid":"stream12","ts":10,"dur":4.5,"ph":"X","args":{"Model Id":3,"Stream Id":12,"Task Id":1,"Task Type":"EVENT_RECORD"}},
{"name":"STREAM_ACTIVE","pid":"7 aclGraph","tid":"stream12","ts":20,"dur":9.5,"ph":"X","args":{"Model Id":3,"Stream Id":12,"Task Id":2,"Task Type":"STREAM_ACTIVE","Active Stream Id":14}},
{"name":"EVENT_WAIT_20622287575192","pid":"7 aclGraph","tid":"stream13","ts":0,"dur":4.5,"ph":"X","args":{"Model Id":3,"Stream Id":13,"Task Id":0,"Task Type":"EVENT_WAIT","ExtendInfo":""}},
{"name":"aiv_all_gather_bfloat16_t","pid":"7 aclGraph","tid":"stream13","ts":10,"dur":9.5,"ph":"X","args":{"Model Id":3,"Stream Id":13,"Task Id":1,"Task Type":"KERNEL_AIVEC","ExtendInfo":"{\"taskType\":\"communication\"}","Numblocks":48}},
{"name":"NOTIFY_WAIT_9","pid":"7 aclGraph","tid":"stream14","ts":0,"dur":4.5,"ph":"X","args":{"Model Id":3,"Stream Id":14,"Task Id":0,"Task Type":"NOTIFY_WAIT"}}
]
"""

SUMMARY = (
    "\ufeff目标函数,函数类型,支持状态,调用次数,输入统计,输出统计\r\n"
    'aten.mm.default,aten,已支持,3,"2次：(float16(64, 32), float16(32, 64))\n1次：(float16(4, 4), float16(4, 4))","3次：float16(64, 64)"\r\n'
    "aten.foo.default,aten,未注册,1,\"1次：(1,), {'dtype': torch.float16}\",1次：None\r\n"
    "add,builtin,未知状态，请查看源码,1,,\r\n"
)
