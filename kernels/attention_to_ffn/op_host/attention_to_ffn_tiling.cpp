// Host tiling of AttentionToFFN: what the graph states, checked, and as the kernel reads it.
#include "attention_to_ffn/attention_to_ffn_tiling.h"

#include <cinttypes>

#include "common/tiling_checks.h"
#include "register/op_impl_registry.h"
#include "tiling/platform/platform_ascendc.h"
#include "tiling/tiling_api.h"

namespace nfg {

namespace {

constexpr const char* STEM = "attention_to_ffn";

// In the order of the IR.
enum Input : size_t { X,
                      SESSION_ID,
                      MICRO_BATCH_ID,
                      LAYER_ID,
                      EXPERT_IDS,
                      EXPERT_RANK_TABLE,
                      SCALES,
                      ACTIVE_MASK };
enum Attr : size_t { GROUP,
                     WORLD_SIZE,
                     FFN_INFO_SHAPE,
                     FFN_DATA_SHAPE,
                     ATTN_INFO_SHAPE,
                     MOE_EXPERT_NUM,
                     QUANT_MODE,
                     SYNC_FLAG,
                     FFN_START_RANK_ID };
constexpr const char* NAMES[] = {"x", "session_id", "micro_batch_id", "layer_id", "expert_ids", "expert_rank_table", "scales", "active_mask"};
constexpr size_t RANKS[] = {3, 1, 1, 1, 3, 3, 3, 2};

constexpr int64_t DYNAMIC = 2;                 // of quant_mode
constexpr uint64_t RESERVED_LOCAL = 9 * 1024;  // what the framework and newer compilers keep of local memory
constexpr uint32_t ALL_TO_ALL = 8;             // the kind of task whose context names the windows of all ranks
constexpr uint32_t BATCH_MODE = 1;             // all cores start together: they wait for each other

struct Call {
    const gert::Shape* shapes[8] = {};
    int64_t world_size = 0, experts = 0, quant_mode = 0, sync_flag = 0, first_rank = 0;
    const gert::TypedContinuousVector<int64_t>*ffn_info = nullptr, *ffn_data = nullptr, *attn_info = nullptr;
    const char* group = nullptr;

