// One launch: memory as the kernel sees it, cores, figures.
#include "launch.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>

#include "common/hccl_context.h"
#include "sim/machine.h"

namespace sim {

namespace {

constexpr size_t kMaxArguments = 40;

// Memory that ends at a page nobody may touch.
class Guarded {
public:
    explicit Guarded(uint64_t bytes) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t rounded = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
        size_ = (rounded + page - 1) / page * page + 2 * page;
        all_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (all_ == MAP_FAILED) {
            all_ = nullptr;
            Fail("Launch", Nowhere(), "expected memory for a tensor of %llu bytes, got none", static_cast<unsigned long long>(bytes));
        }
        mprotect(all_, page, PROT_NONE);
        mprotect(all_ + size_ - page, page, PROT_NONE);
        data_ = all_ + size_ - page - rounded;
    }
    Guarded(Guarded&& other) noexcept : all_(std::exchange(other.all_, nullptr)), size_(other.size_), data_(other.data_) {}
    Guarded(const Guarded&) = delete;
    ~Guarded() {
        if (all_) {
            munmap(all_, size_);
        }
    }
    uint8_t* data() const { return data_; }

private:
    uint8_t* all_;
    size_t size_;
    uint8_t* data_;
};

// What HCCL tells a rank's kernel, as HcclOpResParam lays it out: mostly zero, and mostly never touched.
class GroupContext {
public:
    GroupContext(uint32_t rank, const std::vector<uint8_t*>& windows, bool is_registered)
        : memory_(kTable + nfg::CONTEXT_TABLE_ROWS * nfg::CONTEXT_TABLE_ROW + nfg::CONTEXT_REGISTERED_BEHIND_TABLE +
                  nfg::CONTEXT_REGISTERED_ROWS * nfg::CONTEXT_REGISTERED_ROW + 8),
          parts_(windows.size() * kPart) {
        Put32(nfg::CONTEXT_RANK, rank);
        Put32(nfg::CONTEXT_RANKS, static_cast<uint32_t>(windows.size()));
        Put32(nfg::CONTEXT_TABLE_AT, static_cast<uint32_t>(kTable));
        const uint64_t registered = kTable + nfg::CONTEXT_TABLE_ROWS * nfg::CONTEXT_TABLE_ROW + nfg::CONTEXT_REGISTERED_BEHIND_TABLE;
        Put32(registered + nfg::CONTEXT_REGISTERED_ROWS * nfg::CONTEXT_REGISTERED_ROW, is_registered);
        for (size_t r = 0; r < windows.size(); ++r) {
            const auto window = reinterpret_cast<uint64_t>(windows[r]);
            if (is_registered) {
                Put64(registered + r * nfg::CONTEXT_REGISTERED_ROW + nfg::CONTEXT_REGISTERED_ADDRESS, window);
            } else if (r == rank) {
                Put64(nfg::CONTEXT_OWN_WINDOW, window);
            } else {
                std::memcpy(parts_.data() + r * kPart + nfg::CONTEXT_WINDOW_OF_RANK, &window, sizeof(window));
                Put64(kTable + r * nfg::CONTEXT_TABLE_ROW + sizeof(uint64_t), reinterpret_cast<uint64_t>(parts_.data() + r * kPart));
            }
        }
    }
    uint8_t* data() const { return memory_.data(); }

private:
    static constexpr uint64_t kTable = 2984;  // of CANN 9.1; a kernel reads where it is
    static constexpr uint64_t kPart = 64;

    void Put32(uint64_t at, uint32_t value) { std::memcpy(memory_.data() + at, &value, sizeof(value)); }
    void Put64(uint64_t at, uint64_t value) { std::memcpy(memory_.data() + at, &value, sizeof(value)); }

