// Kernels that are wrong in one way each, beside the same kernel without the fault: y = 2 x of 64 floats, whatever else.
//
// Tiling key 0: the case as it should be; 1: with its fault, which is noticed at the line marked with its number.
#include <csignal>

#include "kernel_operator.h"

using namespace AscendC;

namespace {

struct Tiling {
    uint64_t number;
};

constexpr int COUNT = 64;

struct Lab {
    TPipe pipe;
    TBuf<> a_buffer, b_buffer, c_buffer;
    LocalTensor<float> a, b, c;
    GlobalTensor<float> x, y, z, w;

    Lab(GM_ADDR x_, GM_ADDR y_, GM_ADDR z_, GM_ADDR w_) {
        x.SetGlobalBuffer((__gm__ float*)x_);
        y.SetGlobalBuffer((__gm__ float*)y_);
        z.SetGlobalBuffer((__gm__ float*)z_);
        w.SetGlobalBuffer((__gm__ float*)w_);
    }
    void Memory() {
        pipe.InitBuffer(a_buffer, 512);
        pipe.InitBuffer(b_buffer, 512);
        pipe.InitBuffer(c_buffer, 512);
        a = a_buffer.Get<float>();
        b = b_buffer.Get<float>();
        c = c_buffer.Get<float>();
    }
    void Load() {
        DataCopy(a, x, COUNT);
        SetFlag<HardEvent::MTE2_V>(0);
        WaitFlag<HardEvent::MTE2_V>(0);
    }
    void Double() { Muls(b, a, 2.0f, COUNT); }
    void Store() {
        SetFlag<HardEvent::V_MTE3>(0);
        WaitFlag<HardEvent::V_MTE3>(0);
        DataCopy(y, b, COUNT);
    }
    void Rest() {  // what every case ends with, if it has nothing of its own
        Load();
        Double();
        Store();
    }
    template <HardEvent event>
    void Order() {
        SetFlag<event>(1);
        WaitFlag<event>(1);
    }
};

template <bool is_wrong>
void Run(Lab& lab, int number) {
    auto& [pipe, a_buffer, b_buffer, c_buffer, a, b, c, x, y, z, w] = lab;
    const bool is_first = GetBlockIdx() == 0;
    lab.Memory();
    switch (number) {
        case 0:  // V reads before MTE2 has loaded
            DataCopy(a, x, COUNT);
            if (!is_wrong) lab.Order<HardEvent::MTE2_V>();
            lab.Double();  // case 0, in Double
            if (is_wrong) lab.Order<HardEvent::MTE2_V>();
            return lab.Store();
        case 1:  // MTE3 stores before V has computed
            lab.Load();
            lab.Double();
            if (!is_wrong) lab.Order<HardEvent::V_MTE3>();
            return DataCopy(y, b, COUNT);  // case 1
        case 2:                            // MTE2 loads over what V still reads
            lab.Load();
            lab.Double();
            if (!is_wrong) lab.Order<HardEvent::V_MTE2>();
            DataCopy(a, x, COUNT);  // case 2
            lab.Order<HardEvent::MTE2_V>();
            return lab.Store();
        case 3:  // dependent vector instructions without a barrier
            lab.Load();
            Muls(b, a, 4.0f, COUNT);
            if (!is_wrong) PipeBarrier<PIPE_V>();
            Muls(b, b, 0.5f, COUNT);  // case 3
            return lab.Store();
        case 4:  // the scalar unit reads before V has computed
            lab.Load();
            lab.Double();
            if (!is_wrong) lab.Order<HardEvent::V_S>();
            if (b.GetValue(1) != 2.0f) return;  // case 4
            return lab.Store();
        case 5:  // MTE3 stores before the scalar unit has written
            lab.Load();
            lab.Double();
            lab.Order<HardEvent::V_S>();
            b.SetValue(0, b.GetValue(0));
            if (!is_wrong) lab.Order<HardEvent::S_MTE3>();
            return DataCopy(y, b, COUNT);  // case 5
        case 6:                            // the wrong pair of pipes
            DataCopy(a, x, COUNT);
            if (is_wrong) {
                lab.Order<HardEvent::MTE2_MTE3>();
            } else {
                lab.Order<HardEvent::MTE2_V>();
            }
            lab.Double();  // case 6, in Double
            return lab.Store();
        case 7:                                            // a flag nobody sets
            if (is_wrong) WaitFlag<HardEvent::V_MTE2>(0);  // case 7
            return lab.Rest();
        case 8:  // a flag set twice
            lab.Load();
            lab.Double();
            if (is_wrong) SetFlag<HardEvent::V_MTE3>(0);
            return lab.Store();  // case 8, in Store
        case 9:                  // a flag left set
            lab.Rest();
            if (is_wrong) SetFlag<HardEvent::MTE3_V>(0);  // case 9
            return;
        case 10:  // an event id of the framework
            lab.Load();
            lab.Double();
            SetFlag<HardEvent::V_MTE3>(is_wrong ? 6 : 5);  // case 10
            WaitFlag<HardEvent::V_MTE3>(is_wrong ? 6 : 5);
            return DataCopy(y, b, COUNT);
        case 11:  // memory nobody has written
            lab.Load();
            if (!is_wrong) Duplicate(c, 0.0f, COUNT);
            PipeBarrier<PIPE_V>();
            Add(b, a, a, COUNT);
            Add(c, c, a, COUNT);  // case 11
            return lab.Store();
        case 12:  // behind the end of a buffer
            lab.Load();
            lab.Double();
            Duplicate(c, 0.0f, is_wrong ? 136 : 128);  // case 12
            return lab.Store();
        case 13:  // a tensor that does not begin at a block
            lab.Load();
            Muls(b[is_wrong ? 4 : 8], a, 2.0f, 8);  // case 13
            PipeBarrier<PIPE_V>();
            lab.Double();
            return lab.Store();
        case 14:  // a copy of no whole blocks
            lab.Rest();
            return DataCopy(z, a, is_wrong ? 12 : 16);  // case 14
        case 15:                                        // behind the end of a tensor in global memory
            DataCopy(a, x[is_wrong ? 8 : 0], COUNT);    // case 15
            lab.Order<HardEvent::MTE2_V>();
            lab.Double();
            return lab.Store();
        case 16:  // an input is written
            lab.Rest();
            return DataCopy(is_wrong ? x : z, a, COUNT);  // case 16
        case 17:                                          // an output is read that nobody has written
            if (!is_wrong) {
                lab.Rest();
                lab.Order<HardEvent::MTE3_MTE2>();
            }
            DataCopy(c, y, COUNT);  // case 17
            return lab.Rest();
        case 18:                                                       // more than there is
            pipe.InitBuffer(*new TBuf<>, is_wrong ? 186000 : 185000);  // case 18
            return lab.Rest();
        case 19: {  // a tensor of a queue is not freed
            TQue<TPosition::VECIN, 1> queue;
            pipe.InitBuffer(queue, 1, 256);
            LocalTensor<float> t = queue.AllocTensor<float>();
            DataCopy(t, x, COUNT);
            queue.EnQue(t);
            t = queue.DeQue<float>();
            Muls(b, t, 2.0f, COUNT);
            lab.Store();
            if (!is_wrong) queue.FreeTensor(t);
            return;
        }
        case 20: {  // a queue with no memory left
            TQue<TPosition::VECIN, 1> queue;
            pipe.InitBuffer(queue, is_wrong ? 1 : 2, 256);
            LocalTensor<float> t = queue.AllocTensor<float>();
            LocalTensor<float> u = queue.AllocTensor<float>();  // case 20
            queue.FreeTensor(t);
            queue.FreeTensor(u);
            return lab.Rest();
        }
        case 21: {  // used after it was freed
            TQue<TPosition::VECIN, 1> queue;
            pipe.InitBuffer(queue, 1, 256);
            LocalTensor<float> t = queue.AllocTensor<float>();
            DataCopy(t, x, COUNT);
            queue.EnQue(t);
            t = queue.DeQue<float>();
            if (is_wrong) queue.FreeTensor(t);
            Muls(b, t, 2.0f, COUNT);  // case 21
            if (!is_wrong) queue.FreeTensor(t);
            return lab.Store();
        }
        case 22: {  // taken out of an empty queue
            TQue<TPosition::VECIN, 1> queue;
            pipe.InitBuffer(queue, 1, 256);
            LocalTensor<float> t = queue.AllocTensor<float>();
            DataCopy(t, x, COUNT);
            if (!is_wrong) queue.EnQue(t);
            t = queue.DeQue<float>();  // case 22
            queue.FreeTensor(t);
            return lab.Rest();
        }
        case 23: {  // used while it is in its queue
            TQue<TPosition::VECOUT, 1> queue;
            pipe.InitBuffer(queue, 1, 256);
            lab.Load();
            LocalTensor<float> t = queue.AllocTensor<float>();
            Muls(t, a, 2.0f, COUNT);
            queue.EnQue(t);
            LocalTensor<float> u = is_wrong ? t : queue.DeQue<float>();
            DataCopy(y, u, COUNT);  // case 23
            if (is_wrong) u = queue.DeQue<float>();
            return queue.FreeTensor(u);
        }
        case 24: {  // freed twice
            TQue<TPosition::VECIN, 1> queue;
            pipe.InitBuffer(queue, 1, 256);
            LocalTensor<float> t = queue.AllocTensor<float>();
            queue.FreeTensor(t);
            if (is_wrong) queue.FreeTensor(t);  // case 24
            return lab.Rest();
        }
        case 25: {  // into another queue
            TQue<TPosition::VECIN, 1> one, two;
            pipe.InitBuffer(one, 1, 256);
            pipe.InitBuffer(two, 1, 256);
            LocalTensor<float> t = one.AllocTensor<float>();
            if (is_wrong) two.EnQue(t);  // case 25
            one.FreeTensor(t);
            return lab.Rest();
        }
        case 26:  // a repeat stride of more than 8 bits
            lab.Load();
            Muls(b, a, 2.0f, uint64_t{8}, 8, {1, 1, static_cast<int>(is_wrong) * 256 + 1, 1});  // case 26
            return lab.Store();
        case 27:  // a mask of no lane
            lab.Load();
            Muls(b, a, 2.0f, uint64_t{is_wrong ? 0u : 64u}, 1, {1, 1, 8, 8});  // case 27
            return lab.Store();
        case 28:  // operands that overlap in part
            lab.Load();
            lab.Double();
            Muls(c[is_wrong ? 8 : 64], a, 2.0f, COUNT);
            PipeBarrier<PIPE_V>();
            Muls(c, c[is_wrong ? 8 : 64], 2.0f, COUNT);  // case 28
            return lab.Store();
        case 29:  // atomic addition left on
            lab.Rest();
            if (is_wrong) SetAtomicAdd<float>();
            return;
        case 30:  // a rounding mode these types do not have
            lab.Load();
            lab.Double();
            Cast(c.ReinterpretCast<bfloat16_t>(), a, is_wrong ? RoundMode::CAST_NONE : RoundMode::CAST_RINT, COUNT);  // case 30
            return lab.Store();
        case 31:  // comparison of a rest
            lab.Load();
            lab.Double();
            Compare(c.ReinterpretCast<uint8_t>(), a, a, CMPMODE::EQ, is_wrong ? 32 : 64);  // case 31
            return lab.Store();
        case 32: {  // a reduction with too little work space
            lab.Load();
            lab.Double();
            LocalTensor<float> work = c[64];
            if (is_wrong) work.SetSize(4);
            ReduceSum(c, a, work, COUNT);  // case 32
            return lab.Store();
        }
        case 33:  // the other core's part, with nothing between
            if (!is_first) {
                lab.Rest();
            }
            if (!is_wrong) SyncAll<true>();
            if (is_first) {
                lab.Rest();  // case 33, in Store
            }
            return;
        case 34:  // a core that does not come to SyncAll
            lab.Load();
            lab.Double();
            if (is_first) lab.Store();
            if (!is_wrong || is_first) SyncAll<true>();  // case 34
            return;
        case 35:  // through the data cache, which may hold an earlier kernel's line
            if (!is_wrong) DataCacheCleanAndInvalid<float, CacheLine::SINGLE_CACHE_LINE, DcciDst::CACHELINE_OUT>(x);
            if (x.GetValue(0) != x.GetValue(0)) return;  // case 35
            return lab.Rest();
        case 36:  // from the data cache, after somebody has written
            DataCacheCleanAndInvalid<float, CacheLine::ENTIRE_DATA_CACHE>(w);
            if (w.GetValue(0) > 1e9f) return;
            lab.Order<HardEvent::S_MTE3>();
            Duplicate(c, 3.0f, COUNT);
            lab.Order<HardEvent::V_MTE3>();
            DataCopy(w, c, 8);
            lab.Order<HardEvent::MTE3_S>();
            if (!is_wrong) DataCacheCleanAndInvalid<float, CacheLine::SINGLE_CACHE_LINE>(w);
            if (w.GetValue(0) > 1e9f) return;  // case 36
            return lab.Rest();
        case 37:  // only in the data cache
            DataCacheCleanAndInvalid<float, CacheLine::ENTIRE_DATA_CACHE>(w);
            w.SetValue(0, 1.0f);
            if (!is_wrong) DataCacheCleanAndInvalid<float, CacheLine::SINGLE_CACHE_LINE>(w);
            return lab.Rest();
        case 38:  // a copy of no whole elements
            lab.Load();
            lab.Double();
            return [&] {
                SetFlag<HardEvent::V_MTE3>(0);
                WaitFlag<HardEvent::V_MTE3>(0);
                DataCopyPad(y, b, {1, static_cast<uint32_t>(is_wrong ? 255 : 256), 0, 0, 0});  // case 38
            }();
        case 39: {  // padding that has no value enters a sum
            DataCopyPadExtParams<float> pad(!is_wrong, 0, 3, 0.0f);
            DataCopyPad(c, x, {1, 5 * 4, 0, 0, 0}, pad);
            lab.Order<HardEvent::MTE2_V>();
            Muls(c, c, 2.0f, 8);  // case 39
            return lab.Rest();
        }
        case 40:  // two stores to one place, in no order
            lab.Rest();
            if (!is_wrong) PipeBarrier<PIPE_MTE3>();
            return DataCopy(y, b, COUNT);  // case 40
        case 41:                           // a load of what is still being stored
            lab.Rest();
            if (!is_wrong) lab.Order<HardEvent::MTE3_MTE2>();
            return DataCopy(c, y, COUNT);  // case 41
        case 42: {                         // an int32 to half without its scale
            lab.Load();
            lab.Double();
            LocalTensor<int32_t> i = c.ReinterpretCast<int32_t>();
            Cast(i, a, RoundMode::CAST_RINT, COUNT);
            PipeBarrier<PIPE_V>();
            if (!is_wrong) SetDeqScale(half(1.0f));
            Cast(i.ReinterpretCast<half>(), i, RoundMode::CAST_NONE, COUNT);  // case 42
            return lab.Store();
        }
        case 43:  // more event ids than there are
            for (int i = 0; i < (is_wrong ? 9 : 8); ++i) {
                pipe.AllocEventID<HardEvent::V_MTE2>();  // case 43
            }
            for (int i = 0; i < 8; ++i) {
                pipe.ReleaseEventID<HardEvent::V_MTE2>(static_cast<TEventID>(i));
            }
            return lab.Rest();
        case 44:  // a pointer behind the end
            if (reinterpret_cast<volatile float*>(x.GetPhyAddr(0))[is_wrong ? COUNT : 0] > 1e9f) return;
            return lab.Rest();
        case 45: {  // deeper than the queue is
            TQue<TPosition::VECIN, 1> queue;
            pipe.InitBuffer(queue, 2, 256);
            LocalTensor<float> t = queue.AllocTensor<float>();
            LocalTensor<float> u = queue.AllocTensor<float>();
            queue.EnQue(t);
            if (!is_wrong) t = queue.DeQue<float>();
            queue.EnQue(u);  // case 45
            u = queue.DeQue<float>();
            queue.FreeTensor(t);
            queue.FreeTensor(u);
            return lab.Rest();
        }
        case 46:                                                                                                               // padding of more than a block
            DataCopyPad(a, x, {1, 256, 0, 0, 0}, DataCopyPadExtParams<float>(true, static_cast<int>(is_wrong) * 9, 0, 0.0f));  // case 46
            lab.Order<HardEvent::MTE2_V>();
            lab.Double();
            return lab.Store();
        case 47:  // an addition to what nobody has written
            lab.Load();
            lab.Double();
            if (!is_first) {
                lab.Store();
                Duplicate(c, 1.0f, COUNT);
            }
            SyncAll<true>();
            if (is_first) {
                if (!is_wrong) return lab.Store();
                SetAtomicAdd<float>();
                SetFlag<HardEvent::V_MTE3>(0);
                WaitFlag<HardEvent::V_MTE3>(0);
                DataCopy(z, b, COUNT);  // case 47
                SetAtomicNone();
            }
            return;
        case 48:  // a flag between cores that is not behind the data
            if (!is_first) {
                lab.Rest();
            }
            if (is_wrong) {
                CrossCoreSetFlag<0, PIPE_V>(3);
            } else {
                CrossCoreSetFlag<0, PIPE_MTE3>(3);
            }
            CrossCoreWaitFlag(3);
            if (is_first) {
                DataCopy(a, y, COUNT);  // case 48
                lab.Order<HardEvent::MTE2_MTE3>();
                PipeBarrier<PIPE_ALL>();
                Muls(b, a, 1.0f, COUNT);
                lab.Store();
            }
            return;
        case 49:  // a flag between cores that nobody waits for
            lab.Rest();
            CrossCoreSetFlag<0, PIPE_MTE3>(0);
            if (!is_wrong) CrossCoreWaitFlag(0);
            return;
        case 50:  // a flag between cores that is the framework's
            lab.Rest();
            CrossCoreSetFlag<0, PIPE_MTE3>(is_wrong ? 11 : 10);  // case 50
            return CrossCoreWaitFlag(is_wrong ? 11 : 10);
        case 51:  // a flag between cores set more often than its counter holds
            lab.Rest();
            for (int i = 0; i < (is_wrong ? 16 : 15); ++i) {
                CrossCoreSetFlag<0, PIPE_MTE3>(1);  // case 51
            }
            for (int i = 0; i < 15; ++i) {
                CrossCoreWaitFlag(1);
            }
            return;
        case 52:  // a flag between cores that one core does not set
            if (is_first) lab.Rest();
            if (is_first || !is_wrong) CrossCoreSetFlag<0, PIPE_MTE3>(2);
            if (is_first || !is_wrong) CrossCoreWaitFlag(2);  // case 52
            return;
        case 53: {  // one event id for two flags in flight
            lab.Load();
            lab.Double();
            const int first = pipe.FetchEventID<HardEvent::V_MTE3>();
            SetFlag<HardEvent::V_MTE3>(first);
            const int second = is_wrong ? static_cast<int>(pipe.FetchEventID<HardEvent::V_MTE3>()) : 5;
            SetFlag<HardEvent::V_MTE3>(second);  // case 53
            WaitFlag<HardEvent::V_MTE3>(first);
            WaitFlag<HardEvent::V_MTE3>(second);
            return DataCopy(y, b, COUNT);
        }
        case 54:  // two cores write words of one line of the cache
            DataCacheCleanAndInvalid<float, CacheLine::ENTIRE_DATA_CACHE>(w);
            w.SetValue(GetBlockIdx() * (is_wrong ? 1 : 16), 1.0f);
            DataCacheCleanAndInvalid<float, CacheLine::ENTIRE_DATA_CACHE>(w);  // case 54
            if (is_first) lab.Rest();
            return;
        case 55:  // added to what another core is still writing
            lab.Load();
            lab.Double();
            Duplicate(c, 0.0f, COUNT);
            PipeBarrier<PIPE_ALL>();
            if (is_first) DataCopy(y, c, COUNT);
            PipeBarrier<PIPE_ALL>();
            if (!is_wrong) SyncAll<true>();
            if (!is_first) {
                SetAtomicAdd<float>();
                DataCopy(y, b, COUNT);  // case 55
                SetAtomicNone();
            }
            return;
        case 56:  // what another core has added is read
            lab.Load();
            lab.Double();
            Duplicate(c, 0.0f, COUNT);
            PipeBarrier<PIPE_ALL>();
            if (is_first) DataCopy(y, c, COUNT);
            PipeBarrier<PIPE_ALL>();
            SyncAll<true>();
            if (!is_first) {
                SetAtomicAdd<float>();
                DataCopy(y, b, COUNT);
                SetAtomicNone();
            }
            PipeBarrier<PIPE_ALL>();
            if (!is_wrong) SyncAll<true>();
            if (is_first) DataCopy(a, y, COUNT);  // case 56
            return;
        case 57:  // memory adds numbers of another type
            lab.Rest();
            PipeBarrier<PIPE_ALL>();
            Duplicate(c, 0.0f, COUNT);
            PipeBarrier<PIPE_ALL>();
            DataCopy(z, c, COUNT);
            PipeBarrier<PIPE_ALL>();
            SetAtomicAdd<float>();
            if (is_wrong) {
                GlobalTensor<half> halves;
                halves.SetGlobalBuffer(reinterpret_cast<half*>(z.GetPhyAddr(0)));
                DataCopy(halves, c.ReinterpretCast<half>(), COUNT);  // case 57
            } else {
                DataCopy(z, c, COUNT);
            }
            return SetAtomicNone();
        case 58: {  // a value and its index take twice the work space
            lab.Load();
            lab.Double();
            LocalTensor<float> work = c[64];
            work.SetSize(is_wrong ? 7 : 8);
            ReduceMax(c, a, work, COUNT, false);  // case 58
            return lab.Store();
        }
        case 59:  // a value and its index at an odd place
            lab.Load();
            lab.Double();
            WholeReduceMax(c[is_wrong ? 1 : 2], a, 64, 1, 1, 1, 8);  // case 59
            return lab.Store();
        case 60: {  // a scalar across its own size
            lab.Load();
            lab.Double();
            lab.Order<HardEvent::V_S>();
            LocalTensor<half> odd = b.ReinterpretCast<half>()[is_wrong ? 1 : 2];
            if (odd.ReinterpretCast<float>().GetValue(0) > 1e30f) return;  // case 60
            return lab.Store();
        }
        case 61: {  // beyond a piece of a buffer, not beyond the buffer
            lab.Load();
            lab.Double();
            LocalTensor<float> piece = c_buffer.GetWithOffset<float>(64, 0);
            Duplicate(piece, 0.0f, is_wrong ? 72 : 64);  // case 61
            return lab.Store();
        }
        case 62:  // SyncAll with cube cores that are not there
            lab.Rest();
            if (is_wrong) SyncAll<false>();  // case 62
            return SyncAll<true>();
        case 63:  // accumulated into the first source
            lab.Load();
            Duplicate(c, 0.0f, COUNT);
            lab.Double();
            PipeBarrier<PIPE_V>();
            if (is_wrong) {
                Max(c, c, a, uint64_t{8}, 4, {1, 1, 1, 0, 0, 1});  // case 63
            } else {
                Max(c, a, c, uint64_t{8}, 4, {1, 1, 1, 0, 1, 0});
            }
            return lab.Store();
        case 64:  // a reduction in place whose results run over what is still to be read
            lab.Load();
            lab.Double();
            Duplicate(c, 1.0f, 128);
            PipeBarrier<PIPE_V>();
            WholeReduceSum(c, c, 8, 3, is_wrong ? 20 : 1, 1, 1);  // case 64
            return lab.Store();
        case 65:  // two words for a mask of 64 lanes
            lab.Load();
            return [&] {
                uint64_t mask[2] = {~uint64_t{0}, is_wrong ? uint64_t{1} : uint64_t{0}};
                Muls(b, a, 2.0f, mask, 1, {1, 1, 8, 8});  // case 65
                lab.Store();
            }();
        case 66:  // a tensor of before Reset
            lab.Load();
            lab.Double();
            lab.Store();
            lab.Order<HardEvent::MTE3_MTE2>();
            PipeBarrier<PIPE_ALL>();
            pipe.Reset();
            if (!is_wrong) lab.Memory();
            return DataCopy(a, x, COUNT);  // case 66
        case 67:                           // a flag of a pipe that vector cores do not have
            lab.Rest();
            if (is_wrong) SetFlag<HardEvent::MTE1_M>(0);  // case 67
            return;
        case 68: {  // an id given back while its flag is set
            lab.Load();
            lab.Double();
            const int id = pipe.AllocEventID<HardEvent::V_MTE3>();
            SetFlag<HardEvent::V_MTE3>(id);
            if (is_wrong) pipe.ReleaseEventID<HardEvent::V_MTE3>(id);  // case 68
            WaitFlag<HardEvent::V_MTE3>(id);
            pipe.ReleaseEventID<HardEvent::V_MTE3>(id);
            return DataCopy(y, b, COUNT);
        }
        case 69:  // a loop without end
            lab.Load();
            lab.Order<HardEvent::MTE2_S>();
            while (is_wrong) a.GetValue(0);  // case 69
            lab.Double();
            return lab.Store();
        case 70:  // Ctrl-C
            if (is_wrong) raise(SIGINT);
            return lab.Rest();
        case 71: {  // an id that is kept
            const auto id = pipe.AllocEventID<HardEvent::V_MTE2>();
            if (!is_wrong) pipe.ReleaseEventID<HardEvent::V_MTE2>(id);
            return lab.Rest();
        }
        default:
            lab.Rest();
    }
}

}  // namespace

extern "C" __global__ __aicore__ void wrong(GM_ADDR x, GM_ADDR y, GM_ADDR z, GM_ADDR w, GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(Tiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    GET_TILING_DATA(data, tiling);
    Lab lab(x, y, z, w);
    const int number = static_cast<int>(data.number);
    if (TILING_KEY_IS(0)) {
        Run<false>(lab, number);
    } else if (TILING_KEY_IS(1)) {
        Run<true>(lab, number);
    }
}
