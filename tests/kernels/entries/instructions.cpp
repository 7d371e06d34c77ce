// One instruction of the vector unit or of a copy per case: x of 512 floats, or of what they are read as, to y.
#include "kernel_operator.h"

using namespace AscendC;

namespace {

struct Tiling {
    uint64_t number;
};

constexpr int BYTES = 2048;

struct Bench {
    TPipe pipe;
    TBuf<> x_buffer, y_buffer, work_buffer;
    GlobalTensor<uint8_t> x, y;

    Bench(GM_ADDR x_, GM_ADDR y_) {
        x.SetGlobalBuffer((__gm__ uint8_t*)x_);
        y.SetGlobalBuffer((__gm__ uint8_t*)y_);
        pipe.InitBuffer(x_buffer, BYTES);
        pipe.InitBuffer(y_buffer, BYTES);
        pipe.InitBuffer(work_buffer, BYTES);
        DataCopy(x_buffer.Get<uint8_t>(), x, BYTES);
        SetFlag<HardEvent::MTE2_V>(0);
        WaitFlag<HardEvent::MTE2_V>(0);
        Duplicate(y_buffer.Get<float>(), 0.0f, BYTES / 4);
        Duplicate(work_buffer.Get<float>(), 0.0f, BYTES / 4);
        PipeBarrier<PIPE_V>();
        SetFlag<HardEvent::V_MTE2>(0);
        WaitFlag<HardEvent::V_MTE2>(0);
        SetFlag<HardEvent::MTE2_MTE3>(0);
        WaitFlag<HardEvent::MTE2_MTE3>(0);
    }
    ~Bench() noexcept(false) {
        if (is_stored) return;
        SetFlag<HardEvent::V_MTE3>(0);
        WaitFlag<HardEvent::V_MTE3>(0);
        DataCopy(y, y_buffer.Get<uint8_t>(), BYTES);
    }
    template <typename T>
    LocalTensor<T> In() { return x_buffer.Get<T>(); }
    template <typename T>
    LocalTensor<T> Out() { return y_buffer.Get<T>(); }
    template <typename T>
    LocalTensor<T> Work() { return work_buffer.Get<T>(); }
    bool is_stored = false;
};

using Case = void (*)(Bench&);

template <typename D, typename S, RoundMode mode>
void CastTo(Bench& b) { Cast(b.Out<D>(), b.In<S>(), mode, 250); }

struct Named {
    const char* name;
    Case run;
};

uint64_t EVERY_OTHER[] = {0x5555555555555555, 0x5555555555555555};

const Named CASES[] = {
    {"add half", [](Bench& b) { Add(b.Out<half>(), b.In<half>(), b.In<half>()[512], 500); }},
    {"sub float", [](Bench& b) { Sub(b.Out<float>(), b.In<float>(), b.In<float>()[256], 250); }},
    {"mul half", [](Bench& b) { Mul(b.Out<half>(), b.In<half>(), b.In<half>()[512], 500); }},
    {"mul int32", [](Bench& b) { Mul(b.Out<int32_t>(), b.In<int32_t>(), b.In<int32_t>()[256], 250); }},
    {"max float", [](Bench& b) { Max(b.Out<float>(), b.In<float>(), b.In<float>()[256], 250); }},
    {"min int16", [](Bench& b) { Min(b.Out<int16_t>(), b.In<int16_t>(), b.In<int16_t>()[512], 500); }},
    {"div half", [](Bench& b) { Div(b.Out<half>(), b.In<half>(), b.In<half>()[512], 500); }},
    {"div float", [](Bench& b) { Div(b.Out<float>(), b.In<float>(), b.In<float>()[256], 250); }},
    {"and uint16", [](Bench& b) { And(b.Out<uint16_t>(), b.In<uint16_t>(), b.In<uint16_t>()[512], 500); }},
    {"or int16", [](Bench& b) { Or(b.Out<int16_t>(), b.In<int16_t>(), b.In<int16_t>()[512], 500); }},
    {"adds float", [](Bench& b) { Adds(b.Out<float>(), b.In<float>(), 0.1f, 500); }},
    {"muls half", [](Bench& b) { Muls(b.Out<half>(), b.In<half>(), half(0.1f), 1000); }},
    {"maxs int32", [](Bench& b) { Maxs(b.Out<int32_t>(), b.In<int32_t>(), -5, 500); }},
    {"mins float", [](Bench& b) { Mins(b.Out<float>(), b.In<float>(), 0.25f, 500); }},
    {"exp float", [](Bench& b) { Exp(b.Out<float>(), b.In<float>(), 500); }},
    {"ln float", [](Bench& b) { Ln(b.Out<float>(), b.In<float>(), 500); }},
    {"sqrt half", [](Bench& b) { Sqrt(b.Out<half>(), b.In<half>(), 1000); }},
    {"abs float", [](Bench& b) { Abs(b.Out<float>(), b.In<float>(), 500); }},
    {"relu half", [](Bench& b) { Relu(b.Out<half>(), b.In<half>(), 1000); }},
    {"rsqrt float", [](Bench& b) { Rsqrt(b.Out<float>(), b.In<float>(), 500); }},
    {"reciprocal half", [](Bench& b) { Reciprocal(b.Out<half>(), b.In<half>(), 1000); }},
    {"axpy float half", [](Bench& b) {
         Muls(b.Out<float>(), b.In<float>()[256], 1.0f, 200);
         PipeBarrier<PIPE_V>();
         Axpy(b.Out<float>(), b.In<half>(), half(0.5f), 200);
     }},
    {"duplicate bfloat16", [](Bench& b) { Duplicate(b.Out<bfloat16_t>(), ToBfloat16(1.5f), 777); }},
    {"duplicate every other", [](Bench& b) { Duplicate(b.Out<int16_t>(), int16_t{7}, EVERY_OTHER, 3, 1, 8); }},
    // repeats: strides, masks, a source read again and again
    {"add strided", [](Bench& b) { Add(b.Out<float>(), b.In<float>(), b.In<float>()[256], uint64_t{20}, 4, {2, 1, 1, 12, 4, 8}); }},
    {"mul by a block", [](Bench& b) { Mul(b.Out<float>(), b.In<float>(), b.In<float>()[504], uint64_t{64}, 7, {1, 1, 0, 8, 8, 0}); }},
    {"max accumulated", [](Bench& b) {
         Muls(b.Out<float>(), b.In<float>(), 1.0f, 64);
         PipeBarrier<PIPE_V>();
         Max(b.Out<float>(), b.In<float>(), b.Out<float>(), uint64_t{64}, 8, {1, 1, 1, 0, 8, 0});
     }},
    {"muls every other", [](Bench& b) { Muls(b.Out<half>(), b.In<half>(), half(2.0f), EVERY_OTHER, 8, {1, 1, 8, 8}); }},
    {"cast narrow strided", [](Bench& b) { Cast(b.Out<half>(), b.In<float>(), RoundMode::CAST_NONE, uint64_t{64}, 8, {1, 1, 4, 8}); }},
    {"cast wide strided", [](Bench& b) { Cast(b.Out<float>(), b.In<half>(), RoundMode::CAST_NONE, uint64_t{64}, 8, {1, 1, 8, 4}); }},
    {"copy", [](Bench& b) { Copy(b.Out<uint16_t>(), b.In<uint16_t>(), uint64_t{100}, 3, {1, 2, 8, 16}); }},
    {"brcb float", [](Bench& b) { Brcb(b.Out<float>(), b.In<float>(), 7, {1, 8}); }},
    {"brcb half spread", [](Bench& b) { Brcb(b.Out<half>(), b.In<half>(), 2, {3, 24}); }},
    // reductions
    {"whole sum", [](Bench& b) { WholeReduceSum(b.Out<float>(), b.In<float>(), 50, 8, 1, 1, 8); }},
    {"whole sum half", [](Bench& b) { WholeReduceSum(b.Out<half>(), b.In<half>(), 128, 8, 2, 1, 8); }},
    {"whole max", [](Bench& b) { WholeReduceMax(b.Out<float>(), b.In<float>(), 64, 8, 1, 1, 8); }},
    {"whole min alone", [](Bench& b) { WholeReduceMin(b.Out<float>(), b.In<float>(), 33, 8, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE); }},
    {"whole max index first", [](Bench& b) { WholeReduceMax(b.Out<half>(), b.In<half>(), 128, 8, 1, 1, 8, ReduceOrder::ORDER_INDEX_VALUE); }},
    {"block sum", [](Bench& b) { BlockReduceSum(b.Out<float>(), b.In<float>(), 8, 64, 1, 1, 8); }},
    {"block max half", [](Bench& b) { BlockReduceMax(b.Out<half>(), b.In<half>(), 8, 128, 2, 1, 8); }},
    {"block min", [](Bench& b) { BlockReduceMin(b.Out<float>(), b.In<float>(), 4, 64, 1, 1, 16); }},
    {"sum of all", [](Bench& b) { ReduceSum(b.Out<float>(), b.In<float>(), b.Work<float>(), 500); }},
    {"max of all", [](Bench& b) { ReduceMax(b.Out<float>(), b.In<float>(), b.Work<float>(), 500, true); }},
    {"min of all", [](Bench& b) { ReduceMin(b.Out<half>(), b.In<half>(), b.Work<half>(), 1000, false); }},
    // comparison and selection
    {"compare less", [](Bench& b) { Compare(b.Out<uint8_t>(), b.In<float>(), b.In<float>()[256], CMPMODE::LT, 256); }},
    {"compare unequal", [](Bench& b) { Compare(b.Out<uint8_t>(), b.In<half>(), b.In<half>()[512], CMPMODE::NE, 512); }},
    {"compare equal int32", [](Bench& b) { Compare(b.Out<int8_t>(), b.In<int32_t>(), b.In<int32_t>()[256], CMPMODE::EQ, 256); }},
    {"compare with a number", [](Bench& b) { CompareScalar(b.Out<uint8_t>(), b.In<float>(), 0.25f, CMPMODE::GE, 512); }},
    {"select", [](Bench& b) { Select(b.Out<float>(), b.In<uint8_t>(), b.In<float>(), b.In<float>()[256], SELMODE::VSEL_TENSOR_TENSOR_MODE, 256); }},
    {"select a number", [](Bench& b) { Select(b.Out<half>(), b.In<uint8_t>(), b.In<half>(), half(-1.0f), SELMODE::VSEL_TENSOR_SCALAR_MODE, 512); }},
    // casts
    {"cast half float", CastTo<float, half, RoundMode::CAST_NONE>},
    {"cast float half none", CastTo<half, float, RoundMode::CAST_NONE>},
    {"cast float half rint", CastTo<half, float, RoundMode::CAST_RINT>},
    {"cast float half floor", CastTo<half, float, RoundMode::CAST_FLOOR>},
    {"cast float half ceil", CastTo<half, float, RoundMode::CAST_CEIL>},
    {"cast float half trunc", CastTo<half, float, RoundMode::CAST_TRUNC>},
    {"cast float half round", CastTo<half, float, RoundMode::CAST_ROUND>},
    {"cast float half odd", CastTo<half, float, RoundMode::CAST_ODD>},
    {"cast float bfloat16 rint", CastTo<bfloat16_t, float, RoundMode::CAST_RINT>},
    {"cast float bfloat16 floor", CastTo<bfloat16_t, float, RoundMode::CAST_FLOOR>},
    {"cast float bfloat16 ceil", CastTo<bfloat16_t, float, RoundMode::CAST_CEIL>},
    {"cast float bfloat16 trunc", CastTo<bfloat16_t, float, RoundMode::CAST_TRUNC>},
    {"cast bfloat16 float", CastTo<float, bfloat16_t, RoundMode::CAST_NONE>},
    {"cast bfloat16 int32", CastTo<int32_t, bfloat16_t, RoundMode::CAST_RINT>},
    {"cast float int32 rint", CastTo<int32_t, float, RoundMode::CAST_RINT>},
    {"cast float int32 round", CastTo<int32_t, float, RoundMode::CAST_ROUND>},
    {"cast float int16 floor", CastTo<int16_t, float, RoundMode::CAST_FLOOR>},
    {"cast float int64 ceil", [](Bench& b) { Cast(b.Out<int64_t>(), b.In<float>(), RoundMode::CAST_CEIL, 250); }},
    {"cast float float trunc", CastTo<float, float, RoundMode::CAST_TRUNC>},
    {"cast int32 float", CastTo<float, int32_t, RoundMode::CAST_NONE>},
    {"cast half int8 trunc", CastTo<int8_t, half, RoundMode::CAST_TRUNC>},
    {"cast half uint8 rint", CastTo<uint8_t, half, RoundMode::CAST_RINT>},
    {"cast int8 half", CastTo<half, int8_t, RoundMode::CAST_NONE>},
    {"cast int32 half scaled", [](Bench& b) {
         SetDeqScale(half(0.5f));
         Cast(b.Out<half>(), b.In<int32_t>(), RoundMode::CAST_NONE, 250);
     }},
    // copies
    {"copy rows with gaps", [](Bench& b) {
         DataCopy(b.Out<uint8_t>(), b.x, DataCopyParams(5, 2, 3, 1));
         SetFlag<HardEvent::MTE2_V>(1);
         WaitFlag<HardEvent::MTE2_V>(1);
     }},
    {"copy rows with padding", [](Bench& b) {
         GlobalTensor<half> x;
         x.SetGlobalBuffer(reinterpret_cast<half*>(b.x.GetPhyAddr(0)));
         DataCopyPad(b.Out<half>(), x[3], {4, 18, 10, 2, 0}, DataCopyPadExtParams<half>(true, 2, 5, half(9.0f)));
         SetFlag<HardEvent::MTE2_V>(1);
         WaitFlag<HardEvent::MTE2_V>(1);
     }},
    {"store rows with gaps", [](Bench& b) {
         DataCopyPad(b.y, b.In<uint8_t>(), {6, 37, 1, 5, 0});
         b.is_stored = true;
     }},
    {"add to memory", [](Bench& b) {
         GlobalTensor<float> y;
         y.SetGlobalBuffer(reinterpret_cast<float*>(b.y.GetPhyAddr(0)));
         SetFlag<HardEvent::V_MTE3>(0);
         WaitFlag<HardEvent::V_MTE3>(0);
         DataCopy(y, b.Work<float>(), 512);
         PipeBarrier<PIPE_MTE3>();
         SetAtomicAdd<float>();
         DataCopy(y, b.In<float>(), 512);
         DataCopy(y, b.In<float>(), 256);
         SetAtomicNone();
         b.is_stored = true;
     }},
    {"scalar access", [](Bench& b) {
         SetFlag<HardEvent::V_S>(0);
         WaitFlag<HardEvent::V_S>(0);
         SetFlag<HardEvent::MTE2_S>(0);
         WaitFlag<HardEvent::MTE2_S>(0);
         LocalTensor<float> y = b.Out<float>();
         for (int i = 0; i < 512; ++i) {
             y.SetValue(i, b.In<float>().GetValue(511 - i));
         }
         SetFlag<HardEvent::S_MTE3>(0);
         WaitFlag<HardEvent::S_MTE3>(0);
     }},
};

}  // namespace

extern "C" __global__ __aicore__ void instructions(GM_ADDR x, GM_ADDR y, GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(Tiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    GET_TILING_DATA(data, tiling);
    Bench bench(x, y);
    CASES[data.number].run(bench);
}

extern "C" const char* instruction_name(uint64_t number) { return number < sizeof(CASES) / sizeof(CASES[0]) ? CASES[number].name : ""; }