    Guarded memory_;
    std::vector<uint8_t> parts_;
};

struct Copied {
    Guarded memory;
    void* outside;
    uint64_t bytes;
    uint32_t use;
};

template <size_t... I>
void CallWith(void* function, void** arguments, std::index_sequence<I...>) {
    using A = void*;
    reinterpret_cast<void (*)(decltype((void)I, A())...)>(function)(arguments[I]...);
}

using Caller = void (*)(void*, void**);

template <size_t N>
void CallN(void* function, void** arguments) {
    CallWith(function, arguments, std::make_index_sequence<N>());
}

template <size_t... N>
Caller CallerOf(size_t count, std::index_sequence<N...>) {
    static constexpr Caller callers[] = {CallN<N>...};
    return callers[count];
}

Allocation& Register(const std::string& name, uint8_t* base, uint64_t bytes, uint32_t use, bool is_initialised) {
    Allocation allocation{name, base, bytes, use};
    if (bytes > 0 && use & kWrite) {
        allocation.segments.emplace(0, Segment{bytes, is_initialised});
    }
    return machine().memory.insert_or_assign(reinterpret_cast<uintptr_t>(base), std::move(allocation)).first->second;
}

std::string Figures() {
    double latest = 0;
    uint64_t in = 0, out = 0, far = 0, instructions = 0;
    uint32_t local = 0;
    std::vector<double> busy(kPipes, 0.0);
    for (const auto& each : machine().cores) {
        for (int p = 0; p < kPipes; ++p) {
            latest = std::max({latest, each->time[p], each->done[p]});
            busy[p] = std::max(busy[p], each->busy[p]);
        }
        local = std::max({local, each->local_used, each->local_most});
        in += each->bytes_in;
        out += each->bytes_out;
        far += each->bytes_far;
        instructions += each->instructions;
    }
    std::string text = "{\"simulated_cycles\": " + std::to_string(latest) + ", \"bytes_in\": " + std::to_string(in) +
                       ", \"bytes_out\": " + std::to_string(out) + ", \"bytes_far\": " + std::to_string(far) + ", \"instructions\": " + std::to_string(instructions) + ", \"local_bytes\": " + std::to_string(local) +
                       ", \"cores\": " + std::to_string(machine().cores.size()) + ", \"busiest\": {";
    for (int p = 0; p < kPipes; ++p) {
        text += std::string(p ? ", " : "") + "\"" + PipeName(static_cast<Pipe>(p)) + "\": " + std::to_string(busy[p]);
    }
    text += "}";
    if (machine().is_traced) {
        text += ", \"trace\": [";
        bool is_first = true;
        for (const auto& each : machine().cores) {
            for (const Traced& span : each->trace) {
                char line[160];
                std::snprintf(line, sizeof(line), "%s[%d, %d, \"%s\", \"%s\", %.0f, %.0f, %u]", is_first ? "" : ", ", each->rank, each->block,
                              PipeName(span.pipe), NameAt(span.name).c_str(), span.begin, span.end, span.bytes);
                text += line;
                is_first = false;
            }
        }
        text += "]";
    }
    return text + "}";
}

constexpr uint32_t kMostCores = 48;  // vector cores of the largest chip

void Prepare(const SimLaunch& launch, std::vector<Copied>& copies, std::vector<GroupContext>& contexts) {
    Machine& all = machine();
    all = Machine{};
    all.random.seed(launch.seed);
    all.is_deferred = launch.is_deferred;
    all.has_clocks = launch.has_clocks;
    all.is_traced = launch.is_traced;
    all.usable_local = launch.usable_local;
    all.most_calls = launch.most_calls;
    all.ranks.resize(launch.rank_count);
    uint32_t most = 0;
    for (uint64_t r = 0; r < launch.rank_count; ++r) {
        most = std::max(most, launch.ranks[r].block_dim);
    }
    if (most < 1 || most > kMostCores) {
        Fail("Launch", Nowhere(), "expected 1 to %u cores, what the largest chip has, got %u", kMostCores, most);
    }
    // a tensor that is both read and written has its content, whichever comes first
    std::map<void*, bool> has_content;
    for (uint64_t r = 0; r < launch.rank_count; ++r) {
        for (uint64_t i = 0; i < launch.ranks[r].tensor_count; ++i) {
            const SimTensor& tensor = launch.ranks[r].tensors[i];
            has_content[tensor.data] |= tensor.is_initialised != 0;
        }
    }
    std::map<void*, size_t> seen;
    auto copy = [&](const std::string& name, void* data, uint64_t bytes, uint32_t use, bool is_initialised) {
        auto found = seen.find(data);
        if (found != seen.end() && copies[found->second].bytes == bytes) {  // an output that is an input
            Copied& before = copies[found->second];
            before.use |= use;
            Register(name, before.memory.data(), bytes, before.use, true);
            return before.memory.data();
        }
        for (const auto& [other, at] : seen) {
            const auto* begin = static_cast<const uint8_t*>(other);
            const auto* mine = static_cast<const uint8_t*>(data);
            if (data && bytes > 0 && mine < begin + copies[at].bytes && begin < mine + bytes) {
                Fail("Launch", Nowhere(), "%s overlaps another tensor of the launch in part", name.c_str());
            }
        }
        if (data && has_content.count(data)) {
            is_initialised = has_content[data];
        }
        Copied made{Guarded(bytes), data, bytes, use};
        if (is_initialised && data) {
            std::memcpy(made.memory.data(), data, bytes);
        } else {
            std::memset(made.memory.data(), 0xFF, bytes);
        }
        Register(name, made.memory.data(), bytes, use, is_initialised);
        copies.push_back(std::move(made));
        if (data) {
            seen[data] = copies.size() - 1;
        }
        return copies.back().memory.data();
    };
    for (uint64_t r = 0; r < launch.rank_count; ++r) {
        const SimRank& given = launch.ranks[r];
        Rank& rank = all.ranks[r];
        const std::string prefix = launch.rank_count > 1 ? "rank " + std::to_string(r) + "'s " : "";
        rank.stem = launch.stem;
        rank.entry = given.entry ? given.entry : "";
        rank.tiling_key = given.tiling_key;
        rank.block_dim = given.block_dim;
        rank.task_type = given.task_type;
        for (uint64_t i = 0; i < given.tensor_count; ++i) {
            const SimTensor& tensor = given.tensors[i];
            rank.arguments.push_back(tensor.data ? copy(prefix + tensor.name, tensor.data, tensor.bytes, tensor.use, tensor.is_initialised) : nullptr);
        }
        if (given.block_dim > 0) {
            // the library's part, in front, is not there: a kernel that forgets GetUserWorkspace is noticed
            rank.arguments.push_back(given.workspace_bytes > kLibraryWorkspace
                                         ? copy(prefix + "workspace", nullptr, given.workspace_bytes - kLibraryWorkspace, kRead | kWrite, false) - kLibraryWorkspace
                                         : nullptr);
            rank.tiling = copy(prefix + "tiling", const_cast<void*>(given.tiling), given.tiling_bytes, kRead, true);
            rank.tiling_bytes = given.tiling_bytes;
            rank.arguments.push_back(const_cast<uint8_t*>(rank.tiling));
        }
        uint8_t* window = nullptr;
        if (given.window) {
            window = copy(prefix + "window", given.window, given.window_bytes, kRead | kWrite, true);
            Allocation& memory = all.memory.at(reinterpret_cast<uintptr_t>(window));
            memory.is_window = true;
            memory.rank = static_cast<int>(r);
        }
        all.windows.push_back(window);
        all.window_bytes.push_back(given.window_bytes);
    }
    for (size_t r = 0; r < all.ranks.size(); ++r) {
        if (all.ranks[r].block_dim > 0 && std::any_of(all.windows.begin(), all.windows.end(), [](uint8_t* window) { return window; })) {
            contexts.emplace_back(static_cast<uint32_t>(r), all.windows, launch.is_registered);
            all.ranks[r].context = contexts.back().data();
        }
    }
    for (uint64_t i = 0; i < launch.publication_count; ++i) {
        const SimPublication& given = launch.publications[i];
        uint8_t* window = all.windows.at(given.rank);
        all.publications.emplace(window + given.flag, Publication{window + given.flag, window + given.begin, given.bytes});
    }
    for (uint64_t i = 0; i < launch.store_count; ++i) {
        const SimStore& given = launch.stores[i];
        std::vector<uint8_t> bytes(sizeof(given.word));
        std::memcpy(bytes.data(), &given.word, sizeof(given.word));
        all.host_stores.push_back({given.polls, all.windows.at(given.rank) + given.at, std::move(bytes)});
    }
    for (size_t r = 0; r < all.ranks.size(); ++r) {
        for (uint32_t block = 0; block < all.ranks[r].block_dim; ++block) {
            all.cores.push_back(std::make_unique<Core>(static_cast<int>(all.cores.size()), static_cast<int>(r), static_cast<int>(block), false,
                                                       launch.local_bytes));
            all.ranks[r].cores.push_back(all.cores.back().get());
        }
    }
    // chip and link rates are shared by the cores of a rank
    all.rates.load = std::min(all.rates.load, all.rates.chip / std::max(1u, most));
    all.rates.store = std::min(all.rates.store, all.rates.chip / std::max(1u, most));
    all.rates.link /= std::max(1u, most);
}

// Outputs as a whole: what a kernel has left out shows. Of windows, which other processes may be using, only what was
// written, in the order in which it was: a flag behind its data.
void WriteBack(const std::vector<Copied>& copies) {
    struct Piece {
        uint64_t stamp;
        uint8_t *to, *from;
        uint64_t bytes;
    };
    std::vector<Piece> pieces;
    for (const Copied& copy : copies) {
        if (!copy.outside || !(copy.use & kWrite)) {
            continue;
        }
        const Allocation& memory = machine().memory.at(reinterpret_cast<uintptr_t>(copy.memory.data()));
        if (!memory.is_window) {
            std::memcpy(copy.outside, copy.memory.data(), copy.bytes);
            continue;
        }
        for (const auto& [begin, segment] : memory.segments) {
            if (!segment.writers.empty() || !segment.adders.empty()) {
                pieces.push_back({segment.stamp, static_cast<uint8_t*>(copy.outside) + begin, copy.memory.data() + begin, segment.end - begin});
            }
        }
    }
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.stamp < b.stamp; });
    for (const Piece& piece : pieces) {
        std::memcpy(piece.to, piece.from, piece.bytes);
        std::atomic_thread_fence(std::memory_order_release);
    }
}

