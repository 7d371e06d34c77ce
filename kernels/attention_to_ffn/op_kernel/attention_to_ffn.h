// AttentionToFFN on the vector cores: every active token's row to the FFN ranks of its experts, then the flags.
//
// A (token, slot) pair is an item. Items are in order of tokens, and each core takes a run of them: a token is loaded,
// and without smooth factors quantised, once per core that sends it. Windows:
//
//     FFN rank        info [A][M][2 + BS*slots] int32: flag, layer, number of the expert per item; data [A][M][BS][slots][HS]
//     attention rank  flags [M][BS][slots] int32
//
// Order: wait until an FFN rank has taken what was sent before (its flag is not 1), write rows and numbers, all cores
// meet, write {1, layer}.
#ifndef ATTENTION_TO_FFN_ATTENTION_TO_FFN_H
#define ATTENTION_TO_FFN_ATTENTION_TO_FFN_H

#include "../../common/windows.h"
#include "../attention_to_ffn_tiling.h"
#include "kernel_operator.h"

namespace nfg {

using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using AscendC::RoundMode;
using AscendC::TPosition;

template <typename T, bool is_quantised, bool to_hit_ranks>
class AttentionToFfn {
public:
    __aicore__ inline AttentionToFfn() {}

    __aicore__ inline void Init(AscendC::TPipe* pipe, const AttentionToFfnTiling* tiling, GM_ADDR x, GM_ADDR session_id, GM_ADDR micro_batch_id,
                                GM_ADDR layer_id, GM_ADDR expert_ids, GM_ADDR expert_rank_table, GM_ADDR scales, GM_ADDR active_mask, GM_ADDR workspace) {
        tiling_ = tiling;
        core_ = static_cast<uint32_t>(AscendC::GetBlockIdx());
        cores_ = static_cast<uint32_t>(AscendC::GetBlockNum());
        windows_.Init();
        x_.SetGlobalBuffer((__gm__ T*)x);
        expert_ids_.SetGlobalBuffer((__gm__ int32_t*)expert_ids);
        table_.SetGlobalBuffer((__gm__ int32_t*)expert_rank_table);
        scales_.SetGlobalBuffer((__gm__ float*)scales);
        mask_.SetGlobalBuffer((__gm__ uint8_t*)active_mask);
        hits_global_.SetGlobalBuffer((__gm__ int32_t*)workspace);

        const uint32_t spare = static_cast<uint32_t>(A2fSpareBytes(tiling->tokens, tiling->ffn_ranks, cores_));
        const uint32_t floats = tiling->hidden * static_cast<uint32_t>(sizeof(float));
        pipe->InitBuffer(numbers_buffer_, A2F_ITEMS_AT_ONCE * 32);
        pipe->InitBuffer(blocks_buffer_, is_quantised ? 160 : 64);
        if constexpr (to_hit_ranks) {
            pipe->InitBuffer(hits_buffer_, static_cast<uint32_t>(A2fHitPitch(tiling->ffn_ranks) * sizeof(int32_t)));
        }
        if constexpr (is_quantised) {
            pipe->InitBuffer(rows_in_, 2, tiling->hidden * static_cast<uint32_t>(sizeof(T)));
            pipe->InitBuffer(rows_out_, 2, tiling->scale_at + 32);
            pipe->InitBuffer(value_buffer_, floats);
            pipe->InitBuffer(spare_buffer_, spare > floats ? spare : floats);
            pipe->InitBuffer(spread_buffer_, 256);
            if (tiling->has_scales) {
                pipe->InitBuffer(scales_in_, 2, floats);
            }
        } else {
            pipe->InitBuffer(rows_, 2, tiling->hidden * static_cast<uint32_t>(sizeof(T)));
            pipe->InitBuffer(spare_buffer_, spare);
        }

        GlobalTensor<int32_t> word;
        word.SetGlobalBuffer((__gm__ int32_t*)session_id);
        // what the scalar unit's cache holds may be of an earlier kernel
        AscendC::DataCacheCleanAndInvalid<int32_t, AscendC::CacheLine::ENTIRE_DATA_CACHE, AscendC::DcciDst::CACHELINE_OUT>(word);
        session_ = static_cast<uint32_t>(word.GetValue(0));
        word.SetGlobalBuffer((__gm__ int32_t*)micro_batch_id);
        micro_batch_ = static_cast<uint32_t>(word.GetValue(0));
        word.SetGlobalBuffer((__gm__ int32_t*)layer_id);
        layer_ = word.GetValue(0);
        // counts of elements fit 32 bits, bytes need not
        const uint32_t slot = session_ * tiling->micro_batches + micro_batch_;
        info_at_ = slot * (2 + tiling->tokens * tiling->slots) * sizeof(int32_t);
        record_bytes_ = tiling->record * (is_quantised ? sizeof(int8_t) : sizeof(T));
        data_at_ = tiling->data_at + slot * tiling->tokens * tiling->slots * record_bytes_;
        active_ = tiling->tokens;
    }

