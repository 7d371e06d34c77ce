// The last stage of MatmulAllReduceAddRmsNorm on the vector cores:
//
//     y = RN(mm + residual),  norm = RN(RN(y / sqrt(mean(y^2) + epsilon)) * gamma)
//
// RN rounds to T, to nearest even; everything between is float. y is rounded before its squares are taken. Where the
// rows of mm come from is the Source's matter: global memory, or windows of other ranks.
//
//     struct Source { void Load(const LocalTensor<T>& to, uint64_t row, uint32_t rows, uint64_t column, uint32_t columns,
//                               uint32_t pitch); };
//
// puts columns [column, column + columns) of rows [row, row + rows) into local memory, each row ``pitch`` elements (a
// multiple of 16) behind the one before and its rest zero, with instructions of MTE2.
#ifndef MATMUL_ALL_REDUCE_ADD_RMS_NORM_ADD_RMS_NORM_H
#define MATMUL_ALL_REDUCE_ADD_RMS_NORM_ADD_RMS_NORM_H

#include "../matmul_all_reduce_add_rms_norm_tiling.h"
#include "kernel_operator.h"

namespace nfg {

using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using AscendC::RoundMode;

constexpr uint32_t LANES = 64;  // floats of a repeat

template <typename T>
struct IsHalf {
    static constexpr bool value = false;
};
template <>
struct IsHalf<half> {
    static constexpr bool value = true;
};

// Rows that lie one behind the other in global memory; in local memory, too, each of a multiple of 16 columns.
template <typename T>
struct GlobalRows {
    GlobalTensor<T> rows;
    uint64_t n;

    __aicore__ inline void Load(const LocalTensor<T>& to, uint64_t row, uint32_t count, uint64_t column, uint32_t columns) {
        const uint32_t bytes = columns * static_cast<uint32_t>(sizeof(T));
        const uint32_t padded = (columns + 15) / 16 * 16;
        AscendC::DataCopyExtParams copy(static_cast<uint16_t>(count), bytes, static_cast<uint32_t>((n - columns) * sizeof(T)), 0, 0);
        AscendC::DataCopyPadExtParams<T> pad;
        pad.isPad = padded != columns;
        pad.rightPadding = static_cast<uint8_t>(padded - columns);
        AscendC::DataCopyPad(to, rows[row * n + column], copy, pad);
    }
};

template <typename T, typename Source>
class AddRmsNorm {
public:
    __aicore__ inline AddRmsNorm() {}

    // This core's rows are [first, last).
    __aicore__ inline void Init(AscendC::TPipe* pipe, const AddRmsNormTiling* tiling, const Source& source, __gm__ uint8_t* residual, __gm__ uint8_t* gamma,
                                __gm__ uint8_t* y, __gm__ uint8_t* norm, uint64_t first, uint64_t last) {
        pipe_ = pipe;
        tiling_ = tiling;
        source_ = source;
        n_ = tiling->n;
        first_ = first;
        last_ = last;
        residual_.rows.SetGlobalBuffer((__gm__ T*)residual);
        residual_.n = n_;
        y_.SetGlobalBuffer((__gm__ T*)y);
        again_.rows.SetGlobalBuffer((__gm__ T*)y);
        again_.n = n_;
        norm_.SetGlobalBuffer((__gm__ T*)norm);
        gamma_global_.SetGlobalBuffer((__gm__ T*)gamma);
        const bool has_tiles = tiling->mode == NORM_COLUMNS;
        pitch_ = tiling->columns;
        area_ = tiling->rows_at_once * pitch_;
        statistics_ = has_tiles ? NORM_GROUP * 8 : RoundUp(tiling->rows_at_once, 8);
        pipe->InitBuffer(first_buffer_, tiling->slots * area_ * sizeof(T));
        pipe->InitBuffer(second_buffer_, tiling->slots * area_ * sizeof(T));
        pipe->InitBuffer(value_buffer_, area_ * sizeof(float));
        pipe->InitBuffer(work_buffer_, area_ * sizeof(float));
        pipe->InitBuffer(gamma_buffer_, pitch_ * sizeof(T));
        pipe->InitBuffer(sum_buffer_, statistics_ * sizeof(float));
        pipe->InitBuffer(root_buffer_, statistics_ * sizeof(float));
        pipe->InitBuffer(one_buffer_, statistics_ * sizeof(float));
        pipe->InitBuffer(spread_buffer_, statistics_ * 8 * sizeof(float));
        pipe->InitBuffer(part_buffer_, (tiling->mode == NORM_MANY_ROWS ? 8 : SumWork(pitch_)) * sizeof(float));
        value_ = value_buffer_.Get<float>();
        work_ = work_buffer_.Get<float>();
        gamma_ = gamma_buffer_.Get<T>();
        sum_ = sum_buffer_.Get<float>();
        root_ = root_buffer_.Get<float>();
        spread_ = spread_buffer_.Get<float>();
        part_ = part_buffer_.Get<float>();
        for (uint32_t s = 0; s < tiling->slots; ++s) {
            slots_[s].first = first_buffer_.GetWithOffset<T>(area_, s * area_ * sizeof(T));
            slots_[s].second = second_buffer_.GetWithOffset<T>(area_, s * area_ * sizeof(T));
            slots_[s].loaded = pipe->AllocEventID<HardEvent::MTE2_V>();
            slots_[s].computed = pipe->AllocEventID<HardEvent::V_MTE3>();
            slots_[s].stored = pipe->AllocEventID<HardEvent::MTE3_MTE2>();
            slots_[s].is_stored = false;
        }
        gamma_loaded_ = pipe->AllocEventID<HardEvent::MTE2_V>();
        gamma_used_ = pipe->AllocEventID<HardEvent::V_MTE2>();
        AscendC::Duplicate(sum_, 0.0f, statistics_);
        AscendC::Duplicate(one_buffer_.Get<float>(), 1.0f, statistics_);
    }

