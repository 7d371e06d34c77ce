// What a tiling function says when it refuses.
#ifndef NFG_TILING_CHECKS_H
#define NFG_TILING_CHECKS_H

#include <cstdarg>
#include <cstdio>
#include <string>

#include "register/op_impl_registry.h"

namespace nfg {

// The last refusal of this thread.
inline std::string& TilingError() {
    static thread_local std::string text;
    return text;
}

// "[stem] parameter: expected ..., got ..." on stderr, and the status that ends the tiling.
inline ge::graphStatus Refuse(const char* stem, const char* format, ...) __attribute__((format(printf, 2, 3)));
inline ge::graphStatus Refuse(const char* stem, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    TilingError() = std::string("[") + stem + "] " + text;
    std::fprintf(stderr, "%s\n", TilingError().c_str());
    return ge::GRAPH_FAILED;
}

}  // namespace nfg

#endif
