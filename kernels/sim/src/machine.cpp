// What is checked of every access, and when an instruction runs.
#include "sim/machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace sim {

namespace {

Machine g_machine;

struct Ends {
    Pipe from, to;
};

using E = AscendC::HardEvent;

constexpr Ends kEnds[] = {
    {Pipe::MTE2, Pipe::MTE1},
    {Pipe::MTE1, Pipe::MTE2},
    {Pipe::MTE1, Pipe::M},
    {Pipe::M, Pipe::MTE1},
    {Pipe::MTE2, Pipe::V},
    {Pipe::V, Pipe::MTE2},
    {Pipe::MTE3, Pipe::V},
    {Pipe::V, Pipe::MTE3},
    {Pipe::M, Pipe::V},
    {Pipe::V, Pipe::M},
    {Pipe::V, Pipe::V},
    {Pipe::MTE3, Pipe::MTE1},
    {Pipe::MTE1, Pipe::MTE3},
    {Pipe::MTE1, Pipe::V},
    {Pipe::MTE2, Pipe::M},
    {Pipe::M, Pipe::MTE2},
    {Pipe::V, Pipe::MTE1},
    {Pipe::M, Pipe::FIX},
    {Pipe::FIX, Pipe::M},
    {Pipe::MTE3, Pipe::MTE2},
    {Pipe::MTE2, Pipe::MTE3},
    {Pipe::S, Pipe::V},
    {Pipe::V, Pipe::S},
    {Pipe::S, Pipe::MTE2},
    {Pipe::MTE2, Pipe::S},
    {Pipe::S, Pipe::MTE3},
    {Pipe::MTE3, Pipe::S},
    {Pipe::MTE2, Pipe::FIX},
    {Pipe::FIX, Pipe::MTE2},
    {Pipe::FIX, Pipe::S},
    {Pipe::M, Pipe::S},
    {Pipe::FIX, Pipe::MTE3},
    {Pipe::MTE1, Pipe::FIX},
    {Pipe::FIX, Pipe::MTE1},
    {Pipe::FIX, Pipe::FIX},
};
static_assert(sizeof(kEnds) / sizeof(kEnds[0]) == static_cast<size_t>(E::MAX), "one pair of pipes per event");

bool IsOfCube(Pipe pipe) { return pipe == Pipe::MTE1 || pipe == Pipe::M || pipe == Pipe::FIX; }

const char* kPipeNames[] = {"S", "V", "MTE2", "MTE3", "MTE1", "M", "FIX"};

std::string EventName(E event) {
    const Ends& ends = kEnds[static_cast<int>(event)];
    return std::string(PipeName(ends.from)) + "_" + PipeName(ends.to);
}

}  // namespace

Machine& machine() { return g_machine; }

const char* PipeName(Pipe pipe) { return kPipeNames[static_cast<int>(pipe)]; }

const char* BaseName(const char* file) {
    const char* slash = std::strrchr(file, '/');
    return slash ? slash + 1 : file;
}

void Fail(const char* kind, const Where& where, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    std::string at;
    if (Core* running = machine().core) {
        const Rank& rank = machine().ranks[running->rank];
        at = "[" + std::string(rank.stem) + "] rank " + std::to_string(running->rank) + ", core " + std::to_string(running->block);
    }
    if (*where.file) {
        at += std::string(", ") + BaseName(where.file) + ":" + std::to_string(where.line);
    }
    throw Violation{at + ": " + (*where.api ? std::string(where.api) + ": " : "") + text + " [" + kind + "]"};
}

void FailNarrow(const char* file, int line, long long value, int bits) {
    Fail("Parameter", Where("", file, line), "expected a parameter of %d bits, got %lld. The hardware cuts it off", bits, value);
}

void Join(Knowledge& into, const Knowledge& from) {
    for (int p = 0; p < kPipes; ++p) {
        into.own[p] = std::max(into.own[p], from.own[p]);
    }
    if (!from.others || from.others == into.others) {
        return;
    }
    if (!into.others) {
        into.others = from.others;
        return;
    }
    const View &a = *into.others, &b = *from.others;
    bool has_a_all = true, has_b_all = true;
    for (size_t i = 0; i < a.size(); ++i) {
        has_a_all &= a[i] >= b[i];
        has_b_all &= b[i] >= a[i];
    }
    if (has_a_all) {
        return;
    }
    if (has_b_all) {
        into.others = from.others;
        return;
    }
    auto both = std::make_shared<View>(a);
    for (size_t i = 0; i < b.size(); ++i) {
        (*both)[i] = std::max((*both)[i], b[i]);
    }
    into.others = both;
}

Core::Core(int number, int rank, int block, bool is_cube, uint32_t local_bytes)
    : number(number), rank(rank), block(block), is_cube(is_cube), memory(local_bytes, 0xFF), shadow(local_bytes / kBlock) {}

// -- order -----------------------------------------------------------------------------------------------------

void Core::Begin(Pipe pipe) {
    const int p = static_cast<int>(pipe);
    ++clock[p];
    ++instructions;
    if (pipe == Pipe::S) {
        known[p].own[p] = clock[p];  // the scalar unit is in order
    }
}

