// Runs the tiling function of a kernel, unmodified, on a context that Python describes.
#include "run_tiling.h"

#include "common/tiling_checks.h"

namespace sim {

std::map<std::string, TilingFunction>& TilingFunctions() {
    static std::map<std::string, TilingFunction> functions;
    return functions;
}

}  // namespace sim

extern "C" const char* sim_tiling(const char* type, const char* chip, const SimTilingInput* inputs, uint64_t input_count, const SimTilingAttr* attrs,
                                  uint64_t attr_count, SimTilingResult* result) {
    static std::string said;
    static gert::TilingContext context;
    context = gert::TilingContext();
    const auto found = sim::TilingFunctions().find(type);
    context.platform_.chip = sim::FindChip(chip);
    if (found == sim::TilingFunctions().end() || context.platform_.chip == nullptr) {
        said = std::string("expected a tiling function of ") + type + " and a chip that is known, got chip " + chip;
        return said.c_str();
    }
    for (uint64_t i = 0; i < input_count; ++i) {
        context.is_present_.push_back(inputs[i].dims != nullptr);
        context.shapes_.emplace_back(gert::Shape(inputs[i].dims ? std::vector<int64_t>(inputs[i].dims, inputs[i].dims + inputs[i].rank) : std::vector<int64_t>()));
        context.descs_.emplace_back(static_cast<ge::DataType>(inputs[i].dtype));
    }
    for (uint64_t i = 0; i < attr_count; ++i) {
        gert::RuntimeAttrs::Attr attr;
        attr.kind = attrs[i].kind;
        attr.integer = attrs[i].integer;
        attr.number = static_cast<float>(attrs[i].number);
        attr.flag = attrs[i].integer != 0;
        attr.text = attrs[i].text ? attrs[i].text : "";
        attr.list = gert::TypedContinuousVector<int64_t>(std::vector<int64_t>(attrs[i].list, attrs[i].list + attrs[i].count));
        context.attrs_.attrs_.push_back(std::move(attr));
    }
    nfg::TilingError().clear();
    if (found->second(&context) != ge::GRAPH_SUCCESS) {
        said = nfg::TilingError().empty() ? "the tiling function failed without a word" : nfg::TilingError();
        return said.c_str();
    }
    result->block_dim = context.block_dim_;
    result->schedule_mode = context.schedule_mode_;
    result->tiling_key = context.tiling_key_;
    result->workspace_bytes = context.workspaces_.empty() ? 0 : context.workspaces_[0];
    result->tiling_bytes = context.tiling_.size();
    result->tiling = context.tiling_.data();
    return "";
}