    __aicore__ inline void Process() {
        if (tiling_->has_mask) {
            CountActive();
        }
        if constexpr (to_hit_ranks) {
            hits_ = hits_buffer_.template Get<int32_t>();
            AscendC::Duplicate(hits_, 0, static_cast<int32_t>(A2fHitPitch(tiling_->ffn_ranks)));
            Order<HardEvent::V_S>();
        }
        if constexpr (is_quantised) {
            constant_ = Block<float>(128);
            AscendC::Duplicate(Block<float>(96), 0.0f, 8);
        }
        Send();
        if constexpr (to_hit_ranks) {
            Order<HardEvent::S_MTE3>();
            AscendC::DataCopy(hits_global_[core_ * A2fHitPitch(tiling_->ffn_ranks)], hits_, static_cast<uint32_t>(A2fHitPitch(tiling_->ffn_ranks)));
        }
        AscendC::PipeBarrier<PIPE_ALL>();
        AscendC::SyncAll<true>();
        Publish();
        if (tiling_->has_mask) {
            RaiseOwnFlags();
        }
    }

private:
    // One block: at 0 the flag that was read, at 32 the one to write; then the largest number of a row, what it is
    // multiplied by, and a constant.
    template <typename U>
    __aicore__ inline LocalTensor<U> Block(uint32_t at) {
        return blocks_buffer_.template GetWithOffset<U>(8, at);
    }

    template <HardEvent event>
    __aicore__ inline void Order() {
        const auto id = GetTPipePtr()->template FetchEventID<event>();
        AscendC::SetFlag<event>(id);
        AscendC::WaitFlag<event>(id);
    }

    // The number of active tokens, which stand first.
    __aicore__ inline void CountActive() {
        const uint32_t tokens = tiling_->tokens, padded = static_cast<uint32_t>(A2fRoundUp(tokens, 32));
        LocalTensor<uint8_t> mask = spare_buffer_.template GetWithOffset<uint8_t>(padded, 0);
        LocalTensor<half> ones = spare_buffer_.template GetWithOffset<half>(static_cast<uint32_t>(A2fRoundUp(tokens, 128)), padded);
        LocalTensor<half> sums = spare_buffer_.template GetWithOffset<half>(16, padded + 2 * static_cast<uint32_t>(A2fRoundUp(tokens, 128)));
        AscendC::DataCopyPad(mask, mask_, {1, tokens, 0, 0, 0}, AscendC::DataCopyPadExtParams<uint8_t>());
        Order<HardEvent::MTE2_V>();
        AscendC::Cast(ones, mask, RoundMode::CAST_NONE, tokens);
        AscendC::PipeBarrier<PIPE_V>();
        const uint32_t whole = tokens / 128, rest = tokens % 128;  // lanes of a repeat
        if (whole > 0) {
            AscendC::WholeReduceSum(sums, ones, 128, static_cast<int32_t>(whole), 1, 1, 8);
        }
        AscendC::PipeBarrier<PIPE_V>();  // both write one block
        if (rest > 0) {
            AscendC::WholeReduceSum(sums[whole], ones[whole * 128], static_cast<int32_t>(rest), 1, 1, 1, 8);
        }
        Order<HardEvent::V_S>();
        active_ = 0;
        for (uint32_t i = 0; i < whole + (rest > 0); ++i) {
            active_ += static_cast<uint32_t>(static_cast<float>(sums.GetValue(i)));
        }
        Order<HardEvent::S_V>();
    }