    __aicore__ inline void Process() {
        if (tiling_->mode == NORM_COLUMNS) {
            for (uint64_t row = first_; row < last_; row += NORM_GROUP) {
                Tiles(row, static_cast<uint32_t>(last_ - row < NORM_GROUP ? last_ - row : NORM_GROUP));
            }
        } else if (first_ < last_) {
            LoadGamma(0, static_cast<uint32_t>(n_));
            AscendC::WaitFlag<HardEvent::MTE2_V>(gamma_loaded_);
            for (uint64_t row = first_; row < last_; row += tiling_->rows_at_once) {
                Rows(row, static_cast<uint32_t>(last_ - row < tiling_->rows_at_once ? last_ - row : tiling_->rows_at_once));
            }
        }
        AwaitStores();
        for (uint32_t s = 0; s < tiling_->slots; ++s) {
            pipe_->ReleaseEventID<HardEvent::MTE2_V>(slots_[s].loaded);
            pipe_->ReleaseEventID<HardEvent::V_MTE3>(slots_[s].computed);
            pipe_->ReleaseEventID<HardEvent::MTE3_MTE2>(slots_[s].stored);
        }
        pipe_->ReleaseEventID<HardEvent::MTE2_V>(gamma_loaded_);
        pipe_->ReleaseEventID<HardEvent::V_MTE2>(gamma_used_);
    }

private:
    // What one loaded piece goes through: its memory, and the flags between the pipes.
    struct Slot {
        LocalTensor<T> first;   // mm, then y
        LocalTensor<T> second;  // residual, then norm
        AscendC::TEventID loaded, computed, stored;
        bool is_stored;  // the flag is set and nobody has waited for it
    };

    __aicore__ inline Slot& NextSlot() {
        Slot& slot = slots_[turn_];
        turn_ = turn_ + 1 == tiling_->slots ? 0 : turn_ + 1;
        if (slot.is_stored) {
            AscendC::WaitFlag<HardEvent::MTE3_MTE2>(slot.stored);
            slot.is_stored = false;
        }
        return slot;
    }

    __aicore__ inline void AwaitStores() {
        for (uint32_t s = 0; s < tiling_->slots; ++s) {
            if (slots_[s].is_stored) {
                AscendC::WaitFlag<HardEvent::MTE3_MTE2>(slots_[s].stored);
                slots_[s].is_stored = false;
            }
        }
    }