bool Core::IsKnown(Pipe pipe, const Access& access) const {
    if (!machine().has_clocks) {
        return true;
    }
    const Knowledge& knowledge = known[static_cast<int>(pipe)];
    if (access.core == number) {
        const int p = static_cast<int>(pipe);
        // what the instruction itself did a moment ago
        return knowledge.own[static_cast<int>(access.pipe)] >= access.clock || (access.pipe == pipe && access.clock == clock[p]);
    }
    return knowledge.others && (*knowledge.others)[access.core * kPipes + static_cast<int>(access.pipe)] >= access.clock;
}

void Core::SetFlag(const Where& here, AscendC::HardEvent event, int id) {
    At(here);
    const Ends& ends = kEnds[static_cast<int>(event)];
    if (id < 0 || id >= kEventIds) {
        Fail("Sync4", here, "%s: expected an event id from 0 to %d, got %d", EventName(event).c_str(), kEventIds - 1, id);
    }
    if (id >= kEventIds - kReservedEventIds && !(allocated_events[static_cast<int>(event)] >> id & 1)) {
        Fail("Sync4", here, "%s: event id %d is the framework's. Take one from AllocEventID or FetchEventID", EventName(event).c_str(), id);
    }
    if (!is_cube && (IsOfCube(ends.from) || IsOfCube(ends.to))) {
        Fail("Unit", here, "%s: a vector core has no such pipe", EventName(event).c_str());
    }
    Flag& flag = flags[static_cast<int>(event)][id];
    if (flag.is_set) {
        Fail("Sync4", here, "%s %d is set already, at line %d, and nobody has waited for it", EventName(event).c_str(), id, flag.line);
    }
    flag.is_set = true;
    flag.known = known[static_cast<int>(ends.from)];
    flag.known.own[static_cast<int>(ends.from)] = clock[static_cast<int>(ends.from)];
    flag.time = std::max(done[static_cast<int>(ends.from)], time[static_cast<int>(Pipe::S)]);
    flag.file = here.file;
    flag.line = here.line;
    if (machine().is_deferred) {
        const int slot = static_cast<int>(event) * kEventIds + id;
        if (ends.from == Pipe::S) {
            ++pending_sets[slot];
        } else {
            queues[static_cast<int>(ends.from)].push_back({Deferred::Set, slot, nullptr});
        }
    }
}

void Core::WaitFlag(const Where& here, AscendC::HardEvent event, int id) {
    At(here);
    const Ends& ends = kEnds[static_cast<int>(event)];
    if (id < 0 || id >= kEventIds) {
        Fail("Sync4", here, "%s: expected an event id from 0 to %d, got %d", EventName(event).c_str(), kEventIds - 1, id);
    }
    Flag& flag = flags[static_cast<int>(event)][id];
    if (!flag.is_set) {
        Fail("Sync3", here, "%s %d: nobody has set this flag. The pipe waits for ever", EventName(event).c_str(), id);
    }
    flag.is_set = false;
    const int to = static_cast<int>(ends.to);
    Join(known[to], flag.known);
    time[to] = std::max(time[to], flag.time + machine().rates.flag);
    if (machine().is_deferred) {
        const int slot = static_cast<int>(event) * kEventIds + id;
        if (ends.to != Pipe::S) {
            queues[to].push_back({Deferred::Wait, slot, nullptr});
            return;
        }
        while (pending_sets[slot] == 0) {
            if (!StepOnce(machine().random)) {
                Fail("Sync3", here, "%s %d: the queues of the pipes wait for each other", EventName(event).c_str(), id);
            }
        }
        --pending_sets[slot];
    }
}

int Core::AllocEvent(const Where& here, AscendC::HardEvent event) {
    At(here);
    uint8_t& taken = allocated_events[static_cast<int>(event)];
    for (int id = 0; id < kEventIds; ++id) {
        if (!(taken >> id & 1)) {
            taken |= static_cast<uint8_t>(1u << id);
            return id;
        }
    }
    Fail("Sync4", here, "%s: all %d event ids are taken", EventName(event).c_str(), kEventIds);
}

void Core::ReleaseEvent(const Where& here, AscendC::HardEvent event, int id) {
    At(here);
    uint8_t& taken = allocated_events[static_cast<int>(event)];
    if (id < 0 || id >= kEventIds || !(taken >> id & 1)) {
        Fail("Sync4", here, "%s: event id %d is not allocated", EventName(event).c_str(), id);
    }
    if (flags[static_cast<int>(event)][id].is_set) {
        Fail("Sync4", here, "%s: event id %d is given back while its flag is set", EventName(event).c_str(), id);
    }
    taken &= static_cast<uint8_t>(~(1u << id));
}

int Core::FetchEvent(const Where& here, AscendC::HardEvent event) {
    const int id = AllocEvent(here, event);
    allocated_events[static_cast<int>(event)] &= static_cast<uint8_t>(~(1u << id));
    return id;
}