    __aicore__ inline void Send() {
        const uint32_t slots = tiling_->slots, items = active_ * slots;
        const uint32_t last = A2fFirst(items, cores_, core_ + 1);
        numbers_ = numbers_buffer_.template Get<int32_t>();
        for (uint32_t item = A2fFirst(items, cores_, core_); item < last;) {
            const uint32_t token = item / slots, end = last < (token + 1) * slots ? last : (token + 1) * slots;
            SendToken(token, item, end);
            item = end;
        }
        StoreNumbers();
    }

    // Slots [first, end) of all items, of one token.
    __aicore__ inline void SendToken(uint32_t token, uint32_t first, uint32_t end) {
        const AscendC::DataCopyExtParams row(1, tiling_->hidden * static_cast<uint32_t>(sizeof(T)), 0, 0, 0);
        const GlobalTensor<T> from = x_[token * tiling_->hidden];
        if constexpr (is_quantised) {
            LocalTensor<T> loaded = rows_in_.template AllocTensor<T>();
            AscendC::DataCopyPad(loaded, from, row, AscendC::DataCopyPadExtParams<T>());
            rows_in_.EnQue(loaded);
            loaded = rows_in_.template DeQue<T>();
            LocalTensor<float> value = value_buffer_.template Get<float>();
            AscendC::Cast(value, loaded, RoundMode::CAST_NONE, tiling_->hidden);
            AscendC::PipeBarrier<PIPE_V>();
            rows_in_.FreeTensor(loaded);
            if (tiling_->has_scales) {
                for (uint32_t item = first; item < end; ++item) {
                    Route(token, item);
                    LocalTensor<float> factors = scales_in_.template AllocTensor<float>();
                    AscendC::DataCopyPad(factors, scales_[expert_ * tiling_->hidden], {1, tiling_->hidden * static_cast<uint32_t>(sizeof(float)), 0, 0, 0},
                                         AscendC::DataCopyPadExtParams<float>());
                    scales_in_.EnQue(factors);
                    factors = scales_in_.template DeQue<float>();
                    LocalTensor<float> scaled = spare_buffer_.template Get<float>();
                    AscendC::Mul(scaled, value, factors, static_cast<int32_t>(tiling_->hidden));
                    AscendC::PipeBarrier<PIPE_V>();
                    LocalTensor<int8_t> record = Quantise(scaled, factors);
                    scales_in_.FreeTensor(factors);
                    StoreRecord(record, item);
                    rows_out_.FreeTensor(record);
                }
            } else {
                LocalTensor<int8_t> record = Quantise(value, spare_buffer_.template Get<float>());
                for (uint32_t item = first; item < end; ++item) {
                    Route(token, item);
                    StoreRecord(record, item);
                }
                rows_out_.FreeTensor(record);
            }
        } else {
            LocalTensor<T> loaded = rows_.template AllocTensor<T>();
            AscendC::DataCopyPad(loaded, from, row, AscendC::DataCopyPadExtParams<T>());
            rows_.EnQue(loaded);
            loaded = rows_.template DeQue<T>();
            for (uint32_t item = first; item < end; ++item) {
                Route(token, item);
                GlobalTensor<T> to;
                to.SetGlobalBuffer((__gm__ T*)(windows_.Of(rank_) + data_at_ + item * record_bytes_));
                AscendC::DataCopyPad(to, loaded, row);
            }
            rows_.FreeTensor(loaded);
        }
    }