std::vector<std::string> g_names;

}  // namespace

uint32_t NameOf(const char* api) {
    for (uint32_t i = 0; i < g_names.size(); ++i) {
        if (g_names[i] == api) {
            return i;
        }
    }
    g_names.emplace_back(api);
    return static_cast<uint32_t>(g_names.size() - 1);
}

const std::string& NameAt(uint32_t number) { return g_names[number]; }

void CallKernel(Rank& rank) {
    void* function = dlsym(RTLD_DEFAULT, rank.entry.c_str());
    Dl_info own;
    if (dladdr(reinterpret_cast<void*>(&sim_launch), &own)) {  // this library's, whatever else the process has loaded
        if (void* library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD)) {
            function = dlsym(library, rank.entry.c_str());
            dlclose(library);
        }
    }
    if (!function) {
        Fail("Launch", Nowhere(), "expected a kernel named %s in this library, it has none", rank.entry.c_str());
    }
    if (rank.arguments.size() > kMaxArguments) {
        Fail("Launch", Nowhere(), "expected at most %zu arguments, got %zu", kMaxArguments, rank.arguments.size());
    }
    CallerOf(rank.arguments.size(), std::make_index_sequence<kMaxArguments + 1>())(function, rank.arguments.data());
}

}  // namespace sim

extern "C" const char* sim_launch(const SimLaunch* launch, int32_t* is_good) {
    static std::string said;
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    std::vector<sim::Copied> copies;
    std::vector<sim::GroupContext> contexts;
    try {
        sim::Prepare(*launch, copies, contexts);
        sim::machine().Run();
        said = sim::machine().failure;
    } catch (const sim::Violation& violation) {
        said = (violation.text[0] == ':' ? "[" + std::string(launch->stem) + "] launch" : "") + violation.text;
    } catch (const std::exception& error) {
        said = "[" + std::string(launch->stem) + "] launch: expected ranks, windows and memory that are there, got: " + error.what();
    }
    *is_good = said.empty();
    if (*is_good) {
        sim::WriteBack(copies);
        said = sim::Figures();
    }
    sim::machine().cores.clear();
    return said.c_str();
}