    int64_t Dim(Input input, size_t axis) const { return shapes[input]->GetDim(axis); }
};

bool Read(const gert::TilingContext& context, Call& call) {
    for (size_t i = X; i <= ACTIVE_MASK; ++i) {
        const gert::StorageShape* shape = context.GetOptionalInputShape(i);
        call.shapes[i] = shape == nullptr ? nullptr : &shape->GetStorageShape();
    }
    const gert::RuntimeAttrs* attrs = context.GetAttrs();
    const int64_t* numbers[] = {attrs->GetAttrPointer<int64_t>(WORLD_SIZE), attrs->GetAttrPointer<int64_t>(MOE_EXPERT_NUM),
                                attrs->GetAttrPointer<int64_t>(QUANT_MODE), attrs->GetAttrPointer<int64_t>(SYNC_FLAG),
                                attrs->GetAttrPointer<int64_t>(FFN_START_RANK_ID)};
    call.ffn_info = attrs->GetListInt(FFN_INFO_SHAPE);
    call.ffn_data = attrs->GetListInt(FFN_DATA_SHAPE);
    call.attn_info = attrs->GetListInt(ATTN_INFO_SHAPE);
    call.group = attrs->GetStr(GROUP);
    for (const int64_t* number : numbers) {
        if (number == nullptr) {
            return false;
        }
    }
    call.world_size = *numbers[0];
    call.experts = *numbers[1];
    call.quant_mode = *numbers[2];
    call.sync_flag = *numbers[3];
    call.first_rank = *numbers[4];
    return call.ffn_info != nullptr && call.ffn_data != nullptr && call.attn_info != nullptr && call.group != nullptr;
}

ge::graphStatus CheckShapes(const Call& call) {
    for (size_t i = X; i <= ACTIVE_MASK; ++i) {
        if (call.shapes[i] == nullptr) {
            if (i < SCALES) {
                return Refuse(STEM, "%s: expected a tensor, got none", NAMES[i]);
            }
        } else if (call.shapes[i]->GetDimNum() != RANKS[i]) {
            return Refuse(STEM, "%s: expected %zu dimensions, got %zu", NAMES[i], RANKS[i], call.shapes[i]->GetDimNum());
        }
    }
    for (Input one : {X, SESSION_ID, MICRO_BATCH_ID, LAYER_ID, EXPERT_IDS, EXPERT_RANK_TABLE}) {
        if (call.Dim(one, 0) != 1) {
            return Refuse(STEM, "%s: expected size 1 of the first dimension, got %" PRId64, NAMES[one], call.Dim(one, 0));
        }
    }
    const int64_t tokens = call.Dim(X, 1), hidden = call.Dim(X, 2), routed = call.Dim(EXPERT_IDS, 2), rows = call.Dim(EXPERT_RANK_TABLE, 1);
    if (tokens < 1 || tokens > A2F_MAX_TOKENS || call.Dim(EXPERT_IDS, 1) != tokens) {
        return Refuse(STEM, "x, expert_ids: expected the same number of tokens, 1 to %u, got %" PRId64 " and %" PRId64, A2F_MAX_TOKENS, tokens,
                      call.Dim(EXPERT_IDS, 1));
    }
    if (hidden < 1024 || hidden > 8192) {
        return Refuse(STEM, "x: expected 1024 to 8192 elements a token, got %" PRId64, hidden);
    }
    if (call.experts < 1 || call.experts > 1024 || routed < 1 || routed > 16 || routed > call.experts) {
        return Refuse(STEM, "moe_expert_num, expert_ids: expected 1 to 1024 experts, 1 to 16 of them a token, got %" PRId64 " and %" PRId64, call.experts, routed);
    }
    if (rows < call.experts || rows > call.experts + 4) {
        return Refuse(STEM, "expert_rank_table: expected %" PRId64 " rows and up to 4 of shared experts, got %" PRId64, call.experts, rows);
    }
    if (call.shapes[SCALES] != nullptr && (call.Dim(SCALES, 0) != 1 || call.Dim(SCALES, 1) != rows || call.Dim(SCALES, 2) != hidden)) {
        return Refuse(STEM, "scales: expected shape [1, %" PRId64 ", %" PRId64 "]", rows, hidden);
    }
    if (call.shapes[ACTIVE_MASK] != nullptr && (call.Dim(ACTIVE_MASK, 0) != 1 || call.Dim(ACTIVE_MASK, 1) != tokens)) {
        return Refuse(STEM, "active_mask: expected shape [1, %" PRId64 "]", tokens);
    }
    return ge::GRAPH_SUCCESS;
}

ge::graphStatus CheckAttrs(const Call& call) {
    const int64_t tokens = call.Dim(X, 1), slots = call.Dim(EXPERT_IDS, 2) + call.Dim(EXPERT_RANK_TABLE, 1) - call.experts;
    if (call.quant_mode != 0 && call.quant_mode != DYNAMIC) {
        return Refuse(STEM, "quant_mode: expected 0 or 2, got %" PRId64, call.quant_mode);
    }
    if (call.quant_mode == 0 && call.shapes[SCALES] != nullptr) {
        return Refuse(STEM, "scales: expected none with quant_mode 0");
    }
    if (call.sync_flag != 0 && call.sync_flag != 1) {
        return Refuse(STEM, "sync_flag: expected 0 or 1, got %" PRId64, call.sync_flag);
    }
    if (call.world_size < 2 || call.world_size > A2F_MAX_RANKS) {
        return Refuse(STEM, "world_size: expected 2 to %u, got %" PRId64, A2F_MAX_RANKS, call.world_size);
    }
    if (call.ffn_info->GetSize() != 3 || call.ffn_data->GetSize() != 5 || call.attn_info->GetSize() != 3) {
        return Refuse(STEM, "the shapes of the token tables: expected 3, 5 and 3 sizes, got %zu, %zu and %zu", call.ffn_info->GetSize(), call.ffn_data->GetSize(),
                      call.attn_info->GetSize());
    }
    const int64_t *info = call.ffn_info->GetData(), *data = call.ffn_data->GetData(), *own = call.attn_info->GetData();
    if (info[0] < 1 || info[0] >= call.world_size || info[1] < 1) {
        return Refuse(STEM, "ffn_token_info_table_shape: expected 1 to %" PRId64 " attention workers and at least one micro batch, got %" PRId64 " and %" PRId64,
                      call.world_size - 1, info[0], info[1]);
    }
    const int64_t ranks = call.world_size - info[0];
    if (call.first_rank < 0 || call.first_rank + ranks > call.world_size) {
        return Refuse(STEM, "ffn_start_rank_id: expected 0 to %" PRId64 ", got %" PRId64, call.world_size - ranks, call.first_rank);
    }
    if (info[2] != 2 + tokens * slots) {
        return Refuse(STEM, "ffn_token_info_table_shape: expected %" PRId64 " words a micro batch, got %" PRId64, 2 + tokens * slots, info[2]);
    }
    if (data[0] != info[0] || data[1] != info[1] || data[2] != tokens || data[3] != slots) {
        return Refuse(STEM, "ffn_token_data_shape: expected [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 ", ...]", info[0], info[1], tokens, slots);
    }
    if (own[0] != info[1] || own[1] != tokens || own[2] != slots) {
        return Refuse(STEM, "attn_token_info_table_shape: expected [%" PRId64 ", %" PRId64 ", %" PRId64 "]", info[1], tokens, slots);
    }
    const int64_t hidden = call.Dim(X, 2);
    const int64_t least = call.quant_mode == 0 ? hidden : static_cast<int64_t>(A2fRoundUp(static_cast<uint64_t>(hidden), 32)) + 4;
    if (data[4] < least || data[4] > UINT32_MAX) {
        return Refuse(STEM, "ffn_token_data_shape: expected at least %" PRId64 " elements a record, got %" PRId64, least, data[4]);
    }
    const int64_t width = call.Dim(EXPERT_RANK_TABLE, 2);
    if (width < 3) {
        return Refuse(STEM, "expert_rank_table: expected at least 3 words a row, got %" PRId64, width);
    }
    return ge::GRAPH_SUCCESS;
}

}  // namespace

ge::graphStatus TileAttentionToFfn(gert::TilingContext* context) {
    Call call;
    if (!Read(*context, call)) {
        return Refuse(STEM, "attributes: expected all of the IR's");
    }
    if (CheckShapes(call) != ge::GRAPH_SUCCESS || CheckAttrs(call) != ge::GRAPH_SUCCESS) {
        return ge::GRAPH_FAILED;
    }
    const platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    const uint32_t cores = platform.GetCoreNumAiv();
    AttentionToFfnTiling* tiling = context->GetTilingData<AttentionToFfnTiling>();
    *tiling = AttentionToFfnTiling{};
    const bool is_quantised = call.quant_mode == DYNAMIC;
    const int64_t* info = call.ffn_info->GetData();
    tiling->tokens = static_cast<uint32_t>(call.Dim(X, 1));
    tiling->hidden = static_cast<uint32_t>(call.Dim(X, 2));
    tiling->routed = static_cast<uint32_t>(call.Dim(EXPERT_IDS, 2));
    tiling->slots = static_cast<uint32_t>(call.ffn_data->GetData()[3]);
    tiling->experts = static_cast<uint32_t>(call.experts);
    tiling->table_width = static_cast<uint32_t>(call.Dim(EXPERT_RANK_TABLE, 2));
    tiling->sessions = static_cast<uint32_t>(info[0]);
    tiling->micro_batches = static_cast<uint32_t>(info[1]);
    tiling->first_rank = static_cast<uint32_t>(call.first_rank);
    tiling->ffn_ranks = static_cast<uint32_t>(call.world_size - info[0]);
    tiling->record = static_cast<uint32_t>(call.ffn_data->GetData()[4]);
    tiling->has_scales = call.shapes[SCALES] != nullptr;
    tiling->has_mask = call.shapes[ACTIVE_MASK] != nullptr;
    tiling->scale_at = static_cast<uint32_t>(A2fRoundUp(tiling->hidden, 32));
    tiling->data_at = A2fRoundUp(uint64_t{4} * tiling->sessions * tiling->micro_batches * static_cast<uint64_t>(info[2]), 512);

    uint64_t local = 0;
    platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, local);
    const uint64_t needed = A2fLocalBytes(is_quantised, tiling->has_scales, tiling->tokens, tiling->hidden, tiling->ffn_ranks, cores);
    if (needed > local - RESERVED_LOCAL) {
        return Refuse(STEM, "x: expected rows whose work fits in %" PRIu64 " bytes of local memory, got %" PRIu64, local - RESERVED_LOCAL, needed);
    }
    AscendC::Mc2CcTilingConfig group(call.group, ALL_TO_ALL, "AlltoAll=level0:fullmesh");
    static_assert(sizeof(Mc2InitTiling) + sizeof(Mc2CcTiling) <= A2F_SYNC_BYTES, "HCCL's part of the tiling data");
    if (group.GetTiling(*reinterpret_cast<Mc2InitTiling*>(tiling->group)) != 0 ||
        group.GetTiling(*reinterpret_cast<Mc2CcTiling*>(tiling->group + sizeof(Mc2InitTiling))) != 0) {
        return Refuse(STEM, "group: expected a name of 1 to 127 bytes, got '%s'", call.group);
    }
    context->SetTilingKey(A2F_KEY_BASE + (is_quantised ? A2F_KEY_QUANTISED : 0) + (call.sync_flag == 1 ? A2F_KEY_HIT_RANKS : 0));
    context->SetBlockDim(cores);
    context->SetScheduleMode(BATCH_MODE);
    context->GetWorkspaceSizes(1)[0] = platform.GetLibApiWorkSpaceSize() + A2fWorkspaceBytes(tiling->ffn_ranks, cores);
    return ge::GRAPH_SUCCESS;
}

struct AttentionToFfnCompileInfo {};

ge::graphStatus ParseAttentionToFfn(gert::TilingParseContext*) { return ge::GRAPH_SUCCESS; }

IMPL_OP_OPTILING(AttentionToFFN).Tiling(TileAttentionToFfn).TilingParse<AttentionToFfnCompileInfo>(ParseAttentionToFfn);

}  // namespace nfg