    // Where an item goes: expert_, rank_. Its number is stored later, with others.
    __aicore__ inline void Route(uint32_t token, uint32_t item) {
        const uint32_t slot = item - token * tiling_->slots, routed = tiling_->routed;
        expert_ = slot < routed ? static_cast<uint32_t>(expert_ids_.GetValue(token * routed + slot)) : tiling_->experts + slot - routed;
        const uint32_t row = expert_ * tiling_->table_width;
        const uint32_t replica = session_ % static_cast<uint32_t>(table_.GetValue(row));
        rank_ = static_cast<uint32_t>(table_.GetValue(row + 1 + 2 * replica));
        AwaitTaken(rank_);
        if (waiting_ == A2F_ITEMS_AT_ONCE) {
            StoreNumbers();
        }
        numbers_.SetValue(waiting_ * 8, table_.GetValue(row + 2 + 2 * replica));
        waiting_rank_[waiting_] = rank_;
        waiting_item_[waiting_] = item;
        ++waiting_;
        if constexpr (to_hit_ranks) {
            hits_.SetValue(rank_ - tiling_->first_rank, 1);
        }
    }

    __aicore__ inline void StoreNumbers() {
        if (waiting_ == 0) {
            return;
        }
        Order<HardEvent::S_MTE3>();
        for (uint32_t i = 0; i < waiting_; ++i) {
            GlobalTensor<int32_t> to;
            to.SetGlobalBuffer((__gm__ int32_t*)(windows_.Of(waiting_rank_[i]) + info_at_ + (2 + waiting_item_[i]) * sizeof(int32_t)));
            AscendC::DataCopyPad(to, numbers_[i * 8], {1, sizeof(int32_t), 0, 0, 0});
        }
        Order<HardEvent::MTE3_S>();
        waiting_ = 0;
    }

    // Returns when an FFN rank has taken what it was sent before; asks each rank once.
    __aicore__ inline void AwaitTaken(uint32_t rank) {
        const uint32_t word = rank / 32, bit = 1u << (rank % 32);
        if (taken_[word] & bit) {
            return;
        }
        GlobalTensor<int32_t> from;
        from.SetGlobalBuffer((__gm__ int32_t*)(windows_.Of(rank) + info_at_));
        LocalTensor<int32_t> flag = Block<int32_t>(0);
        int32_t value;
        do {
            AscendC::DataCopyPad(flag, from, {1, sizeof(int32_t), 0, 0, 0}, AscendC::DataCopyPadExtParams<int32_t>());
            Order<HardEvent::MTE2_S>();
            value = flag.GetValue(0);
            Order<HardEvent::S_MTE2>();
        } while (value == 1);
        Order<HardEvent::S_MTE3>();
        taken_[word] |= bit;
    }