void Core::Barrier(const Where& here, int pipe) {
    At(here);
    if (pipe >= 0) {
        known[pipe].own[pipe] = clock[pipe];
        time[pipe] = std::max(time[pipe], done[pipe]);
        return;
    }
    Knowledge all;
    double latest = 0;
    for (int p = 0; p < kPipes; ++p) {
        Join(all, known[p]);
        latest = std::max({latest, time[p], done[p]});
    }
    for (int p = 0; p < kPipes; ++p) {
        all.own[p] = clock[p];
    }
    for (int p = 0; p < kPipes; ++p) {
        known[p] = all;
        time[p] = latest;
    }
    DrainAll(here);
}

// -- when instructions run ---------------------------------------------------------------------------------------

void Core::Issue(const Where& here, Pipe pipe, double cycles, double latency, uint64_t bytes, std::function<void()> body) {
    const int p = static_cast<int>(pipe);
    const double issued = time[static_cast<int>(Pipe::S)] += 1;
    const double begin = std::max(time[p], issued);
    time[p] = begin + cycles;
    done[p] = std::max(done[p], time[p] + latency);
    busy[p] += cycles;
    if (machine().is_traced) {
        trace.push_back({NameOf(here.api), pipe, begin, begin + cycles, static_cast<uint32_t>(bytes)});
    }
    if (!machine().is_deferred || pipe == Pipe::S) {
        body();
        return;
    }
    queues[p].push_back({Deferred::Run, 0, std::move(body)});
    // lazily, eagerly, or in between: a random number of steps
    auto& random = machine().random;
    for (uint64_t steps = random() % 8 < 5 ? 0 : random() % 6; steps > 0 && StepOnce(random); --steps) {
    }
}

bool Core::StepOnce(std::mt19937_64& random) {
    int able[kPipes], count = 0;
    for (int p = 0; p < kPipes; ++p) {
        if (queues[p].empty()) {
            continue;
        }
        const Deferred& first = queues[p].front();
        if (first.kind != Deferred::Wait || pending_sets[first.flag] > 0) {
            able[count++] = p;
        }
    }
    if (count == 0) {
        return false;
    }
    auto& queue = queues[able[random() % count]];
    Deferred first = std::move(queue.front());
    queue.pop_front();
    if (first.kind == Deferred::Run) {
        first.body();
    } else if (first.kind == Deferred::Set) {
        ++pending_sets[first.flag];
    } else {
        --pending_sets[first.flag];
    }
    return true;
}

void Core::DrainAll(const Where& here) {
    while (StepOnce(machine().random)) {
    }
    for (const auto& queue : queues) {
        if (!queue.empty()) {
            Fail("Sync3", here, "the queues of the pipes wait for each other");
        }
    }
}

void Core::CheckEnd() {
    const Where end = Nowhere("end of the kernel");
    for (int e = 0; e < static_cast<int>(E::MAX); ++e) {
        for (int id = 0; id < kEventIds; ++id) {
            if (flags[e][id].is_set) {
                Fail("Sync3", Where("SetFlag", flags[e][id].file, flags[e][id].line), "nobody waits for %s %d: the next kernel finds it set",
                     EventName(static_cast<E>(e)).c_str(), id);
            }
        }
    }
    for (int e = 0; e < static_cast<int>(E::MAX); ++e) {
        for (int id = 0; id < kEventIds; ++id) {
            if (allocated_events[e] >> id & 1) {
                Fail("Leak", end, "event id %d of %s was not given back: ReleaseEventID is missing", id, EventName(static_cast<E>(e)).c_str());
            }
        }
    }
    for (int id = 0; id < kCrossCoreIds; ++id) {
        const auto& sets = machine().ranks[rank].cross_core[id].sets;
        if (!sets.empty() && sets[block] > cross_core_waits[id]) {
            Fail("Sync3", end, "this core has set flag %d %llu times and waited for it %llu times: the next kernel finds it set", id,
                 static_cast<unsigned long long>(sets[block]), static_cast<unsigned long long>(cross_core_waits[id]));
        }
    }
    if (atomic) {
        Fail("Atomic", end, "atomic addition is still on. SetAtomicNone is missing: the next kernel would add");
    }
    for (const auto& [line, content] : cache) {
        if (content.dirty) {
            Fail("Cache", end, "bytes that SetValue wrote to global memory are only in the data cache. DataCacheCleanAndInvalid is missing");
        }
    }
    DrainAll(end);
}

std::string Core::Describe() const {
    std::string text = "rank " + std::to_string(rank) + ", core " + std::to_string(block) + ": ";
    if (state == CoreState::Done) {
        return text + "has ended";
    }
    text += std::string(BaseName(where.file)) + ":" + std::to_string(where.line) + " " + where.api;
    if (state == CoreState::Blocked) {
        text += ", waits for " + waits_for;
    }
    for (int e = 0; e < static_cast<int>(E::MAX); ++e) {
        for (int id = 0; id < kEventIds; ++id) {
            if (flags[e][id].is_set) {
                text += ", " + EventName(static_cast<E>(e)) + " " + std::to_string(id) + " is set (line " + std::to_string(flags[e][id].line) + ")";
            }
        }
    }
    return text;
}

}  // namespace sim