    __aicore__ inline void LoadGamma(uint64_t column, uint32_t columns) {
        AscendC::DataCopyExtParams copy(1, columns * static_cast<uint32_t>(sizeof(T)), 0, 0, 0);
        AscendC::DataCopyPadExtParams<T> pad;
        AscendC::DataCopyPad(gamma_, gamma_global_[column], copy, pad);
        AscendC::SetFlag<HardEvent::MTE2_V>(gamma_loaded_);
    }

    __aicore__ inline void Store(const GlobalTensor<T>& to, const LocalTensor<T>& from, uint64_t row, uint32_t rows, uint64_t column, uint32_t columns) {
        AscendC::DataCopyExtParams copy(static_cast<uint16_t>(rows), columns * static_cast<uint32_t>(sizeof(T)), 0, static_cast<uint32_t>((n_ - columns) * sizeof(T)), 0);
        AscendC::DataCopyPad(to[row * n_ + column], from, copy);
    }

    // y into slot.first, and its exact value as float into value_. count: elements, from the slot's begin.
    __aicore__ inline void AddResidual(Slot& slot, uint32_t count) {
        if constexpr (IsHalf<T>::value) {
            AscendC::Add(slot.first, slot.first, slot.second, count);
        } else {
            AscendC::Cast(value_, slot.first, RoundMode::CAST_NONE, count);
            AscendC::Cast(work_, slot.second, RoundMode::CAST_NONE, count);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Add(value_, value_, work_, count);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(slot.first, value_, RoundMode::CAST_RINT, count);
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(value_, slot.first, RoundMode::CAST_NONE, count);
        AscendC::PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Square(uint32_t count) {
        AscendC::Muls(work_, value_, tiling_->inverse_n, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(work_, work_, value_, count);
        AscendC::PipeBarrier<PIPE_V>();
    }

    // The sum of work_[0 .. count) into to[0]: a repeat's blocks to 8 sums, those again, until one repeat is left.
    __aicore__ inline void Sum(const LocalTensor<float>& to, uint32_t count) {
        LocalTensor<float> from = work_;
        uint32_t used = 0;
        while (count > LANES) {
            const uint32_t whole = count / LANES, rest = count % LANES;
            if (rest > 0) {
                AscendC::Add(from, from, from[whole * LANES], static_cast<uint64_t>(rest), 1, {1, 1, 1, 8, 8, 8});
                AscendC::PipeBarrier<PIPE_V>();
            }
            LocalTensor<float> sums = part_[used];
            AscendC::BlockReduceSum(sums, from, static_cast<int32_t>(whole), static_cast<int32_t>(LANES), 1, 1, 8);
            AscendC::PipeBarrier<PIPE_V>();
            count = whole * 8;
            used += static_cast<uint32_t>(RoundUp(count, LANES));
            from = sums;
        }
        AscendC::WholeReduceSum(to, from, static_cast<int32_t>(count), 1, 1, 1, 8);
        AscendC::PipeBarrier<PIPE_V>();
    }

    // 1 / sqrt(sum + epsilon) for ``count`` sums, each spread over a block of spread_.
    __aicore__ inline void Roots(uint32_t count) {
        AscendC::Adds(root_, sum_, tiling_->epsilon, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sqrt(root_, root_, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Div(root_, one_buffer_.Get<float>(), root_, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Brcb(spread_, root_, static_cast<uint8_t>(count / 8), {1, 8});
        AscendC::PipeBarrier<PIPE_V>();
    }

    // slot.second = RN(RN(value_ * root) * gamma) for a piece of one row.
    __aicore__ inline void NormOne(Slot& slot, const LocalTensor<float>& root, uint32_t columns) {
        const uint32_t whole = columns / LANES, rest = columns % LANES;
        if (whole > 0) {
            AscendC::Mul(value_, value_, root, static_cast<uint64_t>(LANES), static_cast<uint8_t>(whole), {1, 1, 0, 8, 8, 0});
        }
        if (rest > 0) {
            AscendC::Mul(value_[whole * LANES], value_[whole * LANES], root, static_cast<uint64_t>(rest), 1, {1, 1, 0, 8, 8, 0});
        }
        AscendC::PipeBarrier<PIPE_V>();
        ToT(slot.second, columns);
        if constexpr (IsHalf<T>::value) {
            AscendC::Mul(slot.second, slot.second, gamma_, columns);
        } else {
            AscendC::Cast(value_, slot.second, RoundMode::CAST_NONE, columns);
            AscendC::Cast(work_, gamma_, RoundMode::CAST_NONE, columns);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Mul(value_, value_, work_, columns);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(slot.second, value_, RoundMode::CAST_RINT, columns);
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void ToT(const LocalTensor<T>& to, uint32_t count) {
        AscendC::Cast(to, value_, IsHalf<T>::value ? RoundMode::CAST_NONE : RoundMode::CAST_RINT, count);
        AscendC::PipeBarrier<PIPE_V>();
    }

    // Whole rows: one, or several short ones.
    __aicore__ inline void Rows(uint64_t row, uint32_t rows) {
        Slot& slot = NextSlot();
        const uint32_t n = static_cast<uint32_t>(n_);
        source_.Load(slot.first, row, rows, 0, n);
        residual_.Load(slot.second, row, rows, 0, n);
        AscendC::SetFlag<HardEvent::MTE2_V>(slot.loaded);

        AscendC::WaitFlag<HardEvent::MTE2_V>(slot.loaded);
        AddResidual(slot, rows * pitch_);
        Square(rows * pitch_);
        if (tiling_->mode == NORM_MANY_ROWS) {
            SumRows(rows);
            Roots(static_cast<uint32_t>(statistics_));
            NormRows(slot, rows);
        } else {
            Sum(sum_, n);
            Roots(8);
            NormOne(slot, spread_, n);
        }
        AscendC::SetFlag<HardEvent::V_MTE3>(slot.computed);

        AscendC::WaitFlag<HardEvent::V_MTE3>(slot.computed);
        Store(y_, slot.first, row, rows, 0, n);
        Store(norm_, slot.second, row, rows, 0, n);
        AscendC::SetFlag<HardEvent::MTE3_MTE2>(slot.stored);
        slot.is_stored = true;
    }

    // The sums of several rows, a repeat per row: the 64-column pieces are added up, then each row's 64 lanes.
    __aicore__ inline void SumRows(uint32_t rows) {
        const uint32_t n = static_cast<uint32_t>(n_);
        const uint8_t step = static_cast<uint8_t>(pitch_ / 8), repeats = static_cast<uint8_t>(rows);
        for (uint32_t column = LANES; column < n; column += LANES) {
            const uint64_t lanes = n - column < LANES ? n - column : LANES;
            AscendC::Add(work_, work_, work_[column], lanes, repeats, {1, 1, 1, step, step, step});
            AscendC::PipeBarrier<PIPE_V>();
        }
        AscendC::WholeReduceSum(sum_, work_, static_cast<int32_t>(n < LANES ? n : LANES), static_cast<int32_t>(rows), 1, 1, step);
        AscendC::PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void NormRows(Slot& slot, uint32_t rows) {
        const uint32_t n = static_cast<uint32_t>(n_);
        const uint8_t step = static_cast<uint8_t>(pitch_ / 8), repeats = static_cast<uint8_t>(rows);
        for (uint32_t column = 0; column < n; column += LANES) {
            const uint64_t lanes = n - column < LANES ? n - column : LANES;
            AscendC::Mul(value_[column], value_[column], spread_, lanes, repeats, {1, 1, 0, step, step, 1});
        }
        AscendC::PipeBarrier<PIPE_V>();
        ToT(slot.second, rows * pitch_);
        if constexpr (IsHalf<T>::value) {
            const uint8_t half_step = static_cast<uint8_t>(pitch_ / 16);
            for (uint32_t column = 0; column < n; column += 2 * LANES) {
                const uint64_t lanes = n - column < 2 * LANES ? n - column : 2 * LANES;
                AscendC::Mul(slot.second[column], slot.second[column], gamma_[column], lanes, repeats, {1, 1, 1, half_step, half_step, 0});
            }
        } else {
            AscendC::Cast(value_, slot.second, RoundMode::CAST_NONE, rows * pitch_);
            AscendC::Cast(work_, gamma_, RoundMode::CAST_NONE, n);
            AscendC::PipeBarrier<PIPE_V>();
            for (uint32_t column = 0; column < n; column += LANES) {
                const uint64_t lanes = n - column < LANES ? n - column : LANES;
                AscendC::Mul(value_[column], value_[column], work_[column], lanes, repeats, {1, 1, 1, step, step, 0});
            }
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(slot.second, value_, RoundMode::CAST_RINT, rows * pitch_);
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    // Rows that are longer than local memory. First y and the sums; then, tile by tile, the norm of what y holds.
    __aicore__ inline void Tiles(uint64_t row, uint32_t rows) {
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint64_t column = 0; column < n_; column += pitch_) {
                const uint32_t columns = static_cast<uint32_t>(n_ - column < pitch_ ? n_ - column : pitch_);
                Slot& slot = NextSlot();
                source_.Load(slot.first, row + r, 1, column, columns);
                residual_.Load(slot.second, row + r, 1, column, columns);
                AscendC::SetFlag<HardEvent::MTE2_V>(slot.loaded);

                AscendC::WaitFlag<HardEvent::MTE2_V>(slot.loaded);
                AddResidual(slot, columns);
                AscendC::SetFlag<HardEvent::V_MTE3>(slot.computed);
                Square(columns);
                Sum(root_, columns);  // the roots are taken later
                if (column == 0) {
                    AscendC::Adds(sum_[r * 8], root_, 0.0f, 1);
                } else {
                    AscendC::Add(sum_[r * 8], sum_[r * 8], root_, 1);
                }
                AscendC::PipeBarrier<PIPE_V>();

                AscendC::WaitFlag<HardEvent::V_MTE3>(slot.computed);
                Store(y_, slot.first, row + r, 1, column, columns);
                AscendC::SetFlag<HardEvent::MTE3_MTE2>(slot.stored);
                slot.is_stored = true;
            }
        }
        Roots(NORM_GROUP * 8);
        AwaitStores();  // y is read again
        for (uint64_t column = 0; column < n_; column += pitch_) {
            const uint32_t columns = static_cast<uint32_t>(n_ - column < pitch_ ? n_ - column : pitch_);
            if (column > 0 || row > first_) {
                AscendC::WaitFlag<HardEvent::V_MTE2>(gamma_used_);
            }
            LoadGamma(column, columns);
            AscendC::WaitFlag<HardEvent::MTE2_V>(gamma_loaded_);
            for (uint32_t r = 0; r < rows; ++r) {
                Slot& slot = NextSlot();
                again_.Load(slot.first, row + r, 1, column, columns);
                AscendC::SetFlag<HardEvent::MTE2_V>(slot.loaded);

                AscendC::WaitFlag<HardEvent::MTE2_V>(slot.loaded);
                AscendC::Cast(value_, slot.first, RoundMode::CAST_NONE, columns);
                AscendC::PipeBarrier<PIPE_V>();
                NormOne(slot, spread_[r * LANES], columns);
                AscendC::SetFlag<HardEvent::V_MTE3>(slot.computed);

                AscendC::WaitFlag<HardEvent::V_MTE3>(slot.computed);
                Store(norm_, slot.second, row + r, 1, column, columns);
                AscendC::SetFlag<HardEvent::MTE3_MTE2>(slot.stored);
                slot.is_stored = true;
            }
            AscendC::SetFlag<HardEvent::V_MTE2>(gamma_used_);
        }
        if (row + NORM_GROUP >= last_) {
            AscendC::WaitFlag<HardEvent::V_MTE2>(gamma_used_);
        }
    }

    AscendC::TPipe* pipe_;
    const AddRmsNormTiling* tiling_;
    Source source_;
    GlobalRows<T> residual_, again_;
    GlobalTensor<T> y_, norm_, gamma_global_;
    AscendC::TBuf<> first_buffer_, second_buffer_, value_buffer_, work_buffer_, gamma_buffer_, sum_buffer_, root_buffer_, one_buffer_, spread_buffer_,
        part_buffer_;
    LocalTensor<float> value_, work_, sum_, root_, spread_, part_;
    LocalTensor<T> gamma_;
    Slot slots_[NORM_MAX_SLOTS];
    AscendC::TEventID gamma_loaded_, gamma_used_;
    uint64_t n_, first_, last_;
    uint32_t pitch_, area_, turn_ = 0;
    uint64_t statistics_;
};

}  // namespace nfg

#endif