    // int8 of ``value`` and behind it, at byte scale_at, what it was divided by. work: as large as value; both are lost.
    __aicore__ inline LocalTensor<int8_t> Quantise(const LocalTensor<float>& value, const LocalTensor<float>& work) {
        const uint32_t hidden = tiling_->hidden;
        LocalTensor<float> largest = Block<float>(64), factor = Block<float>(96);
        LocalTensor<float> spread = spread_buffer_.template Get<float>();
        AscendC::Abs(work, value, static_cast<int32_t>(hidden));
        AscendC::PipeBarrier<PIPE_V>();
        uint32_t left = hidden;
        while (left > 64) {
            const uint32_t half_way = static_cast<uint32_t>(A2fRoundUp((left + 1) / 2, 8));
            AscendC::Max(work, work, work[half_way], static_cast<int32_t>(left - half_way));
            AscendC::PipeBarrier<PIPE_V>();
            left = half_way;
        }
        AscendC::WholeReduceMax(largest, work, static_cast<int32_t>(left), 1, 1, 1, 8, AscendC::ReduceOrder::ORDER_ONLY_VALUE);
        AscendC::Duplicate(constant_, 127.0f, 8);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Div(factor, constant_, largest, 1);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Brcb(spread, factor, 1, {1, 8});
        AscendC::Duplicate(constant_, 1.0f, 8);
        AscendC::PipeBarrier<PIPE_V>();
        const uint32_t whole = hidden / 64, rest = hidden % 64;
        AscendC::Mul(value, value, spread, uint64_t{64}, static_cast<uint8_t>(whole), {1, 1, 0, 8, 8, 0});
        if (rest > 0) {
            AscendC::Mul(value[whole * 64], value[whole * 64], spread, static_cast<uint64_t>(rest), 1, {1, 1, 0, 8, 8, 0});
        }
        AscendC::PipeBarrier<PIPE_V>();
        // no cast leads from float to int8: by way of int32, where NaN becomes 0, and half, which holds -127 to 127
        AscendC::Cast(value.template ReinterpretCast<int32_t>(), value, RoundMode::CAST_RINT, hidden);
        AscendC::SetDeqScale(static_cast<half>(1.0f));
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(value.template ReinterpretCast<half>(), value.template ReinterpretCast<int32_t>(), RoundMode::CAST_NONE, hidden);
        AscendC::PipeBarrier<PIPE_V>();
        LocalTensor<int8_t> record = rows_out_.template AllocTensor<int8_t>();
        AscendC::Cast(record, value.template ReinterpretCast<half>(), RoundMode::CAST_TRUNC, hidden);
        AscendC::Div(record[tiling_->scale_at].template ReinterpretCast<float>(), constant_, factor, 1);
        AscendC::PipeBarrier<PIPE_V>();
        rows_out_.EnQue(record);
        return rows_out_.template DeQue<int8_t>();
    }

    __aicore__ inline void StoreRecord(const LocalTensor<int8_t>& record, uint32_t item) {
        GlobalTensor<int8_t> to;
        to.SetGlobalBuffer((__gm__ int8_t*)(windows_.Of(rank_) + data_at_ + item * record_bytes_));
        const uint32_t hidden = tiling_->hidden, scale_at = tiling_->scale_at;
        if (hidden == scale_at) {
            AscendC::DataCopyPad(to, record, {1, hidden + static_cast<uint32_t>(sizeof(float)), 0, 0, 0});
        } else {
            AscendC::DataCopyPad(to, record, {1, hidden, 0, 0, 0});
            AscendC::DataCopyPad(to[scale_at], record[scale_at], {1, static_cast<uint32_t>(sizeof(float)), 0, 0, 0});
        }
    }

    // {1, layer} to the ranks this core publishes to.
    __aicore__ inline void Publish() {
        const uint32_t ranks = tiling_->ffn_ranks, first = A2fFirst(ranks, cores_, core_), count = A2fFirst(ranks, cores_, core_ + 1) - first;
        if (count == 0) {
            return;
        }
        LocalTensor<int32_t> sums;
        if constexpr (to_hit_ranks) {
            sums = SumHits(first, count);
        }
        LocalTensor<int32_t> words = Block<int32_t>(32);
        words.SetValue(0, 1);
        words.SetValue(1, layer_);
        Order<HardEvent::S_MTE3>();
        for (uint32_t i = 0; i < count; ++i) {
            if constexpr (to_hit_ranks) {
                if (sums.GetValue(i) == 0) {
                    continue;
                }
            }
            const uint32_t rank = tiling_->first_rank + first + i;
            if constexpr (!to_hit_ranks) {
                AwaitTaken(rank);  // nobody sent it anything, perhaps
            }
            GlobalTensor<int32_t> to;
            to.SetGlobalBuffer((__gm__ int32_t*)(windows_.Of(rank) + info_at_));
            AscendC::DataCopyPad(to, words, {1, 2 * sizeof(int32_t), 0, 0, 0});
        }
    }

    // How many cores have sent something to each of ``count`` ranks.
    __aicore__ inline LocalTensor<int32_t> SumHits(uint32_t first, uint32_t count) {
        const uint32_t pitch = static_cast<uint32_t>(A2fRoundUp(count, 8));
        LocalTensor<int32_t> rows = spare_buffer_.template GetWithOffset<int32_t>(cores_ * pitch, 0);
        const uint32_t stride = static_cast<uint32_t>((A2fHitPitch(tiling_->ffn_ranks) - count) * sizeof(int32_t));
        AscendC::DataCopyPad(rows, hits_global_[first], {static_cast<uint16_t>(cores_), count * static_cast<uint32_t>(sizeof(int32_t)), stride, 0, 0},
                             AscendC::DataCopyPadExtParams<int32_t>());
        Order<HardEvent::MTE2_V>();
        for (uint32_t i = 1; i < cores_; ++i) {
            AscendC::Add(rows, rows, rows[i * pitch], static_cast<int32_t>(count));
            AscendC::PipeBarrier<PIPE_V>();
        }
        Order<HardEvent::V_S>();
        return rows;
    }

    // Inactive tokens are done: nobody will send anything back for them.
    __aicore__ inline void RaiseOwnFlags() {
        const uint32_t slots = tiling_->slots, count = (tiling_->tokens - active_) * slots;
        const uint32_t first = A2fFirst(count, cores_, core_), last = A2fFirst(count, cores_, core_ + 1);
        LocalTensor<int32_t> ones = spare_buffer_.template GetWithOffset<int32_t>(A2F_ONES, 0);
        Order<HardEvent::S_V>();
        AscendC::Duplicate(ones, 1, static_cast<int32_t>(A2F_ONES));
        Order<HardEvent::V_MTE3>();
        GlobalTensor<int32_t> flags;
        const uint32_t begin = (micro_batch_ * tiling_->tokens + active_) * slots;
        flags.SetGlobalBuffer((__gm__ int32_t*)(windows_.Of(windows_.Rank()) + begin * sizeof(int32_t)));
        for (uint32_t at = first; at < last; at += A2F_ONES) {
            const uint32_t some = last - at < A2F_ONES ? last - at : A2F_ONES;
            AscendC::DataCopyPad(flags[at], ones, {1, some * static_cast<uint32_t>(sizeof(int32_t)), 0, 0, 0});
        }
    }

    const AttentionToFfnTiling* tiling_;
    Windows windows_;
    GlobalTensor<T> x_;
    GlobalTensor<int32_t> expert_ids_, table_, hits_global_;
    GlobalTensor<float> scales_;
    GlobalTensor<uint8_t> mask_;
    AscendC::TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> rows_;
    AscendC::TQue<TPosition::VECIN, 1> rows_in_, scales_in_;
    AscendC::TQue<TPosition::VECOUT, 1> rows_out_;
    AscendC::TBuf<> numbers_buffer_, blocks_buffer_, hits_buffer_, value_buffer_, spare_buffer_, spread_buffer_;
    LocalTensor<int32_t> numbers_, hits_;
    LocalTensor<float> constant_;
    uint32_t core_, cores_, session_, micro_batch_, active_, expert_ = 0, rank_ = 0;
    int32_t layer_;
    uint64_t info_at_, data_at_, record_bytes_;
    uint32_t waiting_ = 0, waiting_rank_[A2F_ITEMS_AT_ONCE], waiting_item_[A2F_ITEMS_AT_ONCE];
    uint32_t taken_[A2F_MAX_RANKS / 32] = {};
};

}  // namespace nfg

#endif
